// The scalar stage of a reading row, between its two sweeps: from dots to coefficients. One object
// file for all instruction sets, because expf and its like must give the same bits to all of them.
#pragma once

#include "../steer.h"

namespace steerfast {

// What a row gave to its program; p and exact_p by place, 0 where a read has no source.
struct RowDots {
  float p[kMaxReads];
  double exact_p[kMaxReads];  // of slerp only
  double exact_squares;       // |h|^2, where there is a slerp
  float norm;                 // |h|
};

// f[i] of each read, and the sum of their shares of h.
void coefficients(const Read* reads, int count, const RowDots& dots, float* f, float* share);

}  // namespace steerfast
