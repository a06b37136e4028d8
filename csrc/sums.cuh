// Sums over a row in a fixed order: over one vector, over a warp, over a block.
#pragma once

#include "row.cuh"

namespace steerfast {

// Even and odd elements apart: two short chains of fused multiply-adds. (A square of a bfloat16 or
// a half is exact anyway.)
template <int kLanes>
__device__ inline float dot_of(const float (&left)[kLanes], const float (&right)[kLanes]) {
  float even = left[0] * right[0], odd = left[1] * right[1];
#pragma unroll
  for (int i = 2; i < kLanes; i += 2) {
    even = __fmaf_rn(left[i], right[i], even);
    odd = __fmaf_rn(left[i + 1], right[i + 1], odd);
  }
  return even + odd;
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

// An address in shared memory. Known as such, it costs no detour over where a cluster keeps it.
#ifdef __CUDA_ARCH__
using SharedAddress = uint32_t;
__device__ inline SharedAddress shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}
__device__ inline void store_shared(SharedAddress at, float value) {
  asm volatile("st.shared.f32 [%0], %1;" : : "r"(at), "f"(value) : "memory");
}
__device__ inline void load_shared(SharedAddress at, float* four) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(four[0]), "=f"(four[1]), "=f"(four[2]), "=f"(four[3])
               : "r"(at)
               : "memory");
}
#else  // tests/ops/emulation
using SharedAddress = uint64_t;
inline SharedAddress shared_address(const void* at) { return reinterpret_cast<uint64_t>(at); }
inline void store_shared(SharedAddress at, float value) { *reinterpret_cast<float*>(at) = value; }
inline void load_shared(SharedAddress at, float* four) {
  memcpy(four, reinterpret_cast<const float*>(at), 4 * sizeof(float));
}
#endif

// Pairs, pairs of pairs, ...
template <int kNumbers>
__device__ inline float tree_sum(float (&number)[kNumbers]) {
#pragma unroll
  for (int step = 1; step < kNumbers; step *= 2) {
#pragma unroll
    for (int i = 0; i < kNumbers; i += 2 * step) number[i] += number[i + step];
  }
  return number[0];
}

// Sums over a block of at most kWarps, of up to two numbers at once, the same bits in every thread
// and for every kWarps: what warps that are not there add is 0. One barrier a sum: a thread can be
// one sum ahead of another but not two, so two buffers in turn are enough.
template <int kWarps>
class BlockSum {
 public:
  struct alignas(4 * kWarps * sizeof(float)) Shared {
    float partial[2 * 2 * kWarps];  // turns, numbers, warps
  };
  // Its zeros are seen behind the first sum's barrier.
  __device__ explicit BlockSum(Shared& shared) : turn_(shared_address(shared.partial)) {
    const int warps = blockDim.x / kWarp, all = 4 * kWarps;
    for (int i = threadIdx.x; i < all; i += blockDim.x) {
      if (i % kWarps >= warps) shared.partial[i] = 0.f;
    }
    stay_known(turn_);
  }

  template <int kNumbers>
  __device__ void operator()(float (&number)[kNumbers]) {
    static_assert(kNumbers <= 2, "room for two");
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
    for (int k = 0; k < kNumbers; ++k) {
      number[k] = warp_sum(number[k]);
      if (lane == 0) store_shared(turn_ + (k * kWarps + warp) * sizeof(float), number[k]);
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kNumbers; ++k) {
      float of_warp[kWarps];
#pragma unroll
      for (int i = 0; i < kWarps; i += 4)
        load_shared(turn_ + (k * kWarps + i) * sizeof(float), &of_warp[i]);
      number[k] = tree_sum(of_warp);
    }
    turn_ ^= 2 * kWarps * sizeof(float);
  }

 private:
  SharedAddress turn_;  // of the half of `partial` that is next
};

}  // namespace steerfast
