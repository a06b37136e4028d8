// rows_in_registers for tables with programs.
#include "kernels.h"
#include "rows_in_registers.cuh"

namespace steerfast {

bool launch_reads_in_registers(const SteerParams& p, cudaStream_t stream) {
  return launch_in_registers<true>(p, stream);
}

}  // namespace steerfast
