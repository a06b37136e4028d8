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

// 1 / rms(stream). The mean is the sum times 1/D, as torch's CUDA kernels have it.
__device__ inline float reciprocal_rms(float squares, const SteerParams& p) {
  return 1.f / sqrtf(squares * p.inverse_width + p.eps);
}

template <int kLanes>
__device__ inline void scale(float (&y)[kLanes], float factor) {
#pragma unroll
  for (int i = 0; i < kLanes; ++i) y[i] *= factor;
}

// round(weight * round_T(stream * rstd)), LlamaRMSNorm's order of rounding, or with kFp32
// round(weight * stream * rstd).
template <bool kFp32, typename T, typename W, int kLanes>
__device__ inline Packed<W, kLanes> normalised(const Packed<T, kLanes>& stream,
                                               const Packed<W, kLanes>& weight, float rstd) {
  float unit[kLanes], gamma[kLanes];
  widen(stream, unit);
  scale(unit, rstd);
  if constexpr (!kFp32) {
    const Packed<T, kLanes> rounded = narrow<T>(unit);
    if constexpr (std::is_same_v<T, W>) return packed_product(rounded, weight);
    widen(rounded, unit);
  }
  widen(weight, gamma);
#pragma unroll
  for (int i = 0; i < kLanes; ++i) unit[i] = gamma[i] * unit[i];
  return narrow<W>(unit);
}

template <bool kReads, int kWarps = kMaxWarps>
struct RowShared {
  typename BlockSum<kWarps>::Shared sums;
};
template <int kWarps>
struct RowShared<true, kWarps> {
  typename BlockSum<kWarps>::Shared sums;
  ReadsShared reads;
};

template <bool kFp32, typename W, typename Row>
__device__ inline void put_normed(const SteerParams& p, Row& row, float rstd) {
  row.each_with_weight(p, [&](const typename Row::Place& place,
                              const Packed<typename Row::Element, Row::kLanes>& out,
                              const Packed<W, Row::kLanes>& weight) {
    row.put(p, place, normalised<kFp32>(out, weight, rstd));
  });
}

// All of a row from h on: the steering, the new stream, its norm. `row` is where this thread's
// vectors are between one pass and the next (registers, shared memory, global memory), and knows
// where they come from and go to. A place is one of them in the row:
//
//     Element, kLanes, Place    of the stream
//     kReadsAtOnce              reads that a pass takes together: with more the kernels spill
//     each(f)                   f(place, packed) for every vector, in order
//     replace(make, use)        every vector becomes make(place, packed), then use(place, ...)
//     fetch_weight(p)           soon to be wanted
//     each_with_weight(p, f)    f(place, packed, weight)
//     delta, part               (p, bank_row, place) of a row of the bank; part has zeros for row
//     -1 keep, put                 a vector of the stream, of its norm empty(p, index) what is
//     emptied
//
// Whether a row is active, has reads or a finish is the same for the whole block.
template <bool kReads, typename W, typename Row, int kWarps>
__device__ inline void work_on(const SteerParams& p, const Route<kReads>& route, Row& row,
                               RowShared<kReads, kWarps>& shared, BlockSum<kWarps>& block_sum) {
  using T = typename Row::Element;
  constexpr int kLanes = Row::kLanes;
  using Vector = Packed<T, kLanes>;
  using Place = typename Row::Place;

  if (p.emptied && !route.active()) return;
  if constexpr (kReads) {
    if (route.read_count > 0) prepare_terms(p, route, row, shared.reads);
  }
  // h, and y = h + gain * contribution.
  const auto steer = [&](const Place& place, const Vector& packed, float (&h)[kLanes],
                         float (&y)[kLanes]) {
    float added[kLanes];
    if constexpr (kReads) {
      widen(row.part(p, route.delta, place), added);
      if (route.read_count > 0) add_terms(p, shared.reads, route.read_count, row, place, added);
    } else {
      widen(row.delta(p, route.delta, place), added);
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

  float squares[1] = {0.f};
  const auto keep = [&](const Place& place, const Vector& out) {
    float wide[kLanes];
    widen(out, wide);
    squares[0] += row.there(place) ? sum_of_squares(wide) : 0.f;
    row.keep(p, place, out);
  };
  if (!route.active()) {
    row.replace([](const Place&, const Vector& h) { return h; }, keep);
  } else if (route.finish == Finish::kNone) {
    const auto steered = [&](const Place& place, const Vector& packed) {
      float h[kLanes], y[kLanes];
      steer(place, packed, h, y);
      return narrow<T>(y);
    };
    row.replace(steered, keep);
  } else {
    float both[2] = {0.f, 0.f};
    row.each([&](const Place& place, const Vector& packed) {
      float h[kLanes], y[kLanes];
      steer(place, packed, h, y);
      both[0] += sum_of_squares(h);
      both[1] += row.there(place) ? sum_of_squares(y) : 0.f;
    });
    block_sum(both);
    const float factor = finish_factor(both[0], both[1], route.finish);
    // y is computed a second time: to keep it would cost too many registers.
    const auto finished = [&](const Place& place, const Vector& packed) {
      float h[kLanes], y[kLanes];
      steer(place, packed, h, y);
      scale(y, factor);
      return narrow<T>(y);
    };
    row.replace(finished, keep);
  }
  if (p.emptied) row.empty(p);

  if (!p.normed) return;
  row.fetch_weight(p);
  block_sum(squares);
  const float rstd = reciprocal_rms(squares[0], p);
  if (p.fp32_norm) {
    put_normed<true, W>(p, row, rstd);
  } else {
    put_normed<false, W>(p, row, rstd);
  }
}

}  // namespace steerfast
