// Kernels with a fault each, which the emulation has to report; `faults NAME SEED` runs one of them
// and writes the sum that it computes. "none" has no fault: 64 numbers, added up over a block.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <vector>

#include "buffer.h"
#include "cuda_runtime.h"
#include "random.h"
#include "runtime.h"

extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }

namespace {

constexpr int kThreads = 64;

enum class Fault {
  kNone,
  kNoBarrier,      // shared memory is read before the other warp has written it
  kNoWarpBarrier,  // the same within a warp
  kHalfABarrier,   // one warp does not come
  kTwoBarriers,    // the warps come to different ones
  kEndedBarrier,   // a thread has ended
  kMissingLane,    // a shuffle's mask names a lane that does not come
  kForeignLane,    // a shuffle takes from a lane outside of its mask
  kTwoMasks,       // lanes of one shuffle bring different masks
  kReadTooEarly,   // ahead of the wait for the kernel before
  kWriteTooEarly,  //
  kNoWait,         // no wait at all
  kBeyondARow,     // an input is read behind its end
  kBeyondShared,   // dynamic shared memory behind what the launch asked for
  kBeyondStatic,   // shared memory behind an array
  kMisaligned,     // a vector from an address that is no multiple of its size
  kTooMuchShared,  // dynamic shared memory that just leaves no room for the kernel's own
};
constexpr const char* kNames[] = {"none",           "no_barrier",      "no_warp_barrier",
                                  "half_a_barrier", "two_barriers",    "ended_barrier",
                                  "missing_lane",   "foreign_lane",    "two_masks",
                                  "read_too_early", "write_too_early", "no_wait",
                                  "beyond_a_row",   "beyond_shared",   "beyond_static",
                                  "misaligned",     "too_much_shared"};

__global__ void sum_up(Fault fault, const float* in, float* out) {
  __shared__ float partial[kThreads / 32];
  float* const staged = reinterpret_cast<float*>(dynamic_shared);
  const unsigned thread = threadIdx.x, lane = thread % 32, warp = thread / 32;

  float early = 0.f;
  if (fault == Fault::kReadTooEarly) early = in[thread] * 0.f;
  if (fault == Fault::kWriteTooEarly) out[0] = 0.f;
  if (fault != Fault::kNoWait) cudaGridDependencySynchronize();

  float number = in[fault == Fault::kBeyondARow ? thread + 1 : thread] + early;
  if (fault == Fault::kMisaligned) number += reinterpret_cast<const float4*>(in + 1)->x;
  staged[fault == Fault::kBeyondShared ? thread + 1 : thread] = number;
  if (fault != Fault::kNoWarpBarrier) __syncwarp();
  number = staged[thread ^ 1];

  if (fault == Fault::kEndedBarrier && thread == 5) return;
  if (fault == Fault::kForeignLane) {
    if (lane < 16) number = __shfl_xor_sync(0x0000ffffu, number, 16);
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    if (fault == Fault::kMissingLane && thread == 7 && distance == 4) break;
    const unsigned mask = fault == Fault::kTwoMasks && distance == 1 && lane >= 16 ? ~1u : ~0u;
    number += __shfl_xor_sync(mask, number, distance);
  }
  if (lane == 0) partial[fault == Fault::kBeyondStatic ? warp + 1 : warp] = number;
  if (fault == Fault::kTwoBarriers && warp == 1) {
    __syncthreads();
  } else if (fault != Fault::kNoBarrier && !(fault == Fault::kHalfABarrier && warp == 1)) {
    __syncthreads();
  }
  if (thread == 0) out[0] = partial[0] + partial[1];
}

Fault fault_named(const char* name) {
  for (size_t i = 0; i < sizeof kNames / sizeof *kNames; ++i) {
    if (std::strcmp(name, kNames[i]) == 0) return static_cast<Fault>(i);
  }
  std::fprintf(stderr, "no fault is called %s\n", name);
  std::exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const Fault fault = fault_named(argv[1]);
  emulation::random_state = std::strtoull(argv[2], nullptr, 10);
  emulation::Buffer in(0, kThreads * sizeof(float), {0}), out(0, sizeof(float), {0});
  float* const numbers = reinterpret_cast<float*>(in.data());
  std::iota(numbers, numbers + kThreads, 1.f);
  emulation::hooks.close = [&] { in.close(), out.close(); };
  emulation::hooks.open = [&] { in.open(), out.open(); };

  cudaLaunchAttribute overlap;
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = fault == Fault::kTooMuchShared ? 48 << 10 : kThreads * sizeof(float);
  config.attrs = &overlap;
  config.numAttrs = 1;
  const cudaError_t error =
      cudaLaunchKernelEx(&config, sum_up, fault, numbers, reinterpret_cast<float*>(out.data()));
  if (error != cudaSuccess) {
    std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
    return 1;
  }
  std::printf("%g\n", static_cast<double>(*reinterpret_cast<float*>(out.data())));
  return 0;
}
