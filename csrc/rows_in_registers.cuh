// The kernel for D up to 8192 (float32 with reads: 4096), D a multiple of the 16-byte vector,
// everything aligned to 16. Twice: without reads, so that what they need costs nothing where a
// table has no room for them, and with.
//
// Few rows: one block each. Many rows: as many blocks as fit on the device, each with a run of
// neighbouring rows; it has the next row on its way while it works on this one. Bank rows come
// through L1, where neighbours in one slot find them. The norm's weight stays in registers, but for
// rows with reads, which need these: there it is fetched for every row, from L2.
#pragma once

#include "launch.cuh"
#include "steer_row.cuh"

namespace steerfast {

// Blocks on a multiprocessor: as many as the registers allow without spilling on any architecture.
template <typename T, typename W, int kVectors, int kThreads, bool kReads>
constexpr int blocks_wanted() {
  if (kThreads > kFewThreads) return 1;
  if (kVectors > 2) return 2;
  return 3;
}

// This thread's part of the row that is yet to be worked on. Threads beyond the row keep zeros.
template <typename T, int kVectors>
class Incoming {
 public:
  static constexpr int kLanes = kLanesOf<T>;
  Packed<T, kLanes> residual[kVectors] = {}, x[kVectors] = {};

  __device__ Incoming(const SteerParams& p, int first, int64_t row)
      : left_(static_cast<int>(p.width) - first),
        residual_at_(place_of(p.residual, row * p.residual_stride + first)),
        x_at_(place_of(p.x, row * p.x_stride + first)) {
    stay_known(left_);
  }

  __device__ void fetch(const SteerParams& p) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      load_once(residual_at_ + v * kStepBytes, left_ > v * kStep<kLanes>, residual[v]);
    if (!p.x) return;
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      load_once(x_at_ + v * kStepBytes, left_ > v * kStep<kLanes>, x[v]);
  }
  __device__ void fetch_next(const SteerParams& p) {
    residual_at_ += p.residual_stride * sizeof(T);
    x_at_ += p.x_stride * sizeof(T);
    fetch(p);
  }

 private:
  static constexpr int kStepBytes = kStep<kLanes> * sizeof(T);
  static __device__ uint64_t place_of(const void* rows, int64_t element) {
    return global_address(rows) + element * sizeof(T);
  }

  int left_;
  uint64_t residual_at_, x_at_;
};

// A Row of work_on.
template <typename T, typename W, int kVectors, bool kKeepWeight>
class RowInRegisters {
 public:
  using Element = T;
  using Place = int;  // which of a thread's vectors
  static constexpr int kLanes = kLanesOf<T>;

  // Reads nothing but the weight.
  __device__ RowInRegisters(const SteerParams& p, int first, int64_t index)
      : first_(first),
        left_(static_cast<int>(p.width) - first),
        stream_at_(static_cast<T*>(p.stream) + index * p.stream_stride + first),
        normed_at_(static_cast<W*>(p.normed)) {
    stay_known(first_);
    stay_known(left_);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      bank_at_[v] = there(v) && p.bank ? p.bank + first + v * kStep<kLanes> : kZeros;
      row_bytes_[v] = there(v) ? static_cast<uint32_t>(p.width * sizeof(float)) : 0;
      stay_known(row_bytes_[v]);
    }
    if (!p.normed) return;
    normed_at_ += index * p.normed_stride + first;
    if constexpr (kKeepWeight) {
      load_weight(p);
    } else {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        if (there(v)) prefetch(static_cast<const W*>(p.weight) + first + v * kStep<kLanes>);
      }
    }
  }

  __device__ void take(const SteerParams& p, const Incoming<T, kVectors>& incoming) {
    if (p.x) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) row_[v] = packed_sum(incoming.residual[v], incoming.x[v]);
    } else {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) row_[v] = packed(incoming.residual[v]);
    }
  }
  // Results go one row further.
  __device__ void advance(const SteerParams& p) {
    stream_at_ += p.stream_stride;
    normed_at_ += p.normed_stride;
  }

  template <typename F>
  __device__ void each(const F& f) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) f(v, packed(row_[v]));
  }
  template <typename Make, typename Use>
  __device__ void replace(const Make& make, const Use& use) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) row_[v] = make(v, packed(row_[v]));
