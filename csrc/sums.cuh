// Sums over a row in a fixed order: over one vector, over a warp, over a block.
#pragma once

#include "row.cuh"

namespace steerfast {

// Pairs, pairs of pairs, ...: short chains, and more exact than one after the other.
template <int kLanes>
__device__ inline float dot_of(const float (&left)[kLanes], const float (&right)[kLanes]) {
  float part[kLanes];
#pragma unroll
  for (int i = 0; i < kLanes; ++i) part[i] = left[i] * right[i];
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
#pragma unroll
    for (int i = 0; i < kLanes; i += 2 * step) part[i] += part[i + step];
  }
  return part[0];
}
template <int kLanes>
__device__ inline float sum_of_squares(const float (&wide)[kLanes]) {
  return dot_of(wide, wide);
}

// The same bits in every lane.
template <typename Number>
__device__ inline Number warp_sum(Number number) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2)
    number += __shfl_xor_sync(kWholeWarp, number, distance);
  return number;
}

// Several sums at once, the bits of warp_sum, of which lane l learns that of number[l * kNumbers /
// 32]. It costs fewer shuffles than one sum after the other (5 for two numbers, 6 for four): what a
// lane has handed on it need not add up.
template <int kNumbers>
__device__ inline float warp_sums(const float (&number)[kNumbers]) {
  float sum[kNumbers];
#pragma unroll
  for (int i = 0; i < kNumbers; ++i) sum[i] = number[i];
  int distance = kWarp / 2;
#pragma unroll
  for (int left = kNumbers / 2; left > 0; left /= 2, distance /= 2) {
    const bool upper = threadIdx.x & distance;
#pragma unroll
    for (int i = 0; i < left; ++i) {
      const float given = upper ? sum[i] : sum[i + left];
      sum[i] = upper ? sum[i + left] : sum[i];
      sum[i] += __shfl_xor_sync(kWholeWarp, given, distance);
    }
  }
#pragma unroll
  for (; distance > 0; distance /= 2) sum[0] += __shfl_xor_sync(kWholeWarp, sum[0], distance);
  return sum[0];
}

// Sums over a block, of up to two numbers at once, the same bits in every thread. One barrier a
// sum: a thread can be one sum ahead of another but not two, so two buffers in turn are enough.
class BlockSum {
 public:
  struct Shared {
    float partial[2][2][kMaxWarps];
  };
  __device__ explicit BlockSum(Shared& shared) : shared_(shared) {}

  template <int kNumbers>
  __device__ void operator()(float (&number)[kNumbers]) {
    static_assert(kNumbers <= 2, "room for two");
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    float (&partial)[2][kMaxWarps] = shared_.partial[turn_];
    turn_ ^= 1;
#pragma unroll
    for (int k = 0; k < kNumbers; ++k) {
      number[k] = warp_sum(number[k]);
      if (lane == 0) partial[k][warp] = number[k];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kNumbers; ++k)
      number[k] = warp_sum(lane < blockDim.x / kWarp ? partial[k][lane] : 0.f);
  }

 private:
  Shared& shared_;
  int turn_ = 0;
};

}  // namespace steerfast
