// The kernels as steer.cu chooses between them. What each can take stands in its file: those that
// return false have launched nothing, for such a row is too wide, or the device refuses the launch.
#pragma once

#include <cuda_runtime_api.h>

#include "steer.h"

namespace steerfast {

bool launch_additive_in_registers(const SteerParams& p, cudaStream_t stream);
bool launch_reads_in_registers(const SteerParams& p, cudaStream_t stream);
bool launch_in_shared_memory(const SteerParams& p, cudaStream_t stream);
// `vector`: all addresses allow 16-byte accesses.
void launch_by_rereading(const SteerParams& p, bool vector, cudaStream_t stream);

}  // namespace steerfast