#pragma unroll
    for (int v = 0; v < kVectors; ++v) use(v, row_[v]);
  }
  __device__ void fetch_weight(const SteerParams& p) {
    if constexpr (!kKeepWeight) load_weight(p);
  }
  template <typename F>
  __device__ void each_with_weight(const F& f) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) f(v, packed(row_[v]), packed(weight_[v]));
  }

  __device__ Packed<float, kLanes> delta(const SteerParams&, int32_t bank_row, int v) const {
    return load<kLanes>(bank_row_at(bank_at_[v], bank_row, row_bytes_[v]), kLanes, true);
  }
  __device__ Packed<float, kLanes> part(const SteerParams&, int32_t bank_row, int v) const {
    const float* const at =
        bank_row >= 0 ? bank_row_at(bank_at_[v], bank_row, row_bytes_[v]) : kZeros;
    return load<kLanes>(at, kLanes, true);
  }
  __device__ void keep(int v, const Packed<T, kLanes>& out) const {
    if (there(v)) store(out, stream_at_ + v * kStep<kLanes>, kLanes, true);
  }
  __device__ void put(int v, const Packed<W, kLanes>& out) const {
    if (there(v)) store(out, normed_at_ + v * kStep<kLanes>, kLanes, true);
  }
  __device__ void empty(const SteerParams& p, int64_t index) const {
    T* const emptied = static_cast<T*>(p.emptied) + index * p.x_stride + first_;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (there(v)) store(Packed<T, kLanes>{}, emptied + v * kStep<kLanes>, kLanes, true);
    }
  }

 private:
  __device__ bool there(int v) const { return left_ > v * kStep<kLanes>; }
  __device__ void load_weight(const SteerParams& p) {
    const W* const weight = static_cast<const W*>(p.weight) + first_;
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      weight_[v] = load<kLanes>(weight + v * kStep<kLanes>, there(v) ? kLanes : 0, true);
  }

  // Keeps the compiler from holding a vector as float32, in twice the registers, over a barrier.
  template <typename U>
  static __device__ Packed<U, kLanes> packed(Packed<U, kLanes> vector) {
    stay_packed(vector);
    return vector;
  }

  int first_, left_;  // this thread's first element, and how many there are from it on
  T* stream_at_;
  W* normed_at_;
  const float* bank_at_[kVectors];
  uint32_t row_bytes_[kVectors];
  Packed<T, kLanes> row_[kVectors];
  Packed<W, kLanes> weight_[kVectors];
};

template <typename T, typename W, int kVectors, int kThreads, bool kReads>
__global__ void __launch_bounds__(kThreads, blocks_wanted<T, W, kVectors, kThreads, kReads>())
    rows_in_registers(const __grid_constant__ SteerParams p,
                      const __grid_constant__ Chunks chunks) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ RowShared<kReads, kWarps> shared;
  BlockSum<kWarps> block_sum(shared.sums);
  const ReciprocalRms reciprocal_rms(p);
  const int first = first_of<kLanesOf<T>>(kVectors);
  const int64_t begin = chunks.begin(blockIdx.x);
  RowInRegisters<T, W, kVectors, !kReads> row(p, first, begin);
  wait_for_kernel_before();  // ahead of this, nothing but the weight is read and nothing is written

  Incoming<T, kVectors> incoming(p, first, begin);
  incoming.fetch(p);
  RoutesAhead<kReads> routes;
  const int rows = chunks.rows(blockIdx.x);
#pragma unroll 1
  for (int done = 0; done < rows; ++done) {
    const int lane = done % kWarp;
    if (lane == 0) routes.fetch(p, begin + done, rows - done);
    const Route<kReads> route = routes.at(lane);
    row.take(p, incoming);
    if (done + 1 < rows) {
      incoming.fetch_next(p);
    } else {
      let_kernel_behind_start();
    }
    work_on<kReads, W>(p, begin + done, route, reciprocal_rms, row, shared, block_sum);
    row.advance(p);
  }
}

template <bool kReads>
bool launch_in_registers(const SteerParams& p, cudaStream_t stream) {
  return with_types(p, [&](auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    const Shape shape = shape_of(p.width, kLanesOf<T>);
    if (shape.vectors == 2) {
      launch_rows<rows_in_registers<T, W, 2, kFewThreads, kReads>>(p, shape, 0, stream);
      return true;
    }
    if (shape.vectors == 4 && shape.threads <= kFewThreads) {
      launch_rows<rows_in_registers<T, W, 4, kFewThreads, kReads>>(p, shape, 0, stream);
      return true;
    }
    if constexpr (sizeof(T) == 4 && !kReads) {
      if (shape.vectors == 4) {
        launch_rows<rows_in_registers<T, W, 4, kMaxThreads, kReads>>(p, shape, 0, stream);
        return true;
      }
    }
    return false;
  });
}

}  // namespace steerfast
