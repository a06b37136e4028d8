// Lengths of rows whose squares float32 may not hold: plain C++, the same for the CUDA and the CPU
// kernels; kernels/lengths.py is the same in Triton. Static, since some sources are compiled once
// per instruction set.
#pragma once

#include <cmath>

#include "steer.h"

#ifdef __CUDACC__
#define STEERFAST_HOST_DEVICE __host__ __device__
#else
#define STEERFAST_HOST_DEVICE
#endif

namespace steerfast {

// A sum of squares below kLeastSquares may have lost digits to subnormals, one that is not finite
// has left float32. Elements are then multiplied by kRaise or kLower before they are squared: any
// row of float32 has a sum in range afterwards, or is 0 or not finite itself.
constexpr float kLeastSquares = 0x1p-96f, kMostSquares = 0x1.fffffep127f;
constexpr float kRaise = 0x1p100f, kLower = 0x1p-80f;

// |row| is root / lift.
struct Length {
  float root, lift;
};

STEERFAST_HOST_DEVICE static inline float lift_for(float squares) {
  if (squares < kLeastSquares) return kRaise;
  return squares <= kMostSquares ? 1.f : kLower;
}

// What a finish multiplies a row by, once; or twice, because |h|/|y| may leave float32 too. The
// product after one of two equal factors lies between the row and its result.
struct FinishFactor {
  float factor;
  bool twice;
};

// |h|/|y|, at most 1 for shrink, 1 where |y| is 0 or not finite.
STEERFAST_HOST_DEVICE static inline FinishFactor finish_factor(Finish finish, Length before,
                                                               Length after) {
  if (!(after.root > 0.f && after.root <= kMostSquares)) return {1.f, false};
  float factor = before.root / after.root;
  const bool twice = before.lift != 1.f || after.lift != 1.f;
  if (twice) factor = sqrtf(factor) * (sqrtf(after.lift) / sqrtf(before.lift));
  if (finish == Finish::kShrink && factor > 1.f) factor = 1.f;
  return {factor, twice};
}

}  // namespace steerfast
