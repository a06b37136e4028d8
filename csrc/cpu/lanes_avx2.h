// Thirty-two lanes in four AVX registers. Part of lanes.h, which says what they mean.
#pragma once

#include <immintrin.h>

namespace steerfast::STEERFAST_ISA {

constexpr int kTileCells = 2;
constexpr int kDotsAtOnce = 2;

struct Lanes {
  __m256 a, b, c, d;
  // Member by member: GCC 12 copies an aggregate through the stack.
  Lanes() = default;
  Lanes(__m256 first, __m256 second, __m256 third, __m256 fourth)
      : a(first), b(second), c(third), d(fourth) {}
  Lanes(const Lanes& other) : a(other.a), b(other.b), c(other.c), d(other.d) {}
  Lanes& operator=(const Lanes& other) {
    a = other.a;
    b = other.b;
    c = other.c;
    d = other.d;
    return *this;
  }
  static Lanes fill(float value) {
    const __m256 all = _mm256_set1_ps(value);
    return {all, all, all, all};
  }
  template <typename F>
  friend Lanes each(const Lanes& p, const Lanes& q, F f) {
    return {f(p.a, q.a), f(p.b, q.b), f(p.c, q.c), f(p.d, q.d)};
  }
  friend Lanes operator+(const Lanes& p, const Lanes& q) {
    return each(p, q, [](__m256 s, __m256 t) { return _mm256_add_ps(s, t); });
  }
  friend Lanes operator*(const Lanes& p, const Lanes& q) {
    return each(p, q, [](__m256 s, __m256 t) { return _mm256_mul_ps(s, t); });
  }
  void spill(float* out) const {
    _mm256_storeu_ps(out, a);
    _mm256_storeu_ps(out + 8, b);
    _mm256_storeu_ps(out + 16, c);
    _mm256_storeu_ps(out + 24, d);
  }
};

inline void add_product(Lanes& sum, const Lanes& p, const Lanes& q) { sum = sum + p * q; }
inline Lanes fused_square_add(const Lanes& p, const Lanes& sum) {
  return each(p, sum, [](__m256 s, __m256 t) { return _mm256_fmadd_ps(s, s, t); });
}

inline Lanes canonical(const Lanes& p) {
  return each(p, p, [](__m256 s, __m256) {
    return _mm256_blendv_ps(s, _mm256_set1_ps(NAN), _mm256_cmp_ps(s, s, _CMP_UNORD_Q));
  });
}

inline Lanes load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8), _mm256_loadu_ps(p + 16),
          _mm256_loadu_ps(p + 24)};
}
inline Lanes load(const Float16* p) {
  const __m128i* half = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(half)), _mm256_cvtph_ps(_mm_loadu_si128(half + 1)),
          _mm256_cvtph_ps(_mm_loadu_si128(half + 2)), _mm256_cvtph_ps(_mm_loadu_si128(half + 3))};
}
inline __m256 lower(__m256i words) { return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16)); }
inline __m256 upper(__m256i words) {
  return _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(int(0xffff0000u))));
}
inline Lanes load(const BFloat16* p) {
  const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p) + 1);
  return {lower(first), lower(second), upper(first), upper(second)};
}

template <typename T>
inline Lanes ordered(const Lanes& p) {
  return p;
}
template <int kOdd>
inline __m256 every_other(__m256 p, __m256 q) {  // of the sixteen elements p, q
  const __m256 mixed = _mm256_shuffle_ps(p, q, kOdd ? 0xdd : 0x88);
  return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(mixed), 0xd8));
}
template <>
inline Lanes ordered<BFloat16>(const Lanes& p) {
  return {every_other<0>(p.a, p.b), every_other<0>(p.c, p.d), every_other<1>(p.a, p.b),
          every_other<1>(p.c, p.d)};
}
template <typename T>
inline Lanes unordered(const Lanes& p) {
  return p;
}
template <int kHalf>
inline __m256 interleave(__m256 even, __m256 odd) {
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd),
                                kHalf ? 0x31 : 0x20);
}
template <>
inline Lanes unordered<BFloat16>(const Lanes& p) {
  return {interleave<0>(p.a, p.c), interleave<1>(p.a, p.c), interleave<0>(p.b, p.d),
          interleave<1>(p.b, p.d)};
}

inline __m256i round_words(__m256 p) {
  const __m256i bits = _mm256_castps_si256(p);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
}
template <>
struct Rounded<BFloat16> {
  __m256i a, b, c, d;
  explicit Rounded(const Lanes& p)
      : a(round_words(p.a)), b(round_words(p.b)), c(round_words(p.c)), d(round_words(p.d)) {}
  Lanes lanes() const { return {upper(a), upper(b), upper(c), upper(d)}; }
  static __m256i alternate(__m256i even, __m256i odd) {
    return _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa);
  }
  void store(BFloat16* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), alternate(a, c));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p) + 1, alternate(b, d));
  }
};
template <>
struct Rounded<Float16> {
  __m128i a, b, c, d;
  static __m128i narrow(__m256 p) {
    return _mm256_cvtps_ph(p, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  explicit Rounded(const Lanes& p)
      : a(narrow(p.a)), b(narrow(p.b)), c(narrow(p.c)), d(narrow(p.d)) {}
  Lanes lanes() const {
    return {_mm256_cvtph_ps(a), _mm256_cvtph_ps(b), _mm256_cvtph_ps(c), _mm256_cvtph_ps(d)};
  }
  void store(Float16* p) const {
    __m128i* out = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(out, a);
    _mm_storeu_si128(out + 1, b);
    _mm_storeu_si128(out + 2, c);
    _mm_storeu_si128(out + 3, d);
  }
};

inline float sum(const Lanes& p) {
  const __m256 by8 = _mm256_add_ps(_mm256_add_ps(p.a, p.c), _mm256_add_ps(p.b, p.d));
  const __m128 by4 = _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_add_ss(by2, _mm_movehdup_ps(by2)));
}

}  // namespace steerfast::STEERFAST_ISA
