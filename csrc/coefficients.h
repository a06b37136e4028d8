// From the dots of a read to the factors of its directions: plain C++ of one read, the same for the
// CUDA and the CPU kernels. steerfast/ops/contribution.py says it for many rows at a time.
//
// Not for sources that are compiled once per instruction set: an inline function of theirs may be
// the one that the linker keeps for all.
#pragma once

#include "lengths.h"

namespace steerfast {

constexpr double kSmallestSine = 1e-4;  // SMALLEST_SINE of steerfast/ops/contribution.py

// What the row gave to a read. `exact_*` only where the op is slerp: there 1 - (p/n)^2 cancels.
struct Dots {
  float p = 0.f, partner = 0.f, key = 0.f;    // 0 where there is none
  float norm = 0.f;                           // |h|
  double exact_p = 0.0, exact_squares = 0.0;  // p and |h|^2
};

// f * bank[target] + share * h is what the read adds; the gate is in both.
struct Coefficient {
  float f, share;
};

STEERFAST_HOST_DEVICE inline float sine_of_half_turns(float half_turns) {
#ifdef __CUDA_ARCH__
  return sinpif(half_turns);  // unlike sinf it needs no memory for large angles
#else
  return static_cast<float>(std::sin(3.14159265358979323846 * half_turns));
#endif
}

// f as the quotient of two sines: cos w' - cos w s = sin(w - w') / sin w, without the cancellation.
STEERFAST_HOST_DEVICE inline Coefficient slerp_coefficient(float slope, double p, double squares) {
  const double norm = sqrt(squares);
  if (!(norm > 0.0)) return {0.f, 0.f};
  double cosine = p / norm;
  cosine = cosine > 1.0 ? 1.0 : cosine < -1.0 ? -1.0 : cosine;
  const double sine = sqrt(1.0 - cosine * cosine);
  if (!(sine >= kSmallestSine)) return {0.f, 0.f};

  constexpr float kHalfTurnsOfRadian = 0.318309886183790672f;
  const float x = static_cast<float>(cosine), y = static_cast<float>(sine), rest = 1.f - slope;
  float forth, left;  // sin(w - w'), sin w'
  if (x >= 0.f) {
    const float angle = atan2f(y, x) * kHalfTurnsOfRadian;
    forth = sine_of_half_turns(slope * angle);
    left = sine_of_half_turns(rest * angle);
  } else {
    // Near 180 degrees w says little of its sine, its supplement everything. With whole half turns
    // taken out of slope * 180 degrees, what is left of both angles is exact.
    const float supplement = atan2f(y, -x) * kHalfTurnsOfRadian;
    const float whole = rintf(slope), part = slope - whole;
    const float sign = rintf(0.5f * whole) == 0.5f * whole ? 1.f : -1.f;
    forth = sign * sine_of_half_turns(part - slope * supplement);
    left = sign * sine_of_half_turns(part + rest * supplement);
  }
  return {static_cast<float>(norm) * (forth / y), left / y - 1.f};
}

STEERFAST_HOST_DEVICE inline float gate_of(const Read& read, float key, float norm) {
  switch (read.gate) {
    case Gate::kOpen:
      break;
    case Gate::kHard:
      return key + read.bias > 0.f ? 1.f : 0.f;
    case Gate::kCosine:
      return key > read.bias * norm && norm > 0.f ? 1.f : 0.f;
    case Gate::kSigmoid:
      return 1.f / (1.f + expf(-(key + read.bias)));
  }
  return 1.f;
}

// NaN stays NaN: hence comparisons, not fmax and fmin.
STEERFAST_HOST_DEVICE inline Coefficient ungated_coefficient(const Read& read, const Dots& dots) {
  const float p = dots.p, line = read.slope * p + read.offset;
  switch (read.op) {
    case Op::kKey:
      break;
    case Op::kAffine:
      return {line + read.cross * dots.partner, 0.f};
    case Op::kFloor:
      return {line < 0.f ? 0.f : line, 0.f};
    case Op::kCeiling:
      return {line > 0.f ? 0.f : line, 0.f};
    case Op::kSigned:
      return {p > 0.f ? read.slope : p < 0.f ? -read.slope : 0.f, 0.f};
    case Op::kRelative:
      return {read.slope * dots.norm, 0.f};
    case Op::kFeature: {
      const float z = p + read.offset;
      return {read.level - (z > read.threshold ? z : 0.f), 0.f};
    }
    case Op::kTurn:
      return {read.slope * p + read.cross * hypotf(p, dots.partner), 0.f};
    case Op::kSlerp:
      return slerp_coefficient(read.slope, dots.exact_p, dots.exact_squares);
  }
  return {0.f, 0.f};
}

STEERFAST_HOST_DEVICE inline Coefficient coefficient_of(const Read& read, const Dots& dots) {
  const float gate = gate_of(read, dots.key, dots.norm);
  const Coefficient ungated = ungated_coefficient(read, dots);
  // Most reads have no share of h: not even 0 * NaN.
  return {gate * ungated.f, ungated.share == 0.f ? 0.f : gate * ungated.share};
}

}  // namespace steerfast
