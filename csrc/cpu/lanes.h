// Thirty-two float32 lanes on whatever this translation unit is compiled for: AVX-512, AVX2, or an
// array that the compiler vectorises. Every version does the same IEEE operations in the same
// order, so all of them give the same bits. Fused multiply-add is used for squares of 16-bit values
// only, where the product is exact and fusing changes nothing.
//
// float and Float16: lane j is element j. BFloat16: lanes 0..15 are the even elements and 16..31
// the odd ones, because splitting a register of bfloat16 into halves of its 32-bit words costs one
// cheap instruction each, where widening in order costs two on the shuffle port (measured: 1.4
// times faster over a whole row). ordered<T>() brings float32 data (deltas, weights) into T's
// order, unordered<T>() brings a stream into that of float32 data.
//
// BFloat16 rounds with integer arithmetic: the hardware conversion flushes denormals. That keeps
// every NaN a NaN unless its payload is all ones in the low bits, which neither bfloat16 inputs nor
// arithmetic produce; deltas are finite (steerfast.table.table refuses others), and the one scalar
// that a caller could set to such a NaN passes through canonical().
//
// sum() adds lane i + lane i + 16, then + 8, + 4, + 2, + 1: the fixed end of every reduction.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

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

}  // namespace steerfast::STEERFAST_ISA

#if defined(__AVX512F__)
#include "lanes_avx512.h"
#elif defined(__AVX2__)
#include "lanes_avx2.h"
#else
#include "lanes_baseline.h"
#endif

namespace steerfast::STEERFAST_ISA {

template <>
struct Rounded<float> {
  Lanes kept;
  explicit Rounded(const Lanes& p) : kept(p) {}
  Lanes lanes() const { return kept; }
  void store(float* p) const { kept.spill(p); }
};

// Rounded<T>(p).lanes(); for float it is p without a detour, which GCC 12 would take over the
// stack.
template <typename T>
inline Lanes round_to(const Lanes& p) {
  if constexpr (sizeof(T) == 2) return Rounded<T>(p).lanes();
  return p;
}

template <typename T>
inline Lanes square_add(const Lanes& p, const Lanes& sum) {
  if constexpr (sizeof(T) == 2) return fused_square_add(p, sum);
  return sum + p * p;
}

}  // namespace steerfast::STEERFAST_ISA
