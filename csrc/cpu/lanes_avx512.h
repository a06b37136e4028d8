// Thirty-two lanes in two AVX-512 registers. Part of lanes.h, which says what they mean.
#pragma once

#include <immintrin.h>

namespace steerfast::STEERFAST_ISA {

// Two blocks at a time keep the pipes busy; their values fit in the thirty-two registers.
constexpr int kTileCells = 2;
constexpr int kDotsAtOnce = 4;

struct Lanes {
  __m512 a, b;
  // Member by member: GCC 12 copies an aggregate through the stack.
  Lanes() = default;
  Lanes(__m512 first, __m512 second) : a(first), b(second) {}
  Lanes(const Lanes& other) : a(other.a), b(other.b) {}
  Lanes& operator=(const Lanes& other) {
    a = other.a;
    b = other.b;
    return *this;
  }
  static Lanes fill(float value) { return {_mm512_set1_ps(value), _mm512_set1_ps(value)}; }
  friend Lanes operator+(const Lanes& p, const Lanes& q) {
    return {_mm512_add_ps(p.a, q.a), _mm512_add_ps(p.b, q.b)};
  }
  friend Lanes operator*(const Lanes& p, const Lanes& q) {
    return {_mm512_mul_ps(p.a, q.a), _mm512_mul_ps(p.b, q.b)};
  }
  void spill(float* out) const {
    _mm512_storeu_ps(out, a);
    _mm512_storeu_ps(out + 16, b);
  }
};

inline void add_product(Lanes& sum, const Lanes& p, const Lanes& q) { sum = sum + p * q; }
inline Lanes fused_square_add(const Lanes& p, const Lanes& sum) {
  return {_mm512_fmadd_ps(p.a, p.a, sum.a), _mm512_fmadd_ps(p.b, p.b, sum.b)};
}

inline __m512 canonical(__m512 p) {
  return _mm512_mask_mov_ps(p, _mm512_cmp_ps_mask(p, p, _CMP_UNORD_Q), _mm512_set1_ps(NAN));
}
inline Lanes canonical(const Lanes& p) { return {canonical(p.a), canonical(p.b)}; }

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
inline Lanes ordered(const Lanes& p) {
  return p;
}
template <>
inline Lanes ordered<BFloat16>(const Lanes& p) {
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  return {_mm512_permutex2var_ps(p.a, even, p.b), _mm512_permutex2var_ps(p.a, odd, p.b)};
}
template <typename T>
inline Lanes unordered(const Lanes& p) {
  return p;
}
template <>
inline Lanes unordered<BFloat16>(const Lanes& p) {
  const __m512i first = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
  return {_mm512_permutex2var_ps(p.a, first, p.b), _mm512_permutex2var_ps(p.a, second, p.b)};
}

// To nearest, ties to even, in the upper half of each word; the lower half is left over. What is
// added is 0x7fff and the last bit that stays: vpmaddwd sums the two halves of a word, which is one
// instruction less than a shift, and no mask register (measured: 0.86 for 1.14 cycles).
inline __m512i round_words(__m512 p) {
  const __m512i bits = _mm512_castps_si512(p);
  const __m512i halves = _mm512_ternarylogic_epi32(bits, _mm512_set1_epi32(0x10000),
                                                   _mm512_set1_epi32(0x7fff), 0xea);  // (a & b) | c
  return _mm512_add_epi32(bits, _mm512_madd_epi16(halves, _mm512_set1_epi16(1)));
}
template <>
struct Rounded<BFloat16> {
  __m512i a, b;
  explicit Rounded(const Lanes& p) : a(round_words(p.a)), b(round_words(p.b)) {}
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
  explicit Rounded(const Lanes& p)
      : a(_mm512_cvtps_ph(p.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)),
        b(_mm512_cvtps_ph(p.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)) {}
  Lanes lanes() const { return {_mm512_cvtph_ps(a), _mm512_cvtph_ps(b)}; }
  void store(Float16* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p) + 1, b);
  }
};

inline float sum(const Lanes& p) {
  const __m512 by16 = _mm512_add_ps(p.a, p.b);
  const __m256 by8 = _mm256_add_ps(_mm512_castps512_ps256(by16), _mm512_extractf32x8_ps(by16, 1));
  const __m128 by4 = _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_add_ss(by2, _mm_movehdup_ps(by2)));
}

}  // namespace steerfast::STEERFAST_ISA
