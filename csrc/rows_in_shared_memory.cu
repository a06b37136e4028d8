// The kernel for rows too wide for registers, as wide as shared memory is: D a multiple of the
// 16-byte vector, everything aligned to 16. A thread reads and writes its own vectors there only,
// so nothing has to wait.
#include "kernels.h"
#include "launch.cuh"
#include "steer_row.cuh"

// One declaration for all kernels: of the size nothing is known here.
extern "C" {
extern __shared__ uint4 dynamic_shared[];
}

namespace steerfast {
namespace {

// A Row of work_on.
template <typename T, typename W>
class RowInSharedMemory {
 public:
  using Element = T;
  using Place = int;  // where a vector begins in the row
  static constexpr int kLanes = kLanesOf<T>, kReadsAtOnce = 16 / kLanes;

  __device__ explicit RowInSharedMemory(const SteerParams& p)
      : width_(static_cast<int>(p.width)), vectors_(vectors_of(p.width, kLanes)) {}

  __device__ void fetch(const SteerParams& p, int64_t index) {
    index_ = index;
    const T* const residual = static_cast<const T*>(p.residual) + index * p.residual_stride;
    const T* const x = p.x ? static_cast<const T*>(p.x) + index * p.x_stride : nullptr;
    stream_ = static_cast<T*>(p.stream) + index * p.stream_stride;
    normed_ = p.normed ? static_cast<W*>(p.normed) + index * p.normed_stride : nullptr;
    over_vectors([&](int first) {
      const Packed<T, kLanes> h = read(residual + first);
      put_in_shared(first, x ? packed_sum(h, read(x + first)) : h);
    });
  }

  template <typename F>
  __device__ void each(const F& f) const {
    over_vectors([&](int first) { f(first, got(first)); });
  }
  template <typename Make, typename Use>
  __device__ void replace(const Make& make, const Use& use) {
    over_vectors([&](int first) {
      const Packed<T, kLanes> made = make(first, got(first));
      put_in_shared(first, made);
      use(first, made);
    });
  }
  __device__ void fetch_weight(const SteerParams&) const {}
  template <typename F>
  __device__ void each_with_weight(const SteerParams& p, const F& f) const {
    const W* const weight = static_cast<const W*>(p.weight);
    over_vectors(
        [&](int first) { f(first, got(first), load<kLanes>(weight + first, kLanes, true)); });
  }

  __device__ bool there(int) const { return true; }
  __device__ Packed<float, kLanes> part(const SteerParams& p, int32_t bank_row, int first) const {
    return load<kLanes>(part_at(p, bank_row, first), kLanes, true);
  }
  __device__ void keep(const SteerParams&, int first, const Packed<T, kLanes>& out) const {
    store(out, stream_ + first, kLanes, true);
  }
  __device__ void put(const SteerParams&, int first, const Packed<W, kLanes>& out) const {
    store(out, normed_ + first, kLanes, true);
  }
  __device__ void empty(const SteerParams& p) const {
    T* const emptied = static_cast<T*>(p.emptied) + index_ * p.x_stride;
    over_vectors([&](int first) { store(Packed<T, kLanes>{}, emptied + first, kLanes, true); });
  }

 private:
  template <typename F>
  __device__ void over_vectors(const F& f) const {
    int first = first_of<kLanes>(vectors_);
#pragma unroll 1
    for (int v = 0; v < vectors_ && first < width_; ++v, first += kStep<kLanes>) f(first);
  }
  static __device__ Packed<T, kLanes> read(const T* at) {
    return load_once(true, at, Packed<T, kLanes>());
  }
  static __device__ Packed<T, kLanes> got(int first) {
    return load<kLanes>(reinterpret_cast<const T*>(dynamic_shared) + first, kLanes, true);
  }
  static __device__ void put_in_shared(int first, const Packed<T, kLanes>& packed) {
    store(packed, reinterpret_cast<T*>(dynamic_shared) + first, kLanes, true);
  }

  int width_, vectors_;
  int64_t index_;
  T* stream_;
  W* normed_;
};

template <typename T, typename W>
__global__ void __launch_bounds__(kMaxThreads, 2)
    rows_in_shared_memory(const __grid_constant__ SteerParams p,
                          const __grid_constant__ Chunks chunks) {
  __shared__ RowShared<true> shared;
  BlockSum<kMaxWarps> block_sum(shared.sums);
  RowInSharedMemory<T, W> row(p);
  wait_for_kernel_before();

  int64_t index = chunks.begin(blockIdx.x);
#pragma unroll 1
  for (int rest = chunks.rows(blockIdx.x); rest > 0; --rest, ++index) {
    const Route<true> route = route_at(p, index, true);
    row.fetch(p, index);
    if (rest == 1) let_kernel_behind_start();
    work_on<true, W>(p, route, row, shared, block_sum);
  }
}

// What a block may have of shared memory, the kernel's own included, without asking for more.
constexpr int kWithoutAsking = 48 << 10;

// Lets a kernel have `bytes` of dynamic shared memory, beside what it declares itself. False where
// that is more than a block can have, or the device refuses.
template <auto kKernel>
bool allow_shared_memory(int device, int64_t bytes) {
  static std::atomic<int> known[kKnownDevices];  // as much is allowed; 0: not looked at yet
  const int most = facts_of(device).shared_memory;
  if (bytes > most) return false;
  const bool remembers = device < kKnownDevices;
  if (remembers && bytes <= known[device].load(std::memory_order_relaxed)) return true;
  cudaFuncAttributes kernel;
  if (cudaFuncGetAttributes(&kernel, kKernel) != cudaSuccess) return false;
  const int own = static_cast<int>(kernel.sharedSizeBytes);
  int allowed = kWithoutAsking - own;
  if (bytes > allowed) {
    allowed = most - own;
    if (bytes > allowed ||
        cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, allowed) !=
            cudaSuccess)
      return false;
  }
  if (remembers) known[device].store(allowed, std::memory_order_relaxed);
  return true;
}

}  // namespace

bool launch_in_shared_memory(const SteerParams& p, cudaStream_t stream) {
  const int device = current_device();
  return with_types(p, [&](auto t, auto w) {
    using T = decltype(t);
    constexpr auto kKernel = rows_in_shared_memory<T, decltype(w)>;
    const int64_t bytes = p.width * static_cast<int64_t>(sizeof(T));
    if (allow_shared_memory<kKernel>(device, bytes) &&
        try_launch_rows<kKernel>(p, shape_of(p.width, kLanesOf<T>), static_cast<int>(bytes),
                                 stream) == cudaSuccess)
      return true;
    // Whoever is next needs no such memory, and reports what is wrong with more than this launch.
    cudaGetLastError();
    return false;
  });
}

}  // namespace steerfast
