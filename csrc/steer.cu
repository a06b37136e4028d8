// The CUDA kernels of the additive family; what they do to a row is in steer_row.cuh.
//
//   rows_in_registers   D up to 8192, D a multiple of the 16-byte vector, everything aligned to 16
//   rows_by_rereading   all the rest: any D, any alignment, any stride; it adds up in the same
//                       order, so it gives the same bits where both could run
//
// Few rows: one block each. Many rows: as many blocks as fit on the device, each with a run of
// neighbouring rows; it keeps the norm's weight in registers and has the next row on its way while
// it works on this one. Deltas come through L1, where neighbours in one slot find them.
#include "launch.cuh"
#include "launch.h"
#include "steer_row.cuh"

namespace steerfast {
namespace {

// Blocks on a multiprocessor: as many as the registers allow without spilling on any architecture.
template <typename T, typename W>
constexpr int blocks_wanted(int vectors) {
  const int blocks = vectors == 1 ? 3 : vectors == 2 ? 2 : 1;
  return sizeof(W) > sizeof(T) && blocks > 1 ? blocks - 1 : blocks;
}

template <typename T, typename W, int kVectors>
__global__ void __launch_bounds__(kMaxThreads, blocks_wanted<T, W>(kVectors))
    rows_in_registers(const __grid_constant__ SteerParams p,
                      const __grid_constant__ Chunks chunks) {
  constexpr int kLanes = kLanesOf<T>;
  __shared__ BlockSum::Shared shared;
  BlockSum block_sum(shared);
  const int width = static_cast<int>(p.width);

  Packed<W, kLanes> weight[kVectors];
  if (p.normed) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int first = first_of<kLanes>(v);
      weight[v] =
          load<Reuse::kSome, kLanes>(static_cast<const W*>(p.weight) + first, width - first, true);
    }
  }
  wait_for_kernel_before();  // ahead of this, nothing but the weight is read and nothing is written

  int64_t row = chunks.begin(blockIdx.x);
  Incoming<T, kVectors> incoming;
  incoming.fetch(p, row);
#pragma unroll 1
  for (int rest = chunks.rows(blockIdx.x); rest > 0; --rest, ++row) {
    const Route route = route_of(p, incoming.slot, incoming.gain);
    Packed<T, kLanes> out[kVectors];
#pragma unroll
    for (int v = 0; v < kVectors; ++v)
      out[v] = p.x ? sum_of(incoming.residual[v], incoming.x[v]) : incoming.residual[v];
    if (rest > 1) {
      incoming.fetch(p, row + 1);
    } else {
      let_kernel_behind_start();
    }

    if (route.delta) {  // the same for the whole block
      const auto steer_into = [&](int v, float (&y)[kLanes]) {
        const int first = first_of<kLanes>(v);
        steered(out[v], load<Reuse::kSome, kLanes>(route.delta + first, width - first, true),
                route.gain, y);
      };
      float factor = 1.f;
      if (route.finish != Finish::kNone) {
        float squares[2] = {0.f, 0.f};
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          float h[kLanes], y[kLanes];
          widen(out[v], h);
          steer_into(v, y);
          squares[0] += sum_of_squares(h);
          squares[1] += sum_of_squares(y);
        }
        block_sum(squares);
        factor = finish_factor(squares[0], squares[1], route.finish);
#pragma unroll
        for (int v = 0; v < kVectors; ++v) stay_packed(out[v]);
      }
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        float y[kLanes];  // a second time after a finish: to keep it would cost too many registers
        steer_into(v, y);
        if (route.finish != Finish::kNone) scale(y, factor);
        out[v] = narrow<T>(y);
      }
    }

    float squares[1] = {0.f};
    T* const stream = static_cast<T*>(p.stream) + row * p.stream_stride;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int first = first_of<kLanes>(v);
      float wide[kLanes];
      widen(out[v], wide);
      squares[0] += sum_of_squares(wide);
      store(out[v], stream + first, width - first, true);
    }
    if (!p.normed) continue;
    block_sum(squares);
    const float rstd = reciprocal_rms(squares[0], p);
    W* const normed = static_cast<W*>(p.normed) + row * p.normed_stride;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int first = first_of<kLanes>(v);
      stay_packed(out[v]);
      stay_packed(weight[v]);
      store(normalised(out[v], weight[v], rstd), normed + first, width - first, true);
    }
  }
}

