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
template <typename T, typename W, bool kReads>
constexpr int blocks_wanted(int vectors) {
  if (kReads) return vectors == 1 ? 2 : 1;
  const int blocks = vectors == 1 ? 3 : vectors == 2 ? 2 : 1;
  return sizeof(W) > sizeof(T) && blocks > 1 ? blocks - 1 : blocks;
}

// This thread's part of a row that is yet to be worked on.
template <typename T, int kVectors>
struct Incoming {
  static constexpr int kLanes = kLanesOf<T>;
  Packed<T, kLanes> residual[kVectors], x[kVectors];
  int32_t slot = -1;
  float gain = 0.f;

  __device__ void fetch(const SteerParams& p, int64_t row) {
    const T* const residual_row = static_cast<const T*>(p.residual) + row * p.residual_stride;
    const T* const x_row = static_cast<const T*>(p.x) + row * p.x_stride;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int first = first_of<kLanes>(v), left = static_cast<int>(p.width) - first;
      residual[v] = load<Reuse::kNone, kLanes>(residual_row + first, left, true);
      if (p.x) x[v] = load<Reuse::kNone, kLanes>(x_row + first, left, true);
    }
    if (!p.row_slot) return;
    slot = p.row_slot[row];
    gain = p.row_gain[row];
  }
};

// A Row of work_on.
template <typename T, typename W, int kVectors, bool kKeepWeight>
class RowInRegisters {
 public:
  using Element = T;
  using Index = int;
  static constexpr int kLanes = kLanesOf<T>;
  static constexpr bool vector = true;

  // Reads nothing but the weight.
  __device__ explicit RowInRegisters(const SteerParams& p)
      : weights_(static_cast<const W*>(p.weight)), width_(static_cast<int>(p.width)) {
    if (!p.normed) return;
    if constexpr (kKeepWeight) {
      load_weight();
    } else {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        if (left_of(v) > 0) prefetch(weights_ + first_of<kLanes>(v));
      }
    }
  }

  __device__ void take(const SteerParams& p, const Incoming<T, kVectors>& incoming) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      row_[v] = p.x ? sum_of(incoming.residual[v], incoming.x[v]) : incoming.residual[v];
  }

  template <typename F>
  __device__ void each(const F& f) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) f(first_of<kLanes>(v), left_of(v), packed(row_[v]));
  }
  template <typename Make, typename Use>
  __device__ void replace(const Make& make, const Use& use) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      row_[v] = make(first_of<kLanes>(v), left_of(v), packed(row_[v]));
#pragma unroll
    for (int v = 0; v < kVectors; ++v) use(first_of<kLanes>(v), left_of(v), row_[v]);
  }
  __device__ void fetch_weight() {
    if constexpr (!kKeepWeight) load_weight();
  }
  template <typename F>
  __device__ void each_with_weight(const F& f) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      f(first_of<kLanes>(v), left_of(v), packed(row_[v]), packed(weight_[v]));
  }

 private:
  __device__ void load_weight() {
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      weight_[v] = load<Reuse::kSome, kLanes>(weights_ + first_of<kLanes>(v), left_of(v), true);
  }

  __device__ int left_of(int v) const { return width_ - first_of<kLanes>(v); }

  // Keeps the compiler from holding a vector as float32, in twice the registers, over a barrier.
  template <typename U>
  static __device__ Packed<U, kLanes> packed(Packed<U, kLanes> vector) {
    stay_packed(vector);
    return vector;
  }

  const W* weights_;
  int width_;
  Packed<T, kLanes> row_[kVectors];
  Packed<W, kLanes> weight_[kVectors];
};

template <typename T, typename W, int kVectors, bool kReads>
__global__ void __launch_bounds__(kMaxThreads, blocks_wanted<T, W, kReads>(kVectors))
    rows_in_registers(const __grid_constant__ SteerParams p,
                      const __grid_constant__ Chunks chunks) {
  __shared__ RowShared<kReads> shared;
  BlockSum block_sum(shared.sums);
  RowInRegisters<T, W, kVectors, !kReads> row(p);
  wait_for_kernel_before();  // ahead of this, nothing but the weight is read and nothing is written

  int64_t index = chunks.begin(blockIdx.x);
  Incoming<T, kVectors> incoming;
  incoming.fetch(p, index);
#pragma unroll 1
  for (int rest = chunks.rows(blockIdx.x); rest > 0; --rest, ++index) {
    const Route<kReads> route = route_of<kReads>(p, incoming.slot, incoming.gain);
    row.take(p, incoming);
    if (rest > 1) {
      incoming.fetch(p, index + 1);
    } else {
      let_kernel_behind_start();
    }
    work_on<kReads, W>(p, index, route, row, shared, block_sum);
  }
}

template <bool kReads>
bool launch_in_registers(const SteerParams& p, cudaStream_t stream) {
  return with_types(p, [&](auto t, auto w) {
    using T = decltype(t);
    using W = decltype(w);
    const Shape shape = shape_of(p.width, kLanesOf<T>);
    if (shape.vectors == 1) {
      launch_rows<rows_in_registers<T, W, 1, kReads>>(p, shape, 0, stream);
      return true;
    }
    if (shape.vectors == 2) {
      launch_rows<rows_in_registers<T, W, 2, kReads>>(p, shape, 0, stream);
      return true;
    }
    if constexpr (sizeof(T) == 4 && !kReads) {
      if (shape.vectors == 4) {
        launch_rows<rows_in_registers<T, W, 4, kReads>>(p, shape, 0, stream);
        return true;
      }
    }
    return false;
  });
}

}  // namespace steerfast
