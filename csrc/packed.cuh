// Vectors of a row as they lie in memory, and the arithmetic on them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace steerfast {

template <typename T>
constexpr int kLanesOf = 16 / sizeof(T);

// kLanes neighbours of a row, as they lie in memory.
template <typename T, int kLanes>
struct Packed {
  static constexpr int kWords = kLanes * sizeof(T) / 4;
  uint32_t word[kWords];
};

// Keeps the compiler from holding a vector as float32, in twice the registers, over a barrier.
template <typename T, int kLanes>
__device__ inline void stay_packed(Packed<T, kLanes>& packed) {
#pragma unroll
  for (uint32_t& word : packed.word) asm volatile("" : "+r"(word));
}

template <int kLanes>
__device__ inline void widen(const Packed<float, kLanes>& packed, float (&wide)[kLanes]) {
#pragma unroll
  for (int i = 0; i < kLanes; ++i) wide[i] = __uint_as_float(packed.word[i]);
}
template <int kLanes>
__device__ inline void widen(const Packed<__nv_bfloat16, kLanes>& packed, float (&wide)[kLanes]) {
#pragma unroll
  for (int i = 0; i < kLanes / 2; ++i) {
    wide[2 * i] = __uint_as_float(packed.word[i] << 16);
    wide[2 * i + 1] = __uint_as_float(packed.word[i] & 0xffff0000u);
  }
}
template <int kLanes>
__device__ inline void widen(const Packed<__half, kLanes>& packed, float (&wide)[kLanes]) {
#pragma unroll
  for (int i = 0; i < kLanes / 2; ++i) {
    const uint32_t word = packed.word[i];
    wide[2 * i] = __half2float(__ushort_as_half(static_cast<uint16_t>(word)));
    wide[2 * i + 1] = __half2float(__ushort_as_half(static_cast<uint16_t>(word >> 16)));
  }
}

// Two neighbours, as CUDA's arithmetic on pairs takes them.
template <typename T>
using PairOf = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
template <typename T>
__device__ inline PairOf<T> pair_in(uint32_t word) {
  PairOf<T> pair;
  memcpy(&pair, &word, sizeof pair);
  return pair;
}
template <typename Pair>
__device__ inline uint32_t word_of(const Pair& pair) {
  uint32_t word;
  memcpy(&word, &pair, sizeof word);
  return word;
}

__device__ inline uint32_t narrow_pair(float low, float high, __nv_bfloat16) {
  return word_of(__floats2bfloat162_rn(low, high));
}
__device__ inline uint32_t narrow_pair(float low, float high, __half) {
  return word_of(__floats2half2_rn(low, high));
}
// To nearest, ties to even.
template <typename T, int kLanes>
__device__ inline Packed<T, kLanes> narrow(const float (&wide)[kLanes]) {
  Packed<T, kLanes> packed;
#pragma unroll
  for (int i = 0; i < packed.kWords; ++i) {
    if constexpr (sizeof(T) == 4) {
      packed.word[i] = __float_as_uint(wide[i]);
    } else {
      packed.word[i] = narrow_pair(wide[2 * i], wide[2 * i + 1], T());
    }
  }
  return packed;
}

// round_T(left + right) and round_T(left * right). Rounded once, in pairs: the bits are those of
// float32 arithmetic that is rounded to T afterwards, because float32 has more than twice the
// digits of T and two more, and float32 holds every product of two T.
template <typename T, int kLanes>
__device__ inline Packed<T, kLanes> packed_sum(const Packed<T, kLanes>& left,
                                               const Packed<T, kLanes>& right) {
  Packed<T, kLanes> sum;
#pragma unroll
  for (int i = 0; i < sum.kWords; ++i) {
    if constexpr (sizeof(T) == 4) {
      sum.word[i] = __float_as_uint(__uint_as_float(left.word[i]) + __uint_as_float(right.word[i]));
    } else {
      sum.word[i] = word_of(__hadd2_rn(pair_in<T>(left.word[i]), pair_in<T>(right.word[i])));
    }
  }
  return sum;
}
template <typename T, int kLanes>
__device__ inline Packed<T, kLanes> packed_product(const Packed<T, kLanes>& left,
                                                   const Packed<T, kLanes>& right) {
  Packed<T, kLanes> product;
#pragma unroll
  for (int i = 0; i < product.kWords; ++i) {
    if constexpr (sizeof(T) == 4) {
      product.word[i] =
          __float_as_uint(__uint_as_float(left.word[i]) * __uint_as_float(right.word[i]));
    } else {
      product.word[i] = word_of(__hmul2_rn(pair_in<T>(left.word[i]), pair_in<T>(right.word[i])));
    }
  }
  return product;
}

}  // namespace steerfast
