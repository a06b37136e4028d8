// IEEE half precision, in integers: not every compiler of C++17 has such a type.
#pragma once

#include "cuda_runtime.h"

struct __half {
  uint16_t bits = 0;
};
struct __half2 {
  __half x, y;
};

inline uint16_t __half_as_ushort(__half value) { return value.bits; }
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }

inline float __half2float(__half value) {
  const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
  const uint32_t exponent = value.bits >> 10 & 0x1f, fraction = value.bits & 0x3ff;
  if (exponent == 0x1f) return __uint_as_float(sign | 0x7f800000 | fraction << 13);
  const float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                        : __uint_as_float((exponent + 112) << 23 | fraction << 13);
  return __uint_as_float(sign | __float_as_uint(magnitude));
}

// To nearest, ties to even; infinity from 65520 on. Every NaN becomes the one that CUDA's does.
inline __half __float2half_rn(float value) {
  if (std::isnan(value)) return {0x7fff};
  const uint32_t bits = __float_as_uint(value), magnitude = bits & 0x7fffffff;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  // Below 2^-14 halves are the multiples of 2^-24; the host's own rounding finds the nearest.
  const uint32_t half =
      magnitude < 0x38800000
          ? static_cast<uint32_t>(std::nearbyint(std::ldexp(__uint_as_float(magnitude), 24)))
          : (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  return {static_cast<uint16_t>(sign | (half < 0x7c00 ? half : 0x7c00))};
}
inline __half2 __floats2half2_rn(float x, float y) {
  return {__float2half_rn(x), __float2half_rn(y)};
}

// As for bfloat16.
inline __half2 __hadd2_rn(__half2 a, __half2 b) {
  return __floats2half2_rn(__half2float(a.x) + __half2float(b.x),
                           __half2float(a.y) + __half2float(b.y));
}
inline __half2 __hmul2_rn(__half2 a, __half2 b) {
  return __floats2half2_rn(__half2float(a.x) * __half2float(b.x),
                           __half2float(a.y) * __half2float(b.y));
}
