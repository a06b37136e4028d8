// Thirty-two float32 lanes on whatever this translation unit is compiled for: AVX-512, AVX2, or an
// array that the compiler vectorises. Every version does the same IEEE operations in the same
// order, so all of them give the same bits. Fused multiply-add is used for squares of 16-bit values
// only, where the product is exact and fusing changes nothing.
//
// float and Float16: lane j is element j. BFloat16: lanes 0..15 are the even elements and 16..31
// the odd ones, because splitting a register of bfloat16 into halves of its 32-bit words costs one
// cheap instruction each, where widening in order costs two on the shuffle port (measured: 1.4
// times faster over a whole row). ordered<T>() brings float32 data (deltas, weights) into T's
// order.
//
// BFloat16 rounds with integer arithmetic: the hardware conversion flushes denormals. That keeps
// every NaN a NaN unless its payload is all ones in the low bits, which neither bfloat16 inputs nor
// arithmetic produce; deltas are finite (steerfast.table refuses others), and the one scalar that a
// caller could set to such a NaN passes through canonical().
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace steerfast::STEERFAST_ISA {

constexpr int kLanes = 32;

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <typename T>
struct Rounded;  // lanes rounded to T: lanes() as float32, store() to memory

#if defined(__AVX512F__)

struct Lanes {
  __m512 a, b;
  static Lanes fill(float value) { return {_mm512_set1_ps(value), _mm512_set1_ps(value)}; }
  friend Lanes operator+(Lanes p, Lanes q) {
    return {_mm512_add_ps(p.a, q.a), _mm512_add_ps(p.b, q.b)};
  }
  friend Lanes operator*(Lanes p, Lanes q) {
    return {_mm512_mul_ps(p.a, q.a), _mm512_mul_ps(p.b, q.b)};
  }
  void spill(float* out) const {
    _mm512_storeu_ps(out, a);
    _mm512_storeu_ps(out + 16, b);
  }
};

inline Lanes fused_square_add(Lanes p, Lanes sum) {
  return {_mm512_fmadd_ps(p.a, p.a, sum.a), _mm512_fmadd_ps(p.b, p.b, sum.b)};
}

inline __m512 canonical(__m512 p) {
  return _mm512_mask_mov_ps(p, _mm512_cmp_ps_mask(p, p, _CMP_UNORD_Q), _mm512_set1_ps(NAN));
}
inline Lanes canonical(Lanes p) { return {canonical(p.a), canonical(p.b)}; }

inline Lanes load(const float* p) { return {_mm512_loadu_ps(p), _mm512_loadu_ps(p + 16)}; }
inline Lanes load(const Float16* p) {
  const __m256i* half = reinterpret_cast<const __m256i*>(p);
  return {_mm512_cvtph_ps(_mm256_loadu_si256(half)), _mm512_cvtph_ps(_mm256_loadu_si256(half + 1))};
}
inline Lanes split(__m512i words) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)),
          _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(int(0xffff0000u))))};
}
inline Lanes load(const BFloat16* p) { return split(_mm512_loadu_si512(p)); }

template <typename T>
inline Lanes ordered(Lanes p) {
  return p;
}
template <>
inline Lanes ordered<BFloat16>(Lanes p) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  return {_mm512_permutex2var_ps(p.a, even, p.b), _mm512_permutex2var_ps(p.a, odd, p.b)};
}
template <typename T>
inline Lanes unordered(Lanes p) {
  return p;
}
template <>
inline Lanes unordered<BFloat16>(Lanes p) {
  const __m512i first = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
  return {_mm512_permutex2var_ps(p.a, first, p.b), _mm512_permutex2var_ps(p.a, second, p.b)};
}

// To nearest, ties to even, in the upper half of each word; the lower half is left over.
inline __m512i round_words(__m512 p) {
  const __m512i bits = _mm512_castps_si512(p);
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  const __m512i even = _mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff));
  return _mm512_mask_add_epi32(even, odd, bits, _mm512_set1_epi32(0x8000));
}
template <>
struct Rounded<BFloat16> {
  __m512i a, b;
  explicit Rounded(Lanes p) : a(round_words(p.a)), b(round_words(p.b)) {}
  Lanes lanes() const {
    const __m512i upper = _mm512_set1_epi32(int(0xffff0000u));
    return {_mm512_castsi512_ps(_mm512_and_si512(a, upper)),
            _mm512_castsi512_ps(_mm512_and_si512(b, upper))};
  }
  void store(BFloat16* p) const {  // upper halves of a and b, alternating
    const __m512i pick =
        _mm512_add_epi16(_mm512_set1_epi32(0x00200000),
                         _mm512_set_epi32(0x1f001f, 0x1d001d, 0x1b001b, 0x190019, 0x170017,
                                          0x150015, 0x130013, 0x110011, 0xf000f, 0xd000d, 0xb000b,
                                          0x90009, 0x70007, 0x50005, 0x30003, 0x10001));
    _mm512_storeu_si512(p, _mm512_permutex2var_epi16(a, pick, b));
  }
};
template <>
struct Rounded<Float16> {
  __m256i a, b;
  explicit Rounded(Lanes p)
      : a(_mm512_cvtps_ph(p.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)),
        b(_mm512_cvtps_ph(p.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)) {}
  Lanes lanes() const { return {_mm512_cvtph_ps(a), _mm512_cvtph_ps(b)}; }
  void store(Float16* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p) + 1, b);
  }
};

