// The kernel for D up to 8192 (float32 with reads: 4096), D a multiple of the 16-byte vector,
// everything aligned to 16. Twice: without reads, so that what they need costs nothing where a
// table has no room for them, and with.
//
// Few rows: one block each. Many rows: as many blocks as fit on the device, each with a run of
// neighbouring rows; it has the next row on its way while it works on this one. Bank rows come
// through L1, where neighbours in one slot find them. The norm's weight stays in registers where
// there is room.
#pragma once

#include "launch.cuh"
#include "steer_row.cuh"

namespace steerfast {

// Blocks on a multiprocessor: as many as the registers allow without spilling on any architecture.
template <typename T, typename W, int kVectors, int kThreads, bool kReads>
constexpr int blocks_wanted() {
  if (kThreads > kFewThreads) return 1;
  return kVectors > 2 || kReads ? 2 : 3;
}

// This thread's place in rows of x, of the residual or of a result, from one row to the next. Held,
// it moves on; where registers are short it is worked out anew.
template <typename T, bool kHold>
class RowsOf {
 public:
  __device__ RowsOf(T* rows, int64_t stride, int64_t index, int first)
      : at_(rows ? rows + index * stride + first : nullptr) {}
  __device__ void advance(int64_t stride) { at_ += stride; }
  __device__ T* at(T*, int64_t, int64_t, int) const { return at_; }

 private:
  T* at_;
};
template <typename T>
class RowsOf<T, false> {
 public:
  __device__ RowsOf(T*, int64_t, int64_t, int) {}
  __device__ void advance(int64_t) {}
  __device__ T* at(T* rows, int64_t stride, int64_t index, int first) const {
    return rows + index * stride + first;
  }
};

// This thread's part of the row that is yet to be worked on. Threads beyond the row keep zeros.
template <typename T, int kVectors, bool kHold>
class Incoming {
 public:
  static constexpr int kLanes = kLanesOf<T>;
  Packed<T, kLanes> residual[kVectors] = {}, x[kVectors] = {};

  __device__ Incoming(const SteerParams& p, int first, int64_t index)
      : residual_(static_cast<const T*>(p.residual), p.residual_stride, index, first),
        x_(static_cast<const T*>(p.x), p.x_stride, index, first) {}

  // `left` elements from this thread's first one to the row's end.
  __device__ void fetch(const SteerParams& p, int left, int64_t index) {
    const int first = static_cast<int>(p.width) - left;
    const T* const residual_at =
        residual_.at(static_cast<const T*>(p.residual), p.residual_stride, index, first);
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      residual[v] =
          load_once(left > v * kStep<kLanes>, residual_at + v * kStep<kLanes>, residual[v]);
    if (!p.x) return;
    const T* const x_at = x_.at(static_cast<const T*>(p.x), p.x_stride, index, first);
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      x[v] = load_once(left > v * kStep<kLanes>, x_at + v * kStep<kLanes>, x[v]);
  }
  __device__ void fetch_next(const SteerParams& p, int left, int64_t index) {
    residual_.advance(p.residual_stride);
    x_.advance(p.x_stride);
    fetch(p, left, index + 1);
  }

 private:
  RowsOf<const T, kHold> residual_, x_;
};

// Where registers are short the norm's weight is read for every row, from L1 or L2: ahead of the
// sum that the norm waits for, or after it.
enum class Weight { kKept, kAhead, kLate };
template <typename T, typename W, int kVectors, bool kReads>
constexpr Weight kWeightOf = sizeof(W) == sizeof(T) && !kReads ? Weight::kKept
                             : kVectors > 2                    ? Weight::kLate
                                                               : Weight::kAhead;

// A Row of work_on.
template <typename T, typename W, int kVectors, Weight kWeight, bool kHold>
class RowInRegisters {
 public:
  using Element = T;
  using Place = int;  // which of a thread's vectors
  static constexpr int kLanes = kLanesOf<T>;
  static constexpr int kReadsAtOnce = 32 / (kLanes * kVectors);

  // Reads nothing but the weight.
  __device__ RowInRegisters(const SteerParams& p, int first, int64_t index)
      : left_(static_cast<int>(p.width) - first),
        stream_(static_cast<T*>(p.stream), p.stream_stride, index, first),
        normed_(static_cast<W*>(p.normed), p.normed_stride, index, first) {
    stay_known(left_);
    if (!p.normed) return;
    if constexpr (kWeight == Weight::kKept) {
      load_weight(p);
    } else {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        if (there(v)) prefetch(static_cast<const W*>(p.weight) + first + v * kStep<kLanes>);
      }
    }
  }

  __device__ void take(const SteerParams& p, const Incoming<T, kVectors, kHold>& incoming,
                       int64_t index) {
    index_ = index;
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
    stream_.advance(p.stream_stride);
    normed_.advance(p.normed_stride);
  }

