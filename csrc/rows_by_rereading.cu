// The kernel for all the rest: any D, any alignment, any stride. It adds up in the order of the
// others, so it gives the same bits where they could run.
#include "kernels.h"
#include "launch.cuh"
#include "steer_row.cuh"

namespace steerfast {
namespace {

// A Row of work_on: every pass reads it again, from L2. A thread reads and writes its own elements
// only, so in place is as good as elsewhere.
template <typename T, typename W>
class RowReread {
 public:
  using Element = T;
  using Index = int64_t;
  static constexpr int kLanes = kLanesOf<T>;
  const bool vector;

  __device__ RowReread(const SteerParams& p, int64_t index, bool vector)
      : vector(vector),
        residual_(static_cast<const T*>(p.residual) + index * p.residual_stride),
        x_(p.x ? static_cast<const T*>(p.x) + index * p.x_stride : nullptr),
        stream_(static_cast<const T*>(p.stream) + index * p.stream_stride),
        weight_(static_cast<const W*>(p.weight)),
        width_(p.width) {}

  template <typename F>
  __device__ void each(const F& f) const {
    over_vectors([&](int64_t first, int left) { f(first, left, h_at(first, left)); });
  }
  template <typename Make, typename Use>
  __device__ void replace(const Make& make, const Use& use) const {
    over_vectors(
        [&](int64_t first, int left) { use(first, left, make(first, left, h_at(first, left))); });
  }
  __device__ void fetch_weight() const {}
  // After replace, whose `use` has stored the stream.
  template <typename F>
  __device__ void each_with_weight(const F& f) const {
    over_vectors([&](int64_t first, int left) {
      f(first, left, load<Reuse::kSome, kLanes>(stream_ + first, left, vector),
        load<Reuse::kSome, kLanes>(weight_ + first, left, vector));
    });
  }

 private:
  template <typename F>
  __device__ void over_vectors(const F& f) const {
#pragma unroll 1
    for (int64_t first = first_of<kLanes>(0); first < width_; first += blockDim.x * kLanes)
      f(first, static_cast<int>(min(width_ - first, int64_t{kLanes})));
  }
  __device__ Packed<T, kLanes> h_at(int64_t first, int left) const {
    const Packed<T, kLanes> h = load<Reuse::kSome, kLanes>(residual_ + first, left, vector);
    return x_ ? sum_of(h, load<Reuse::kSome, kLanes>(x_ + first, left, vector)) : h;
  }

  const T *residual_, *x_, *stream_;
  const W* weight_;
  int64_t width_;
};

template <typename T, typename W>
__global__ void __launch_bounds__(kMaxThreads)
    rows_by_rereading(const __grid_constant__ SteerParams p, const __grid_constant__ Chunks chunks,
                      bool vector) {
  __shared__ RowShared<true> shared;
  BlockSum block_sum(shared.sums);
  wait_for_kernel_before();
  let_kernel_behind_start();

  const int64_t end = chunks.begin(blockIdx.x + 1);
  for (int64_t index = chunks.begin(blockIdx.x); index < end; ++index) {
    RowReread<T, W> row(p, index, vector);
    work_on<true, W>(p, index, route_at(p, index), row, shared, block_sum);
  }
}

}  // namespace

void launch_by_rereading(const SteerParams& p, bool vector, cudaStream_t stream) {
  with_types(p, [&](auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    launch_rows<rows_by_rereading<T, W>>(p, shape_of(p.width, kLanesOf<T>), 0, stream, vector);
  });
}

}  // namespace steerfast