#elif defined(__AVX2__)

struct Lanes {
  __m256 a[2], b[2];
  static Lanes fill(float value) {
    const __m256 all = _mm256_set1_ps(value);
    return {{all, all}, {all, all}};
  }
  template <typename F>
  friend Lanes each(const Lanes& p, const Lanes& q, F f) {
    return {{f(p.a[0], q.a[0]), f(p.a[1], q.a[1])}, {f(p.b[0], q.b[0]), f(p.b[1], q.b[1])}};
  }
  friend Lanes operator+(const Lanes& p, const Lanes& q) {
    return each(p, q, [](__m256 s, __m256 t) { return _mm256_add_ps(s, t); });
  }
  friend Lanes operator*(const Lanes& p, const Lanes& q) {
    return each(p, q, [](__m256 s, __m256 t) { return _mm256_mul_ps(s, t); });
  }
  void spill(float* out) const {
    _mm256_storeu_ps(out, a[0]);
    _mm256_storeu_ps(out + 8, a[1]);
    _mm256_storeu_ps(out + 16, b[0]);
    _mm256_storeu_ps(out + 24, b[1]);
  }
};

inline Lanes fused_square_add(const Lanes& p, const Lanes& sum) {
  return each(p, sum, [](__m256 s, __m256 t) { return _mm256_fmadd_ps(s, s, t); });
}

inline Lanes canonical(const Lanes& p) {
  return each(p, p, [](__m256 s, __m256) {
    return _mm256_blendv_ps(s, _mm256_set1_ps(NAN), _mm256_cmp_ps(s, s, _CMP_UNORD_Q));
  });
}

inline Lanes load(const float* p) {
  return {{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)},
          {_mm256_loadu_ps(p + 16), _mm256_loadu_ps(p + 24)}};
}
inline Lanes load(const Float16* p) {
  const __m128i* half = reinterpret_cast<const __m128i*>(p);
  return {{_mm256_cvtph_ps(_mm_loadu_si128(half)), _mm256_cvtph_ps(_mm_loadu_si128(half + 1))},
          {_mm256_cvtph_ps(_mm_loadu_si128(half + 2)), _mm256_cvtph_ps(_mm_loadu_si128(half + 3))}};
}
inline __m256 lower(__m256i words) { return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16)); }
inline __m256 upper(__m256i words) {
  return _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(int(0xffff0000u))));
}
inline Lanes load(const BFloat16* p) {
  const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p) + 1);
  return {{lower(first), lower(second)}, {upper(first), upper(second)}};
}

template <typename T>
inline Lanes ordered(Lanes p) {
  return p;
}
template <int kOdd>
inline __m256 every_other(__m256 p, __m256 q) {  // of the sixteen elements p, q
  const __m256 mixed = _mm256_shuffle_ps(p, q, kOdd ? 0xdd : 0x88);
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(mixed), 0xd8));
}
template <>
inline Lanes ordered<BFloat16>(Lanes p) {
  return {{every_other<0>(p.a[0], p.a[1]), every_other<0>(p.b[0], p.b[1])},
          {every_other<1>(p.a[0], p.a[1]), every_other<1>(p.b[0], p.b[1])}};
}
template <typename T>
inline Lanes unordered(Lanes p) {
  return p;
}
template <int kHalf>
inline __m256 interleave(__m256 even, __m256 odd) {
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd),
                                kHalf ? 0x31 : 0x20);
}
template <>
inline Lanes unordered<BFloat16>(Lanes p) {
  return {{interleave<0>(p.a[0], p.b[0]), interleave<1>(p.a[0], p.b[0])},
          {interleave<0>(p.a[1], p.b[1]), interleave<1>(p.a[1], p.b[1])}};
}

