#include "runtime.h"

#include <link.h>
#include <sanitizer/asan_interface.h>

#include <cstring>
#include <map>
#include <vector>

#include "block.h"
#include "cuda_runtime.h"
#include "own_shared.h"
#include "random.h"

namespace {
constexpr int kSharedByDefault = 48 << 10, kSharedAtMost = 227 << 10;
}  // namespace

extern "C" {
thread_local uint4 dynamic_shared[kSharedAtMost / sizeof(uint4)];
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
  }
  return "unknown error";
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = emulation::device.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = emulation::device.major;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = emulation::device.shared_kib << 10;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

namespace emulation {

Device device;
Hooks hooks;

namespace {

std::map<const void*, int64_t> allowed;  // by kernel, where it differs from the default

// All thread-local memory of this program, which is the shared memory of every kernel in it.
int spoil(dl_phdr_info* program, size_t, void*) {
  for (int i = 0; i < program->dlpi_phnum; ++i) {
    if (program->dlpi_phdr[i].p_type == PT_TLS)
      std::memset(program->dlpi_tls_data, 0xff, program->dlpi_phdr[i].p_memsz);
  }
  return 1;  // the program comes first, its libraries are left alone
}

// With what it declares itself.
int64_t shared_allowed(const void* kernel) {
  const auto found = allowed.find(kernel);
  return found == allowed.end() ? kSharedByDefault : own_shared(kernel) + found->second;
}

// Every byte 0xff: a NaN in all floating-point types, -1 in integers.
void spoil_shared(size_t dynamic_bytes) {
  char* const dynamic = reinterpret_cast<char*>(dynamic_shared);
  ASAN_UNPOISON_MEMORY_REGION(dynamic, sizeof dynamic_shared);
  dl_iterate_phdr(spoil, nullptr);
  ASAN_POISON_MEMORY_REGION(dynamic + dynamic_bytes, sizeof dynamic_shared - dynamic_bytes);
}

}  // namespace

cudaError_t allow_shared(const void* kernel, int64_t bytes) {
  if (bytes < 0 || own_shared(kernel) + bytes > device.shared_kib << 10)
    return cudaErrorInvalidValue;
  allowed[kernel] = bytes;
  return cudaSuccess;
}

cudaError_t launch(const char* caller, const void* kernel, const cudaLaunchConfig_t& config,
                   const std::function<void()>& thread) {
  const dim3 &grid = config.gridDim, &threads = config.blockDim;
  const int64_t own = own_shared(kernel), asked = static_cast<int64_t>(config.dynamicSmemBytes);
  if (grid.y != 1 || grid.z != 1 || threads.y != 1 || threads.z != 1 || grid.x == 0 ||
      threads.x == 0 || threads.x > 1024 || own + asked > shared_allowed(kernel) ||
      own + asked > device.granted_kib << 10)
    return cudaErrorInvalidConfiguration;
  bool overlap = false;
  for (unsigned a = 0; a < config.numAttrs; ++a) {
    if (config.attrs[a].id != cudaLaunchAttributeProgrammaticStreamSerialization ||
        device.major < 9)
      return cudaErrorInvalidValue;
    overlap = config.attrs[a].val.programmaticStreamSerializationAllowed != 0;
  }
  hooks.launched({caller, grid.x, threads.x, overlap, own, asked, shared_allowed(kernel)});

  std::vector<unsigned> order(grid.x);
  for (unsigned b = 0; b < grid.x; ++b) {
    const unsigned other = draw_below(b + 1);
    order[b] = order[other];
    order[other] = b;
  }
  gridDim = grid;
  blockDim = threads;
  for (const unsigned b : order) {
    blockIdx.x = b;
    spoil_shared(config.dynamicSmemBytes);
    if (overlap) hooks.close();
    run_block(caller, static_cast<int>(threads.x), overlap, thread);
    if (overlap) hooks.open();
  }
  return cudaSuccess;
}

}  // namespace emulation
