// Device code of one row: who owns which elements, 16-byte loads and stores, conversions.
//
// A block of threads holds a row. Thread t owns the vectors t, t + threads, t + 2 threads, ... of
// 16 bytes of the stream each, and adds up its own in that order; the rest is a fixed tree (see
// sums.cuh). The number of threads follows from D and the dtype alone, so a row's result does not
// depend on how many rows there are, where they lie or which kernel ran.
//
// Nothing that a kernel may also write (x, residual, stream, normed) is read with __restrict__,
// __ldg or ld.global.nc: in place, stream is residual and normed is x.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "steer.h"

namespace steerfast {

constexpr int kMaxThreads = 512;
constexpr int kWarp = 32;
constexpr int kMaxWarps = kMaxThreads / kWarp;
constexpr unsigned kWholeWarp = 0xffffffffu;

template <typename T>
constexpr int kLanesOf = 16 / sizeof(T);

// Where this thread's v-th vector begins in the row.
template <int kLanes>
__device__ inline int first_of(int v) {
  return static_cast<int>(threadIdx.x + v * blockDim.x) * kLanes;
}

// kLanes neighbours of a row, as they lie in memory.
template <typename T, int kLanes>
struct Packed {
  static constexpr int kWords = kLanes * sizeof(T) / 4;
  uint32_t word[kWords];
};

// Keeps the compiler from holding a vector as float32, in twice the registers, over a barrier.
template <typename T, int kLanes>
__device__ inline void stay_packed(Packed<T, kLanes>& packed) {
#pragma unroll
  for (uint32_t& word : packed.word) asm volatile("" : "+r"(word));
}

template <int kLanes>
__device__ inline void widen(const Packed<float, kLanes>& packed, float (&wide)[kLanes]) {
#pragma unroll
  for (int i = 0; i < kLanes; ++i) wide[i] = __uint_as_float(packed.word[i]);
}
template <int kLanes>
__device__ inline void widen(const Packed<__nv_bfloat16, kLanes>& packed, float (&wide)[kLanes]) {
#pragma unroll
  for (int i = 0; i < kLanes / 2; ++i) {
    wide[2 * i] = __uint_as_float(packed.word[i] << 16);
    wide[2 * i + 1] = __uint_as_float(packed.word[i] & 0xffff0000u);
  }
}
template <int kLanes>
__device__ inline void widen(const Packed<__half, kLanes>& packed, float (&wide)[kLanes]) {
#pragma unroll
  for (int i = 0; i < kLanes / 2; ++i) {
    const uint32_t word = packed.word[i];
    wide[2 * i] = __half2float(__ushort_as_half(static_cast<uint16_t>(word)));
    wide[2 * i + 1] = __half2float(__ushort_as_half(static_cast<uint16_t>(word >> 16)));
  }
}

__device__ inline uint32_t narrow_pair(float low, float high, __nv_bfloat16) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return __bfloat16_as_ushort(pair.x) | uint32_t{__bfloat16_as_ushort(pair.y)} << 16;
}
__device__ inline uint32_t narrow_pair(float low, float high, __half) {
  const __half2 pair = __floats2half2_rn(low, high);
  return __half_as_ushort(pair.x) | uint32_t{__half_as_ushort(pair.y)} << 16;
}
// To nearest, ties to even.
template <typename T, int kLanes>
__device__ inline Packed<T, kLanes> narrow(const float (&wide)[kLanes]) {
  Packed<T, kLanes> packed;
#pragma unroll
  for (int i = 0; i < packed.kWords; ++i) {
    if constexpr (sizeof(T) == 4) {
      packed.word[i] = __float_as_uint(wide[i]);
    } else {
      packed.word[i] = narrow_pair(wide[2 * i], wide[2 * i + 1], T());
    }
  }
  return packed;
}

// x and residual are read once: kept out of L1, where the deltas of this block's rows stay.
__device__ inline uint4 load_once(const uint4* at) {
#ifdef __CUDA_ARCH__
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(__cvta_generic_to_global(at))
               : "memory");
  return v;
#else
  return *at;  // tests/ops/emulation runs this file on the host
#endif
}

// On its way to L2.
__device__ inline void prefetch(const void* at) {
#ifdef __CUDA_ARCH__
  asm volatile("prefetch.global.L2 [%0];" : : "l"(__cvta_generic_to_global(at)));
#endif
}

enum class Reuse { kNone, kSome };

// The first `count` of kLanes elements at an address, zeros behind them. `vector` says that all of
// them are there and that the address is a multiple of 16.
template <Reuse kReuse, int kLanes, typename T>
__device__ inline Packed<T, kLanes> load(const T* at, int count, bool vector) {
  Packed<T, kLanes> packed = {};
  if (count <= 0) return packed;
  if (vector) {
#pragma unroll
    for (int i = 0; i < packed.kWords / 4; ++i) {
      const uint4* source = reinterpret_cast<const uint4*>(at) + i;
      const uint4 v = kReuse == Reuse::kNone ? load_once(source) : *source;
      packed.word[4 * i] = v.x;
      packed.word[4 * i + 1] = v.y;
      packed.word[4 * i + 2] = v.z;
      packed.word[4 * i + 3] = v.w;
    }
    return packed;
  }
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    if (i >= count) continue;
    if constexpr (sizeof(T) == 4) {
      packed.word[i] = reinterpret_cast<const uint32_t*>(at)[i];
    } else {
      packed.word[i / 2] |= uint32_t{reinterpret_cast<const uint16_t*>(at)[i]} << (i % 2 * 16);
    }
  }
  return packed;
}

template <typename T, int kLanes>
__device__ inline void store(const Packed<T, kLanes>& packed, T* at, int count, bool vector) {
  if (count <= 0) return;
  if (vector) {
#pragma unroll
    for (int i = 0; i < packed.kWords / 4; ++i) {
      reinterpret_cast<uint4*>(at)[i] = make_uint4(packed.word[4 * i], packed.word[4 * i + 1],
                                                   packed.word[4 * i + 2], packed.word[4 * i + 3]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    if (i >= count) continue;
    if constexpr (sizeof(T) == 4) {
      reinterpret_cast<uint32_t*>(at)[i] = packed.word[i];
    } else {
      reinterpret_cast<uint16_t*>(at)[i] =
          static_cast<uint16_t>(packed.word[i / 2] >> (i % 2 * 16));
    }
  }
}

// Programmatic dependent launch. Without that launch attribute both do nothing.
__device__ inline void wait_for_kernel_before() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}
__device__ inline void let_kernel_behind_start() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

}  // namespace steerfast
