// Host side of a kernel over rows: how many threads and blocks, and the launch itself.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>

#include "row.cuh"

namespace steerfast {

// Block b's rows: `size` of them, one more for the first `rest` blocks. (A division costs too
// much.)
struct Chunks {
  int64_t size, rest;
  __device__ int64_t begin(int64_t block) const {
    return block * size + (block < rest ? block : rest);
  }
  __device__ int rows(int64_t block) const { return static_cast<int>(size) + (block < rest); }
};

// Threads of a block and vectors of a thread, from D and the dtype alone (see row.cuh).
struct Shape {
  int vectors, threads;
};
inline Shape shape_of(int64_t width, int lanes) {
  const int64_t all = (width + lanes - 1) / lanes;
  int64_t vectors = 1;
  while (vectors * kMaxThreads < all) vectors *= 2;
  const int64_t warps = (all + vectors * kWarp - 1) / (vectors * kWarp);
  return {static_cast<int>(vectors), static_cast<int>(warps) * kWarp};
}

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clear it: the next call of torch must not report it as its own
  throw std::runtime_error(std::string("steerfast: CUDA kernel: ") + cudaGetErrorString(error));
}

constexpr int kKnownDevices = 32;  // beyond these nothing is remembered

// Multiprocessors of a device and whether it has programmatic dependent launch.
struct DeviceFacts {
  int multiprocessors;
  bool overlap;
};
inline DeviceFacts facts_of(int device) {
  static std::atomic<int> known[kKnownDevices];  // 2 * multiprocessors + overlap, 0: not asked yet
  int facts = device < kKnownDevices ? known[device].load(std::memory_order_relaxed) : 0;
  if (facts == 0) {
    int multiprocessors = 0, major = 0;
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    facts = 2 * multiprocessors + (major >= 9);
    if (device < kKnownDevices) known[device].store(facts, std::memory_order_relaxed);
  }
  return {facts / 2, facts % 2 != 0};
}

template <auto kKernel>
int blocks_per_multiprocessor(int device, int threads) {
  static std::atomic<int> known[kKnownDevices][kMaxThreads / kWarp + 1];
  std::atomic<int>* const remembered =
      device < kKnownDevices ? &known[device][threads / kWarp] : nullptr;
  int blocks = remembered ? remembered->load(std::memory_order_relaxed) : 0;
  if (blocks == 0) {
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kKernel, threads, 0));
    blocks = std::max(blocks, 1);
    if (remembered) remembered->store(blocks, std::memory_order_relaxed);
  }
  return blocks;
}

extern std::atomic<bool> overlap_wanted;  // see select_overlap

// kKernel(params, chunks, others...) over all rows, on a stream of the current device.
template <auto kKernel, typename Params, typename... Others>
void launch_rows(int64_t rows, int threads, cudaStream_t stream, const Params& params,
                 Others... others) {
  int device = 0;
  check(cudaGetDevice(&device));
  const DeviceFacts facts = facts_of(device);
  int64_t blocks = rows;
  if (rows > facts.multiprocessors) {
    const int64_t fit =
        int64_t{facts.multiprocessors} * blocks_per_multiprocessor<kKernel>(device, threads);
    blocks = std::min(rows, fit);
  }
  cudaLaunchAttribute overlap;
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = facts.overlap && overlap_wanted.load(std::memory_order_relaxed) ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kKernel, params, Chunks{rows / blocks, rows % blocks},
                           others...));
}

}  // namespace steerfast
