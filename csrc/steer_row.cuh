// What every kernel does to a row: cpu/steer_rows.cpp operation by operation (-fmad=false), but for
// the order of the sums.
#pragma once

#include "reads.cuh"
#include "route.cuh"
#include "sums.cuh"

namespace steerfast {

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

template <int kLanes>
__device__ inline void scale(float (&y)[kLanes], float factor) {
#pragma unroll
  for (int i = 0; i < kLanes; ++i) y[i] *= factor;
}

// round(weight * round_T(stream * rstd)), LlamaRMSNorm's order of rounding, or with p.fp32_norm
// round(weight * stream * rstd).
template <typename T, typename W, int kLanes>
__device__ inline Packed<W, kLanes> normalised(const SteerParams& p,
                                               const Packed<T, kLanes>& stream,
                                               const Packed<W, kLanes>& weight, float rstd) {
  float unit[kLanes], gamma[kLanes];
  widen(stream, unit);
  scale(unit, rstd);
  if (!p.fp32_norm) widen(narrow<T>(unit), unit);
  widen(weight, gamma);
#pragma unroll
  for (int i = 0; i < kLanes; ++i) unit[i] = gamma[i] * unit[i];
  return narrow<W>(unit);
}

template <bool kReads>
struct RowShared {
  BlockSum::Shared sums;
};
template <>
struct RowShared<true> {
  BlockSum::Shared sums;
  ReadsShared reads;
};

// All of a row from h on: the steering, the new stream, its norm. `row` is where this thread's
// vectors are between one pass and the next (registers, shared memory, global memory):
//
//     Element, kLanes               of the stream
//     Index                         of an element
//     vector                        whether 16-byte accesses are possible
//     each(f)                       f(first, left, packed) for every vector, in order
//     replace(make, use)            every vector becomes make(first, left, packed), then use(...)
//     fetch_weight()                soon to be wanted
//     each_with_weight(f)           f(first, left, packed, weight)
//
// with `first` where a vector begins in the row and `left` elements from there to the row's end.
// Whether a row is active, has reads or a finish is the same for the whole block.
template <bool kReads, typename W, typename Row>
__device__ inline void work_on(const SteerParams& p, int64_t index, const Route<kReads>& route,
                               Row& row, RowShared<kReads>& shared, BlockSum& block_sum) {
  using T = typename Row::Element;
  constexpr int kLanes = Row::kLanes;
  using Index = typename Row::Index;
  using Vector = Packed<T, kLanes>;

  if (p.emptied && !route.active()) return;
  if constexpr (kReads) {
    if (route.read_count > 0) prepare_terms(p, route, row, shared.reads);
  }
  // h, and y = h + gain * contribution.
  const auto steer = [&](Index first, int left, const Vector& packed, float (&h)[kLanes],
                         float (&y)[kLanes]) {
    float added[kLanes];
    if constexpr (kReads) {
      widen(part_of(p, route.delta, row, first, left), added);
      if (route.read_count > 0)
        add_terms(p, shared.reads, route.read_count, row, first, left, added);
    } else {
      widen(load<Reuse::kSome, kLanes>(route.delta + first, left, row.vector), added);
    }
    widen(packed, h);
    if constexpr (kReads) {
      if (route.read_count > 0) {
        const float share = shared.reads.share;
#pragma unroll
        for (int i = 0; i < kLanes; ++i) added[i] += share == 0.f ? 0.f : share * h[i];
      }
    }
#pragma unroll
    for (int i = 0; i < kLanes; ++i) y[i] = h[i] + route.gain * added[i];
  };

  T* const stream = static_cast<T*>(p.stream) + index * p.stream_stride;
  T* const emptied = static_cast<T*>(p.emptied) + index * p.x_stride;
  float squares[1] = {0.f};
  const auto keep = [&](Index first, int left, const Vector& out) {
    float wide[kLanes];
    widen(out, wide);
    squares[0] += sum_of_squares(wide);
    store(out, stream + first, left, row.vector);
    if (p.emptied) store(Vector{}, emptied + first, left, row.vector);
  };
  if (route.active()) {
    float factor = 1.f;
    if (route.finish != Finish::kNone) {
      float both[2] = {0.f, 0.f};
      row.each([&](Index first, int left, const Vector& packed) {
        float h[kLanes], y[kLanes];
        steer(first, left, packed, h, y);
        both[0] += sum_of_squares(h);
        both[1] += sum_of_squares(y);
      });
      block_sum(both);
      factor = finish_factor(both[0], both[1], route.finish);
    }
    // After a finish y is computed a second time: to keep it would cost too many registers.
    const auto finished = [&](Index first, int left, const Vector& packed) {
      float h[kLanes], y[kLanes];
      steer(first, left, packed, h, y);
      if (route.finish != Finish::kNone) scale(y, factor);
      return narrow<T>(y);
    };
    row.replace(finished, keep);
  } else {
    row.replace([](Index, int, const Vector& h) { return h; }, keep);
  }

  if (!p.normed) return;
  row.fetch_weight();
  block_sum(squares);
  const float rstd = reciprocal_rms(squares[0], p);
  W* const normed = static_cast<W*>(p.normed) + index * p.normed_stride;
  row.each_with_weight(
      [&](Index first, int left, const Vector& out, const Packed<W, kLanes>& weight) {
        store(normalised(p, out, weight, rstd), normed + first, left, row.vector);
      });
}

}  // namespace steerfast
