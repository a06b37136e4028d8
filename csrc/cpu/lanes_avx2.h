// Thirty-two lanes in four AVX registers. Part of lanes.h, which says what they mean.
#pragma once

#include <immintrin.h>

namespace steerfast::STEERFAST_ISA {

constexpr int kRowsAtOnce = 1;
constexpr int kBlocksAtOnce = 1;  // sixteen registers hold no more
constexpr int kDotsAtOnce = 2;

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

inline float sum(const Lanes& p) {
  const __m256 by8 = _mm256_add_ps(_mm256_add_ps(p.a[0], p.b[0]), _mm256_add_ps(p.a[1], p.b[1]));
  const __m128 by4 = _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_add_ss(by2, _mm_movehdup_ps(by2)));
}

}  // namespace steerfast::STEERFAST_ISA