  // Elements from this thread's first one to the row's end.
  __device__ int left() const { return left_; }

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
    if constexpr (kWeight == Weight::kAhead) load_weight(p);
  }
  template <typename F>
  __device__ void each_with_weight(const SteerParams& p, const F& f) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (kWeight == Weight::kLate) {
        f(v, packed(row_[v]), weight_of(p, v));
      } else {
        f(v, packed(row_[v]), packed(weight_[v]));
      }
    }
  }

  __device__ bool there(int v) const { return left_ > v * kStep<kLanes>; }
  __device__ Packed<float, kLanes> delta(const SteerParams& p, int32_t bank_row, int v) const {
    return load<kLanes>(bank_row_at(p, bank_row) + in_bank(p, v), kLanes, true);
  }
  __device__ Packed<float, kLanes> part(const SteerParams& p, int32_t bank_row, int v) const {
    return load<kLanes>(part_at(p, bank_row, in_bank(p, v)), kLanes, true);
  }
  __device__ void keep(const SteerParams& p, int v, const Packed<T, kLanes>& out) const {
    T* const at = stream_.at(static_cast<T*>(p.stream), p.stream_stride, index_, first(p));
    store_where(there(v), out, at + v * kStep<kLanes>);
  }
  __device__ void put(const SteerParams& p, int v, const Packed<W, kLanes>& out) const {
    W* const at = normed_.at(static_cast<W*>(p.normed), p.normed_stride, index_, first(p));
    store_where(there(v), out, at + v * kStep<kLanes>);
  }
  __device__ void empty(const SteerParams& p) const {
    T* const emptied = static_cast<T*>(p.emptied) + index_ * p.x_stride + first(p);
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      store_where(there(v), Packed<T, kLanes>{}, emptied + v * kStep<kLanes>);
  }

 private:
  // Beyond the row, some place in it.
  __device__ uint32_t in_bank(const SteerParams& p, int v) const {
    return there(v) ? first(p) + v * kStep<kLanes> : 0;
  }
  __device__ int first(const SteerParams& p) const { return static_cast<int>(p.width) - left_; }
  __device__ Packed<W, kLanes> weight_of(const SteerParams& p, int v) const {
    const W* const weight = static_cast<const W*>(p.weight) + first(p);
    return load<kLanes>(weight + v * kStep<kLanes>, there(v) ? kLanes : 0, true);
  }
  __device__ void load_weight(const SteerParams& p) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) weight_[v] = weight_of(p, v);
  }

  // Keeps the compiler from holding a vector as float32, in twice the registers, over a barrier.
  template <typename U>
  static __device__ Packed<U, kLanes> packed(Packed<U, kLanes> vector) {
    stay_packed(vector);
    return vector;
  }

  int left_;
  int64_t index_;
  RowsOf<T, kHold> stream_;
  RowsOf<W, kHold> normed_;
  Packed<T, kLanes> row_[kVectors];
  Packed<W, kLanes> weight_[kWeight == Weight::kLate ? 1 : kVectors];
};

template <typename T, typename W, int kVectors, int kThreads, bool kReads>
__global__ void __launch_bounds__(kThreads, blocks_wanted<T, W, kVectors, kThreads, kReads>())
    rows_in_registers(const __grid_constant__ SteerParams p,
                      const __grid_constant__ Chunks chunks) {
  constexpr int kWarps = kThreads / kWarp;
  constexpr bool kHold = !kReads && kVectors == 2;
  __shared__ RowShared<kReads, kWarps> shared;
  BlockSum<kWarps> block_sum(shared.sums);
  const int first = first_of<kLanesOf<T>>(kVectors);
  const int64_t begin = chunks.begin(blockIdx.x);
  RowInRegisters<T, W, kVectors, kWeightOf<T, W, kVectors, kReads>, kHold> row(p, first, begin);
  wait_for_kernel_before();  // ahead of this, nothing but the weight is read and nothing is written

  Incoming<T, kVectors, kHold> incoming(p, first, begin);
  incoming.fetch(p, row.left(), begin);
  std::conditional_t<kReads && (kVectors > 2), RouteOfRow, RoutesAhead<kReads>> routes;
  const int rows = chunks.rows(blockIdx.x);
#pragma unroll 1
  for (int done = 0; done < rows; ++done) {
    if (done % kWarp == 0) routes.fetch(p, begin + done, rows - done);
    const Route<kReads> route = routes.at(p, begin + done, done % kWarp);
    row.take(p, incoming, begin + done);
    if (done + 1 < rows) {
      incoming.fetch_next(p, row.left(), begin + done);
    } else {
      let_kernel_behind_start();
    }
    work_on<kReads, W>(p, route, row, shared, block_sum);
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
