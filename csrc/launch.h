// The CUDA kernels as ops_cuda.cu sees them.
#pragma once

#include <cuda_runtime_api.h>

#include "steer.h"

namespace steerfast {

// Puts the work of p on a stream of the current device and returns. All pointers are the device's;
// rows and width are not 0. Throws std::runtime_error if CUDA refuses the launch.
void launch_steer(const SteerParams& p, cudaStream_t stream);

// Whether a kernel may start before the one ahead of it in the stream has ended (programmatic
// dependent launch, sm_90 and later): it then reads the norm's weight and waits. On by default;
// returns what it was. To be switched off around work that writes norm weights in the same stream.
bool select_overlap(bool on);

}  // namespace steerfast
