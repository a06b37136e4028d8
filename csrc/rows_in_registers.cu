// rows_in_registers for tables without programs: what is constant, and the finish.
#include "kernels.h"
#include "rows_in_registers.cuh"

namespace steerfast {

bool launch_additive_in_registers(const SteerParams& p, cudaStream_t stream) {
  return launch_in_registers<false>(p, stream);
}

}  // namespace steerfast
