// The device's side of CUDA C++, as much of it as csrc uses: every CUDA word becomes plain C++, and
// whatever makes threads meet calls the block that runs them (block.h). The kernels themselves are
// compiled as they are.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "block.h"
#include "cuda_runtime_api.h"
#include "own_shared.h"
#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
// Blocks run one at a time, all threads of a block on one thread of the host: what is thread-local
// to that one is the block's. Unlike a static it can be found as a whole, to be filled with garbage
// before every block (runtime.cpp).
#define __shared__ thread_local

// Dynamic shared memory has to be declared as this, at the scope of a namespace. Of its size, just
// the bytes that a launch asks for can be accessed.
extern "C" {
extern __shared__ uint4 dynamic_shared[];
}

inline constexpr int warpSize = emulation::kWarp;
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

template <typename T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <typename T>
T max(T a, T b) {
  return a < b ? b : a;
}

inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

[[noreturn]] inline void __trap() { std::abort(); }

template <typename To, typename From>
To emulated_bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline float __uint_as_float(unsigned bits) { return emulated_bit_cast<float>(bits); }
inline float __int_as_float(int bits) { return emulated_bit_cast<float>(bits); }
inline unsigned __float_as_uint(float value) { return emulated_bit_cast<unsigned>(value); }
inline int __float_as_int(float value) { return emulated_bit_cast<int>(value); }

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }

inline void __syncthreads(emulation::Site site = emulation::Site("__syncthreads")) {
  emulation::meet_block(site);
}
inline void __syncwarp(unsigned mask = ~0u, emulation::Site site = emulation::Site("__syncwarp")) {
  emulation::meet_warp(site, mask, 0, static_cast<int>(threadIdx.x % warpSize));
}

// The value of lane `source`, or one's own where that lies outside the segment of `width` lanes.
template <typename T>
T emulated_shuffle(emulation::Site site, unsigned mask, T value, int source, int width) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  const int lane = static_cast<int>(threadIdx.x % warpSize), first = lane / width * width;
  if (source < first || source >= first + width) source = lane;
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = emulation::meet_warp(site, mask, bits, source).value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
#define EMULATED_SHUFFLE(name, Second, source)                                                   \
  template <typename T>                                                                          \
  T name(unsigned mask, T value, Second second, int width = warpSize,                            \
         emulation::Site site = emulation::Site(#name)) {                                        \
    const int lane = static_cast<int>(threadIdx.x % warpSize), other = static_cast<int>(second); \
    return emulated_shuffle(site, mask, value, source, width);                                   \
  }
EMULATED_SHUFFLE(__shfl_sync, int, lane / width * width + other % width)
EMULATED_SHUFFLE(__shfl_xor_sync, int, lane ^ other)
EMULATED_SHUFFLE(__shfl_up_sync, unsigned, lane - other)
EMULATED_SHUFFLE(__shfl_down_sync, unsigned, lane + other)
#undef EMULATED_SHUFFLE

inline unsigned __ballot_sync(unsigned mask, int vote,
                              emulation::Site site = emulation::Site("__ballot_sync")) {
  const int lane = static_cast<int>(threadIdx.x % warpSize);
  return emulation::meet_warp(site, mask, vote != 0, lane).nonzero;
}
inline bool __any_sync(unsigned mask, int vote,
                       emulation::Site site = emulation::Site("__any_sync")) {
  return __ballot_sync(mask, vote, site) != 0;
}
inline bool __all_sync(unsigned mask, int vote,
                       emulation::Site site = emulation::Site("__all_sync")) {
  return __ballot_sync(mask, vote, site) == mask;
}

// No thread goes on from here before all threads of its block have come; see block.h.
inline void cudaGridDependencySynchronize(
    emulation::Site site = emulation::Site("cudaGridDependencySynchronize")) {
  emulation::meet_dependency(site);
}
inline void cudaTriggerProgrammaticLaunchCompletion() {}

template <typename... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute, int bytes) {
  return emulation::allow_shared(reinterpret_cast<const void*>(kernel), bytes);
}
template <typename... Params>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)(Params...)) {
  const int64_t own = emulation::own_shared(reinterpret_cast<const void*>(kernel));
  attributes->sharedSizeBytes = static_cast<size_t>(own);
  return cudaSuccess;
}
template <typename... Params>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*)(Params...), int,
                                                          size_t) {
  *blocks = emulation::device.blocks_per_multiprocessor;
  return cudaSuccess;
}

// A kernel is known by the name of the function that launches it: launch_rows<the kernel>.
#define cudaLaunchKernelEx(...) emulated_launch(__PRETTY_FUNCTION__, __VA_ARGS__)
template <typename... Params, typename... Arguments>
cudaError_t emulated_launch(const char* caller, const cudaLaunchConfig_t* config,
                            void (*kernel)(Params...), Arguments&&... arguments) {
  return emulation::launch(caller, reinterpret_cast<const void*>(kernel), *config,
                           [&] { kernel(Params(arguments)...); });
}