inline __m256i round_words(__m256 p) {
  const __m256i bits = _mm256_castps_si256(p);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
}
template <>
struct Rounded<BFloat16> {
  __m256i a[2], b[2];
  explicit Rounded(const Lanes& p)
      : a{round_words(p.a[0]), round_words(p.a[1])}, b{round_words(p.b[0]), round_words(p.b[1])} {}
  Lanes lanes() const { return {{upper(a[0]), upper(a[1])}, {upper(b[0]), upper(b[1])}}; }
  void store(BFloat16* p) const {
    for (int i = 0; i < 2; ++i) {
      const __m256i both = _mm256_blend_epi16(_mm256_srli_epi32(a[i], 16), b[i], 0xaa);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p) + i, both);
    }
  }
};
template <>
struct Rounded<Float16> {
  __m128i part[4];
  static __m128i narrow(__m256 p) {
    return _mm256_cvtps_ph(p, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  explicit Rounded(const Lanes& p)
      : part{narrow(p.a[0]), narrow(p.a[1]), narrow(p.b[0]), narrow(p.b[1])} {}
  Lanes lanes() const {
    return {{_mm256_cvtph_ps(part[0]), _mm256_cvtph_ps(part[1])},
            {_mm256_cvtph_ps(part[2]), _mm256_cvtph_ps(part[3])}};
  }
  void store(Float16* p) const {
    for (int i = 0; i < 4; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(p) + i, part[i]);
  }
};

#else

struct Lanes {
  float v[kLanes];
  static Lanes fill(float value) {
    Lanes out;
    for (float& lane : out.v) lane = value;
    return out;
  }
  friend Lanes operator+(Lanes p, const Lanes& q) {
    for (int i = 0; i < kLanes; ++i) p.v[i] += q.v[i];
    return p;
  }
  friend Lanes operator*(Lanes p, const Lanes& q) {
    for (int i = 0; i < kLanes; ++i) p.v[i] *= q.v[i];
    return p;
  }
  void spill(float* out) const { std::memcpy(out, v, sizeof v); }
};

inline Lanes fused_square_add(const Lanes& p, const Lanes& sum) { return sum + p * p; }

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline Lanes canonical(Lanes p) {
  for (float& lane : p.v) lane = lane == lane ? lane : NAN;
  return p;
}

inline Lanes load(const float* p) {
  Lanes out;
  std::memcpy(out.v, p, sizeof out.v);
  return out;
}
inline float widen(Float16 half) {
  const uint32_t magnitude = (half.bits & 0x7fffu) << 13;
  // 2^112 moves float16's exponent bias to float32's, subnormals included; infinity and NaN keep
  // theirs.
  const uint32_t finite = bits_of(float_of(magnitude) * 0x1p112f);
  const uint32_t wide = magnitude >= 0x0f800000u ? (magnitude | 0x7f800000u) : finite;
  return float_of(wide | (half.bits & 0x8000u) << 16);
}
inline Lanes load(const Float16* p) {
  Lanes out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = widen(p[i]);
  return out;
}
inline Lanes load(const BFloat16* p) {
  Lanes out;
  for (int i = 0; i < kLanes / 2; ++i) {
    out.v[i] = float_of(uint32_t{p[2 * i].bits} << 16);
    out.v[16 + i] = float_of(uint32_t{p[2 * i + 1].bits} << 16);
  }
  return out;
}

template <typename T>
inline Lanes ordered(const Lanes& p) {
  return p;
}
template <>
inline Lanes ordered<BFloat16>(const Lanes& p) {
  Lanes out;
  for (int i = 0; i < kLanes; ++i) out.v[(i & 1) * 16 + i / 2] = p.v[i];
  return out;
}
template <typename T>
inline Lanes unordered(const Lanes& p) {
  return p;
}
template <>
inline Lanes unordered<BFloat16>(const Lanes& p) {
  Lanes out;
  for (int i = 0; i < kLanes; ++i) out.v[i] = p.v[(i & 1) * 16 + i / 2];
  return out;
}

template <>
struct Rounded<BFloat16> {
  uint32_t v[kLanes];
  explicit Rounded(const Lanes& p) {
    for (int i = 0; i < kLanes; ++i) {
      const uint32_t bits = bits_of(p.v[i]);
      v[i] = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
    }
  }
  Lanes lanes() const {
    Lanes out;
    std::memcpy(out.v, v, sizeof v);
    return out;
  }
  void store(BFloat16* p) const {
    for (int i = 0; i < kLanes; ++i)
      p[i].bits = static_cast<uint16_t>(v[(i & 1) * 16 + i / 2] >> 16);
  }
};
inline uint16_t narrow(float value) {
  const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // to infinity
  if (magnitude < 0x38800000u)  // subnormal: adding 0.5 makes the FPU round to multiples of 2^-24
    return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u));
  return static_cast<uint16_t>(sign |
                               (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13);
}
template <>
struct Rounded<Float16> {
  Float16 v[kLanes];
  explicit Rounded(const Lanes& p) {
    for (int i = 0; i < kLanes; ++i) v[i].bits = narrow(p.v[i]);
  }
  Lanes lanes() const { return load(v); }
  void store(Float16* p) const { std::memcpy(p, v, sizeof v); }
};

#endif

template <>
struct Rounded<float> {
  Lanes kept;
  explicit Rounded(const Lanes& p) : kept(p) {}
  Lanes lanes() const { return kept; }
  void store(float* p) const { kept.spill(p); }
};

template <typename T>
inline Lanes square_add(const Lanes& p, const Lanes& sum) {
  if constexpr (sizeof(T) == 2) return fused_square_add(p, sum);
  return sum + p * p;
}

// Lane i + lane i + 16, then + 8, + 4, + 2, + 1: the fixed end of every reduction.
inline float sum(const Lanes& p) {
  float lane[kLanes];
  p.spill(lane);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

}  // namespace steerfast::STEERFAST_ISA
