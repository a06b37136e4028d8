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
  struct Place {
    int64_t first;  // where a vector begins in the row
    int left;       // how many elements it has
  };
  static constexpr int kLanes = kLanesOf<T>, kReadsAtOnce = 16 / kLanes;

  __device__ RowReread(const SteerParams& p, int64_t index, bool vector)
      : vector_(vector),
        vectors_(vectors_of(p.width, kLanes)),
        width_(p.width),
        index_(index),
        residual_(static_cast<const T*>(p.residual) + index * p.residual_stride),
        x_(p.x ? static_cast<const T*>(p.x) + index * p.x_stride : nullptr),
        stream_(static_cast<T*>(p.stream) + index * p.stream_stride),
        normed_(p.normed ? static_cast<W*>(p.normed) + index * p.normed_stride : nullptr) {}

  template <typename F>
  __device__ void each(const F& f) const {
    over_vectors([&](const Place& place) { f(place, h_at(place)); });
  }
  template <typename Make, typename Use>
  __device__ void replace(const Make& make, const Use& use) const {
    over_vectors([&](const Place& place) { use(place, make(place, h_at(place))); });
  }
  __device__ void fetch_weight(const SteerParams&) const {}
  // After replace, which has stored the stream.
  template <typename F>
  __device__ void each_with_weight(const SteerParams& p, const F& f) const {
    const W* const weight = static_cast<const W*>(p.weight);
    over_vectors([&](const Place& place) {
      f(place, load<kLanes>(stream_ + place.first, place.left, vector_),
        load<kLanes>(weight + place.first, place.left, vector_));
    });
  }

  __device__ bool there(const Place&) const { return true; }
  __device__ Packed<float, kLanes> part(const SteerParams& p, int32_t bank_row,
                                        const Place& place) const {
    if (vector_) return load<kLanes>(part_at(p, bank_row, place.first), kLanes, true);
    if (bank_row < 0) return {};
    return load<kLanes>(p.bank + bank_row * p.width + place.first, place.left, false);
  }
  __device__ void keep(const SteerParams&, const Place& place, const Packed<T, kLanes>& out) const {
    store(out, stream_ + place.first, place.left, vector_);
  }
  __device__ void put(const SteerParams&, const Place& place, const Packed<W, kLanes>& out) const {
    store(out, normed_ + place.first, place.left, vector_);
  }
  __device__ void empty(const SteerParams& p) const {
    T* const emptied = static_cast<T*>(p.emptied) + index_ * p.x_stride;
    over_vectors([&](const Place& place) {
      store(Packed<T, kLanes>{}, emptied + place.first, place.left, vector_);
    });
  }

 private:
  template <typename F>
  __device__ void over_vectors(const F& f) const {
    int64_t first = first_of<kLanes>(vectors_);
#pragma unroll 1
    for (int v = 0; v < vectors_ && first < width_; ++v, first += kStep<kLanes>)
      f(Place{first, static_cast<int>(min(width_ - first, int64_t{kLanes}))});
  }
  __device__ Packed<T, kLanes> h_at(const Place& place) const {
    const Packed<T, kLanes> h = load<kLanes>(residual_ + place.first, place.left, vector_);
    return x_ ? packed_sum(h, load<kLanes>(x_ + place.first, place.left, vector_)) : h;
  }

  bool vector_;
  int vectors_;
  int64_t width_, index_;
  const T *residual_, *x_;
  T* stream_;
  W* normed_;
};

template <typename T, typename W>
__global__ void __launch_bounds__(kMaxThreads)
    rows_by_rereading(const __grid_constant__ SteerParams p, const __grid_constant__ Chunks chunks,
                      bool vector) {
  __shared__ RowShared<true> shared;
  BlockSum<kMaxWarps> block_sum(shared.sums);
  wait_for_kernel_before();
  let_kernel_behind_start();

  const int64_t end = chunks.begin(blockIdx.x + 1);
  for (int64_t index = chunks.begin(blockIdx.x); index < end; ++index) {
    RowReread<T, W> row(p, index, vector);
    work_on<true, W>(p, route_at(p, index, vector), row, shared, block_sum);
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