// Every pass reads the row again, from L2; a thread reads and writes its own elements only, so in
// place is as good as elsewhere. `vector`: all addresses allow 16-byte accesses.
template <typename T, typename W>
__global__ void __launch_bounds__(kMaxThreads)
    rows_by_rereading(const __grid_constant__ SteerParams p, const __grid_constant__ Chunks chunks,
                      bool vector) {
  constexpr int kLanes = kLanesOf<T>;
  __shared__ BlockSum::Shared shared;
  BlockSum block_sum(shared);
  wait_for_kernel_before();
  let_kernel_behind_start();

  const int64_t begin = threadIdx.x * kLanes, step = blockDim.x * kLanes;
  const auto left = [&](int64_t i) { return static_cast<int>(min(p.width - i, int64_t{kLanes})); };
  const int64_t end = chunks.begin(blockIdx.x + 1);
  for (int64_t row = chunks.begin(blockIdx.x); row < end; ++row) {
    const T* residual = static_cast<const T*>(p.residual) + row * p.residual_stride;
    const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
    T* stream = static_cast<T*>(p.stream) + row * p.stream_stride;
    W* normed = static_cast<W*>(p.normed) + row * p.normed_stride;
    const Route route = p.row_slot ? route_of(p, p.row_slot[row], p.row_gain[row])
                                   : Route{nullptr, 0.f, Finish::kNone};
    const auto h_at = [&](int64_t i) {
      const Packed<T, kLanes> h = load<Reuse::kSome, kLanes>(residual + i, left(i), vector);
      return p.x ? sum_of(h, load<Reuse::kSome, kLanes>(x + i, left(i), vector)) : h;
    };
    const auto steer_at = [&](const Packed<T, kLanes>& h, int64_t i, float (&y)[kLanes]) {
      steered(h, load<Reuse::kSome, kLanes>(route.delta + i, left(i), vector), route.gain, y);
    };

    float factor = 1.f;
    if (route.delta && route.finish != Finish::kNone) {
      float squares[2] = {0.f, 0.f};
#pragma unroll 1
      for (int64_t i = begin; i < p.width; i += step) {
        const Packed<T, kLanes> packed = h_at(i);
        float h[kLanes], y[kLanes];
        widen(packed, h);
        steer_at(packed, i, y);
        squares[0] += sum_of_squares(h);
        squares[1] += sum_of_squares(y);
      }
      block_sum(squares);
      factor = finish_factor(squares[0], squares[1], route.finish);
    }

    float squares[1] = {0.f};
#pragma unroll 1
    for (int64_t i = begin; i < p.width; i += step) {
      Packed<T, kLanes> out = h_at(i);
      float wide[kLanes];
      if (route.delta) {
        steer_at(out, i, wide);
        if (route.finish != Finish::kNone) scale(wide, factor);
        out = narrow<T>(wide);
      }
      widen(out, wide);
      squares[0] += sum_of_squares(wide);
      store(out, stream + i, left(i), vector);
    }
    if (!p.normed) continue;
    block_sum(squares);
    const float rstd = reciprocal_rms(squares[0], p);
#pragma unroll 1
    for (int64_t i = begin; i < p.width; i += step) {
      const Packed<T, kLanes> out = load<Reuse::kSome, kLanes>(stream + i, left(i), vector);
      const W* weight = static_cast<const W*>(p.weight) + i;
      const Packed<W, kLanes> gamma = load<Reuse::kSome, kLanes>(weight, left(i), vector);
      store(normalised(out, gamma, rstd), normed + i, left(i), vector);
    }
  }
}

constexpr int kWidestInRegisters = 8192;

bool aligned(const void* address, int64_t stride, int64_t size) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0 && stride * size % 16 == 0;
}

// Whether every vector of every row can be read and written with 16-byte accesses.
bool all_aligned(const SteerParams& p, int64_t size, int64_t weight_size) {
  return p.width * size % 16 == 0 && aligned(p.x, p.x_stride, size) &&
         aligned(p.residual, p.residual_stride, size) && aligned(p.stream, p.stream_stride, size) &&
         aligned(p.weight, 0, weight_size) && aligned(p.normed, p.normed_stride, weight_size) &&
         aligned(p.bank, p.width, sizeof(float));
}

template <typename T, typename W>
void launch(const SteerParams& p, cudaStream_t stream) {
  const Shape shape = shape_of(p.width, kLanesOf<T>);
  const bool vector = all_aligned(p, sizeof(T), sizeof(W));
  if (vector && p.width <= kWidestInRegisters) {
    switch (shape.vectors) {
      case 1:
        return launch_rows<rows_in_registers<T, W, 1>>(p.rows, shape.threads, stream, p);
      case 2:
        return launch_rows<rows_in_registers<T, W, 2>>(p.rows, shape.threads, stream, p);
      case 4:
        if constexpr (sizeof(T) == 4)
          return launch_rows<rows_in_registers<T, W, 4>>(p.rows, shape.threads, stream, p);
    }
  }
  launch_rows<rows_by_rereading<T, W>>(p.rows, shape.threads, stream, p, vector);
}

}  // namespace

std::atomic<bool> overlap_wanted{true};
bool select_overlap(bool on) { return overlap_wanted.exchange(on); }

void launch_steer(const SteerParams& p, cudaStream_t stream) {
  const bool wide_weight = p.weight_dtype == Dtype::kFloat32;
  switch (p.dtype) {
    case Dtype::kFloat32:
      return launch<float, float>(p, stream);
    case Dtype::kBFloat16:
      return wide_weight ? launch<__nv_bfloat16, float>(p, stream)
                         : launch<__nv_bfloat16, __nv_bfloat16>(p, stream);
    case Dtype::kFloat16:
      return wide_weight ? launch<__half, float>(p, stream) : launch<__half, __half>(p, stream);
  }
}

}  // namespace steerfast
