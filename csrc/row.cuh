// Device code of one row: who owns which elements, 16-byte loads and stores.
//
// A block of threads holds a row, a warp a run of neighbours in it: lane l of warp w owns `vectors`
// vectors of 16 bytes of the stream, those at 32 * vectors * w + l and every 32nd from there, and
// adds up its own in that order; the rest is a fixed tree (see sums.cuh). How many vectors and
// threads follows from D and the dtype alone, so a row's result does not depend on how many rows
// there are, where they lie or which kernel ran.
//
// Nothing that a kernel may also write (x, residual, stream, normed) is read with __restrict__,
// __ldg or ld.global.nc: in place, stream is residual and normed is x.
#pragma once

#include <cstdint>

#include "packed.cuh"
#include "steer.h"

namespace steerfast {

constexpr int kMaxThreads = 512, kFewThreads = 256;
constexpr int kWarp = 32;
constexpr int kMaxWarps = kMaxThreads / kWarp;
constexpr unsigned kWholeWarp = 0xffffffffu;

// Vectors of a thread: two, where that leaves no more than 256 threads, and with four as long as
// 512 are enough. What a row costs its block, and not its elements, is then shared by many of them.
__host__ __device__ inline int vectors_of(int64_t width, int lanes) {
  const int64_t all = (width + lanes - 1) / lanes;
  int vectors = all > 2 * kFewThreads ? 4 : 2;
  while (int64_t{vectors} * kMaxThreads < all) vectors *= 2;
  return vectors;
}

// Where this thread's first vector begins in the row, and how far it is to the next.
template <int kLanes>
__device__ inline int first_of(int vectors) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  return (warp * vectors * kWarp + lane) * kLanes;
}
template <int kLanes>
constexpr int kStep = kWarp * kLanes;

// The compiler is to keep a number in its register, not to work it out anew wherever it is used.
template <typename Number>
__device__ inline void stay_known(Number& number) {
  static_assert(sizeof number == 4 || sizeof number == 8);
  if constexpr (sizeof number == 4) {
    asm volatile("" : "+r"(number));
  } else {
    asm volatile("" : "+l"(number));
  }
}

// 16 bytes at an address, or what `otherwise` holds where they are not there: without a branch.
// Of x and residual, which are read once: kept out of L1, where the deltas of this block's rows
// stay.
__device__ inline void load_once(bool there, const uint4* at, uint4& otherwise) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "{\n"
      ".reg .pred there;\n"
      "setp.ne.s32 there, %5, 0;\n"
      "@there ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n"
      "}"
      : "+r"(otherwise.x), "+r"(otherwise.y), "+r"(otherwise.z), "+r"(otherwise.w)
      : "l"(__cvta_generic_to_global(at)), "r"(static_cast<int>(there))
      : "memory");
#else
  if (there) otherwise = *at;  // tests/ops/emulation runs this file on the host
#endif
}
// 16 bytes in global memory, where `there` is true: without a branch, and in one piece.
__device__ inline void store_where(bool there, uint4* at, const uint4& v) {
#ifdef __CUDA_ARCH__
  asm volatile(
      "{\n"
      ".reg .pred there;\n"
      "setp.ne.s32 there, %5, 0;\n"
      "@there st.global.v4.u32 [%4], {%0, %1, %2, %3};\n"
      "}"
      :
      : "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "l"(__cvta_generic_to_global(at)),
        "r"(static_cast<int>(there))
      : "memory");
#else
  if (there) *at = v;
#endif
}

// On its way to L2.
__device__ inline void prefetch(const void* at) {
#ifdef __CUDA_ARCH__
  asm volatile("prefetch.global.L2 [%0];" : : "l"(__cvta_generic_to_global(at)));
#endif
}

// A vector at a multiple of 16; `otherwise` where it is not there.
template <typename T, int kLanes>
__device__ inline Packed<T, kLanes> load_once(bool there, const T* at,
                                              Packed<T, kLanes> otherwise) {
#pragma unroll
  for (int i = 0; i < otherwise.kWords; i += 4) {
    uint32_t (&word)[otherwise.kWords] = otherwise.word;
    uint4 v = {word[i], word[i + 1], word[i + 2], word[i + 3]};
    load_once(there, reinterpret_cast<const uint4*>(at) + i / 4, v);
    word[i] = v.x;
    word[i + 1] = v.y;
    word[i + 2] = v.z;
    word[i + 3] = v.w;
  }
  return otherwise;
}

// The first `count` of kLanes elements at an address, zeros behind them. `vector` says that all of
// them are there and that the address is a multiple of 16.
template <int kLanes, typename T>
__device__ inline Packed<T, kLanes> load(const T* at, int count, bool vector) {
  Packed<T, kLanes> packed = {};
  if (count <= 0) return packed;
  if (vector) {
#pragma unroll
    for (int i = 0; i < packed.kWords / 4; ++i) {
      const uint4 v = reinterpret_cast<const uint4*>(at)[i];
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
__device__ inline void store_where(bool there, const Packed<T, kLanes>& packed, T* at) {
#pragma unroll
  for (int i = 0; i < packed.kWords; i += 4) {
    const uint4 v = {packed.word[i], packed.word[i + 1], packed.word[i + 2], packed.word[i + 3]};
    store_where(there, reinterpret_cast<uint4*>(at) + i / 4, v);
  }
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
