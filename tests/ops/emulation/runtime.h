// The emulated device, and launches on it: blocks one after the other, in an order drawn at random.
#pragma once

#include <cstdint>
#include <functional>

#include "cuda_runtime_api.h"

namespace emulation {

// The device that is emulated: the driver's command line sets it.
struct Device {
  int multiprocessors = 2, blocks_per_multiprocessor = 2, major = 9;
  int shared_kib = 227;   // of a block, at most that, as the device says
  int granted_kib = 227;  // and as its launches get: what it has, unless something else took of it
};
extern Device device;

// What a launch was, for whoever wants to know.
struct Launch {
  const char* caller;  // the signature of the function that launched it
  unsigned blocks, threads;
  bool overlap;  // programmatic dependent launch
  // Bytes of shared memory of a block: declared by the kernel, asked for, and what both may be.
  int64_t own, asked, allowed;
};
struct Hooks {
  std::function<void(const Launch&)> launched = [](const Launch&) {};
  // Ahead of a dependent launch's wait: what the kernel before may still write, or still reads.
  std::function<void()> close = [] {}, open = [] {};
};
extern Hooks hooks;

cudaError_t launch(const char* caller, const void* kernel, const cudaLaunchConfig_t& config,
                   const std::function<void()>& thread);

// How much dynamic shared memory a kernel may ask for beside its own: cudaFuncSetAttribute.
cudaError_t allow_shared(const void* kernel, int64_t bytes);

}  // namespace emulation
