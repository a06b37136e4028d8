// The reads of a row: their dots, from these the factors of their directions, and the sum.
#pragma once

#include "coefficients.h"
#include "route.cuh"
#include "sums.cuh"

namespace steerfast {

static_assert(kMaxReads % 4 == 0 && kMaxReads < kWarp);

struct alignas(8) Term {
  int32_t target;  // row of the bank, -1: nothing is added
  float f;
};

// Column i of a warp's sums is the dot of read i, the last one |h|^2. Both are written and read
// between the same two barriers of every row that has reads.
constexpr int kSquares = kMaxReads, kColumns = kMaxReads + 1;
struct ReadsShared {
  double exact[kMaxWarps][kColumns];  // of slerp alone
  float dot[kMaxWarps][kColumns];
  Term term[kMaxReads];
  float share;  // of h, of all reads together
};

// Lane i holds the source of read i.
template <typename Row>
__device__ inline void sum_dots(const SteerParams& p, int read_count, int32_t source,
                                const Row& row, ReadsShared& shared) {
  using Vector = Packed<typename Row::Element, Row::kLanes>;
  constexpr int kAtOnce = Row::kReadsAtOnce, kLanesOfOne = kWarp / kAtOnce;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll 1
  for (int begin = 0; begin < read_count; begin += kAtOnce) {
    int32_t axis[kAtOnce];  // of pointers, which take twice the registers, there is no room
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) axis[k] = __shfl_sync(kWholeWarp, source, begin + k);
    float dots[kAtOnce] = {}, squares = 0.f;
    row.each([&](const typename Row::Place& place, const Vector& packed) {
      float h[Row::kLanes], direction[Row::kLanes];
      widen(packed, h);
      if (begin == 0) squares += sum_of_squares(h);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        widen(row.part(p, axis[k], place), direction);
        dots[k] += row.there(place) ? dot_of(h, direction) : 0.f;
      }
    });
    const float dot = warp_sums(dots);
    if (lane % kLanesOfOne == 0) shared.dot[warp][begin + lane / kLanesOfOne] = dot;
    if (begin == 0) {
      squares = warp_sum(squares);
      if (lane == 0) shared.dot[warp][kSquares] = squares;
    }
  }
}

// In double precision the dots of the reads whose bit is set.
template <typename Row>
__device__ inline void sum_exact_dots(const SteerParams& p, unsigned wanted, int32_t source,
                                      const Row& row, ReadsShared& shared) {
  using Vector = Packed<typename Row::Element, Row::kLanes>;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll 1
  for (; wanted; wanted &= wanted - 1) {
    const int read = __ffs(wanted) - 1;
    const int32_t axis = __shfl_sync(kWholeWarp, source, read);
    double dot = 0.0, squares = 0.0;
    row.each([&](const typename Row::Place& place, const Vector& packed) {
      float h[Row::kLanes], direction[Row::kLanes];
      if (!row.there(place)) return;
      widen(packed, h);
      widen(row.part(p, axis, place), direction);
#pragma unroll
      for (int i = 0; i < Row::kLanes; ++i) {
        dot += static_cast<double>(h[i]) * direction[i];
        squares += static_cast<double>(h[i]) * h[i];
      }
    });
    dot = warp_sum(dot);
    squares = warp_sum(squares);
    if (lane == 0) {
      shared.exact[warp][read] = dot;
      shared.exact[warp][kSquares] = squares;
    }
  }
}

// The sum over the block of one column.
template <typename Number>
__device__ inline Number sum_of_column(const Number (&sums)[kMaxWarps][kColumns], int column) {
  Number sum = 0;
#pragma unroll
  for (int warp = 0; warp < kMaxWarps; ++warp) {
    if (warp < blockDim.x / kWarp) sum += sums[warp][column];
  }
  return sum;
}

// One warp, lane i for read i.
__device__ inline void make_terms(const SteerParams& p, const Route<true>& route,
                                  ReadsShared& shared) {
  const int lane = threadIdx.x % kWarp;
  const bool there = lane < route.read_count;
  Read read = {Op::kKey, -1, -1, -1, Gate::kOpen, -1};
  if (there) read = read_at(p, route, lane);
  float sum = 0.f;
  if (there || lane == kSquares) sum = sum_of_column(shared.dot, lane);

  Dots dots;
  dots.norm = sqrtf(__shfl_sync(kWholeWarp, sum, kSquares));
  if (read.source >= 0) dots.p = sum;
  const float partner = __shfl_sync(kWholeWarp, dots.p, max(read.partner, 0));
  const float key = __shfl_sync(kWholeWarp, dots.p, max(read.key, 0));
  if (read.partner >= 0) dots.partner = partner;
  if (read.key >= 0) dots.key = key;
  if (read.op == Op::kSlerp) {
    if (read.source >= 0) dots.exact_p = sum_of_column(shared.exact, lane);
    dots.exact_squares = sum_of_column(shared.exact, kSquares);
  }
  const Coefficient coefficient = coefficient_of(read, dots);
  if (lane < kMaxReads) shared.term[lane] = {read.target, read.target < 0 ? 0.f : coefficient.f};
  const float share = warp_sum(coefficient.share);
  if (lane == 0) shared.share = share;
}

// Fills shared.term and shared.share. Two barriers.
template <typename Row>
__device__ inline void prepare_terms(const SteerParams& p, const Route<true>& route, const Row& row,
                                     ReadsShared& shared) {
  const int lane = threadIdx.x % kWarp;
  int32_t source = -1;
  bool slerp = false;
  if (lane < route.read_count) {
    const Read& read = read_at(p, route, lane);
    source = read.source;
    slerp = read.op == Op::kSlerp;
#ifdef STEERFAST_DEBUG
    if (source >= p.bank_rows || read.target >= p.bank_rows) __trap();
    if (read.partner >= route.read_count || read.key >= route.read_count) __trap();
#endif
  }
  sum_dots(p, route.read_count, source, row, shared);
  sum_exact_dots(p, __ballot_sync(kWholeWarp, slerp), source, row, shared);
  __syncthreads();
  if (threadIdx.x < kWarp) make_terms(p, route, shared);
  __syncthreads();
}

// added += sum of f * target, for one vector.
template <typename Row>
__device__ inline void add_terms(const SteerParams& p, const ReadsShared& shared, int read_count,
                                 const Row& row, const typename Row::Place& place,
                                 float (&added)[Row::kLanes]) {
  constexpr int kLanes = Row::kLanes, kAtOnce = Row::kReadsAtOnce;
#pragma unroll 1
  for (int begin = 0; begin < read_count; begin += kAtOnce) {
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const Term term = shared.term[begin + k];
      float direction[kLanes];
      widen(row.part(p, term.target, place), direction);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) added[i] += term.f * direction[i];
    }
  }
}

}  // namespace steerfast
