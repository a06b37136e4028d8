// Host side of a kernel over rows: how many threads and blocks, and the launch itself.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <mutex>
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
  const int vectors = vectors_of(width, lanes);
  const int64_t of_warp = int64_t{vectors} * lanes * kWarp;
  return {vectors, static_cast<int>((width + of_warp - 1) / of_warp) * kWarp};
}

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clear it: the next call of torch must not report it as its own
  throw std::runtime_error(std::string("steerfast: CUDA kernel: ") + cudaGetErrorString(error));
}

constexpr int kKnownDevices = 32;  // beyond these nothing is remembered

inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device));
  return device;
}

// Multiprocessors of a device, bytes of shared memory that a block can have, and whether it has
// programmatic dependent launch.
struct DeviceFacts {
  int multiprocessors = 0, shared_memory = 0;
  bool overlap = false;
};
inline DeviceFacts facts_of(int device) {
  static DeviceFacts known[kKnownDevices];
  static std::once_flag asked[kKnownDevices];
  const auto ask = [device](DeviceFacts& facts) {
    int major = 0;
    check(cudaDeviceGetAttribute(&facts.multiprocessors, cudaDevAttrMultiProcessorCount, device));
    check(cudaDeviceGetAttribute(&facts.shared_memory, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                 device));
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    facts.overlap = major >= 9;
  };
  DeviceFacts facts;
  if (device >= kKnownDevices) {
    ask(facts);
    return facts;
  }
  std::call_once(asked[device], ask, known[device]);
  return known[device];
}

// How many blocks fit on a multiprocessor, of `threads` and with `bytes` of dynamic shared memory.
template <auto kKernel>
cudaError_t count_blocks(int device, int threads, int bytes, int* blocks) {
  static std::atomic<int64_t> known[kKnownDevices][kMaxWarps + 1];  // bytes and blocks, 0: neither
  std::atomic<int64_t>* const last =
      device < kKnownDevices ? &known[device][threads / kWarp] : nullptr;
  const int64_t remembered = last ? last->load(std::memory_order_relaxed) : 0;
  if (remembered != 0 && remembered >> 32 == bytes) {
    *blocks = static_cast<int>(remembered & 0xffff);
    return cudaSuccess;
  }
  const cudaError_t error =
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kKernel, threads, bytes);
  *blocks = std::max(*blocks, 1);
  if (last && error == cudaSuccess)
    last->store(int64_t{bytes} << 32 | *blocks, std::memory_order_relaxed);
  return error;
}

// f(T(), W()) for the types of the stream and of the norm's weight.
template <typename F>
auto with_types(const SteerParams& p, const F& f) {
  const bool wide_weight = p.weight_dtype == Dtype::kFloat32;
  switch (p.dtype) {
    case Dtype::kBFloat16:
      return wide_weight ? f(__nv_bfloat16(), float()) : f(__nv_bfloat16(), __nv_bfloat16());
    case Dtype::kFloat16:
      return wide_weight ? f(__half(), float()) : f(__half(), __half());
    case Dtype::kFloat32:
      break;
  }
  return f(float(), float());
}

extern std::atomic<bool> overlap_wanted;  // see select_overlap

// kKernel(p, chunks, others...) over all rows, on a stream of the current device. `bytes` of
// dynamic shared memory. An error, with nothing launched, where the device refuses.
template <auto kKernel, typename... Others>
cudaError_t try_launch_rows(const SteerParams& p, const Shape& shape, int bytes,
                            cudaStream_t stream, Others... others) {
  const int device = current_device();
  const DeviceFacts facts = facts_of(device);
  int64_t blocks = p.rows;
  if (p.rows > facts.multiprocessors) {
    int fit = 0;
    const cudaError_t error = count_blocks<kKernel>(device, shape.threads, bytes, &fit);
    if (error != cudaSuccess) return error;
    blocks = std::min(p.rows, int64_t{facts.multiprocessors} * fit);
  }
  cudaLaunchAttribute overlap;
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = facts.overlap && overlap_wanted.load(std::memory_order_relaxed) ? 1 : 0;
  return cudaLaunchKernelEx(&config, kKernel, p, Chunks{p.rows / blocks, p.rows % blocks},
                            others...);
}
template <auto kKernel, typename... Others>
void launch_rows(const SteerParams& p, const Shape& shape, int bytes, cudaStream_t stream,
                 Others... others) {
  check(try_launch_rows<kKernel>(p, shape, bytes, stream, others...));
}

}  // namespace steerfast
