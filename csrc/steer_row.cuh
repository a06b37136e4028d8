// What the additive kernels do to a row: cpu/steer_rows.cpp operation by operation (-fmad=false),
// but for the order of the sums of squares.
#pragma once

#include "row.cuh"

namespace steerfast {

struct Route {
  const float* delta;  // null: not steered
  float gain;
  Finish finish;
};

// Slots and bank rows are not checked here, as they are on the CPU: nothing cheap could report
// them, and to leave such a row unsteered would be silently wrong. Whoever fills the route answers
// for it (steerfast/route.py). -DSTEERFAST_DEBUG stops the kernel, which then fails at the next
// synchronisation.
__device__ inline Route route_of(const SteerParams& p, int32_t slot, float gain) {
  Route route = {nullptr, gain, Finish::kNone};
  if (slot < 0 || gain == 0.f) return route;
  const int32_t* record = p.records + int64_t{slot} * kRecordWidth;
#ifdef STEERFAST_DEBUG
  if (slot >= p.slots || record[kRecordDelta] >= p.bank_rows) __trap();
#endif
  const int64_t bank_row = record[kRecordDelta];
  route.finish = static_cast<Finish>(record[kRecordFinish]);
  if (bank_row >= 0) route.delta = p.bank + bank_row * p.width;
  return route;
}

// |h|/|y|, at most 1 for shrink, 1 where |y| = 0.
__device__ inline float finish_factor(float before, float after, Finish finish) {
  const float norm = sqrtf(after);
  if (!(norm > 0.f)) return 1.f;
  const float factor = sqrtf(before) / norm;
  return finish == Finish::kShrink && factor > 1.f ? 1.f : factor;
}

__device__ inline float reciprocal_rms(float squares, const SteerParams& p) {
  return 1.f / sqrtf(squares / static_cast<float>(p.width) + p.eps);
}

template <typename T, int kLanes>
__device__ inline Packed<T, kLanes> sum_of(const Packed<T, kLanes>& residual,
                                           const Packed<T, kLanes>& x) {
  float left[kLanes], right[kLanes];
  widen(residual, left);
  widen(x, right);
#pragma unroll
  for (int i = 0; i < kLanes; ++i) left[i] += right[i];
  return narrow<T>(left);
}

template <typename T, int kLanes>
__device__ inline void steered(const Packed<T, kLanes>& h, const Packed<float, kLanes>& delta,
                               float gain, float (&y)[kLanes]) {
  float added[kLanes];
  widen(h, y);
  widen(delta, added);
#pragma unroll
  for (int i = 0; i < kLanes; ++i) y[i] += gain * added[i];
}

template <int kLanes>
__device__ inline void scale(float (&y)[kLanes], float factor) {
#pragma unroll
  for (int i = 0; i < kLanes; ++i) y[i] *= factor;
}

// round(weight * round_T(stream * rstd)), LlamaRMSNorm's order of rounding.
template <typename T, typename W, int kLanes>
__device__ inline Packed<W, kLanes> normalised(const Packed<T, kLanes>& stream,
                                               const Packed<W, kLanes>& weight, float rstd) {
  float unit[kLanes], gamma[kLanes];
  widen(stream, unit);
  scale(unit, rstd);
  widen(narrow<T>(unit), unit);
  widen(weight, gamma);
#pragma unroll
  for (int i = 0; i < kLanes; ++i) unit[i] = gamma[i] * unit[i];
  return narrow<W>(unit);
}

// This thread's part of a row that is yet to be worked on.
template <typename T, int kVectors>
struct Incoming {
  static constexpr int kLanes = kLanesOf<T>;
  Packed<T, kLanes> residual[kVectors], x[kVectors];
  int32_t slot = -1;
  float gain = 0.f;

  __device__ void fetch(const SteerParams& p, int64_t row) {
    const T* const residual_row = static_cast<const T*>(p.residual) + row * p.residual_stride;
    const T* const x_row = static_cast<const T*>(p.x) + row * p.x_stride;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int first = first_of<kLanes>(v), left = static_cast<int>(p.width) - first;
      residual[v] = load<Reuse::kNone, kLanes>(residual_row + first, left, true);
      if (p.x) x[v] = load<Reuse::kNone, kLanes>(x_row + first, left, true);
    }
    if (!p.row_slot) return;
    slot = p.row_slot[row];
    gain = p.row_gain[row];
  }
};

}  // namespace steerfast
