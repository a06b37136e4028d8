// Which of the CUDA kernels takes a call. All give the same bits where more than one could run:
//
//   rows_in_registers       the usual widths, everything aligned; one with reads, one without
//   rows_in_shared_memory   wider rows, as wide as a block's shared memory, everything aligned
//   rows_by_rereading       all the rest
#include <atomic>

#include "kernels.h"
#include "launch.h"

namespace steerfast {
namespace {

bool aligned(const void* address, int64_t stride, int64_t size) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0 && stride * size % 16 == 0;
}

// Whether every vector of every row can be read and written with 16-byte accesses.
bool all_aligned(const SteerParams& p) {
  const auto size_of = [](Dtype dtype) { return dtype == Dtype::kFloat32 ? 4 : 2; };
  const int64_t size = size_of(p.dtype), weight_size = size_of(p.weight_dtype);
  return p.width * size % 16 == 0 && aligned(p.x, p.x_stride, size) &&
         aligned(p.residual, p.residual_stride, size) && aligned(p.stream, p.stream_stride, size) &&
         aligned(p.weight, 0, weight_size) && aligned(p.normed, p.normed_stride, weight_size) &&
         aligned(p.bank, p.width, sizeof(float)) && aligned(p.records, 0, sizeof(Record));
}

}  // namespace

std::atomic<bool> overlap_wanted{true};
bool select_overlap(bool on) { return overlap_wanted.exchange(on); }

void launch_steer(const SteerParams& given, cudaStream_t stream) {
  SteerParams p = given;
  p.inverse_width = 1.f / static_cast<float>(p.width);
  const bool vector = all_aligned(p);
  if (vector) {
    const bool launched = p.programs > 0 ? launch_reads_in_registers(p, stream)
                                         : launch_additive_in_registers(p, stream);
    if (launched || launch_in_shared_memory(p, stream)) return;
  }
  launch_by_rereading(p, vector, stream);
}

}  // namespace steerfast
