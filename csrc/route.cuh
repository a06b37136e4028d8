// Which record a row follows.
#pragma once

#include "row.cuh"

namespace steerfast {

// What a row of the stream does. delta, its constant part, is a row of the bank or -1.
template <bool kReads>
struct Route {
  int32_t delta = -1;
  float gain = 0.f;
  Finish finish = Finish::kNone;
  __device__ bool active() const { return delta >= 0; }
};
template <>
struct Route<true> {
  int32_t delta = -1, program = 0;
  int read_count = 0;
  float gain = 0.f;
  Finish finish = Finish::kNone;
  __device__ bool active() const { return delta >= 0 || read_count > 0; }
};

// `vector`: records are at multiples of 16 bytes, so that one is one load.
__device__ inline Record record_at(const SteerParams& p, int32_t slot, bool vector) {
  const Record* const at = p.records + slot;
  if (!vector) return *at;
  const int4 whole = *reinterpret_cast<const int4*>(at);
  return {whole.x, whole.y, whole.z, whole.w};
}

// Slots, bank rows and programs are not checked here, as they are on the CPU: nothing cheap could
// report them, and to leave such a row unsteered would be silently wrong. Whoever fills the route
// answers for it (steerfast/routing/route.py). -DSTEERFAST_DEBUG stops the kernel, which then fails
// at the next synchronisation.
template <bool kReads>
__device__ inline Route<kReads> route_of(const SteerParams& p, int32_t slot, float gain,
                                         bool vector) {
  Route<kReads> route;
  if (slot < 0 || gain == 0.f) return route;
#ifdef STEERFAST_DEBUG
  if (slot >= p.slots) __trap();
#endif
  const Record record = record_at(p, slot, vector);
  route.delta = record.delta;
  route.finish = static_cast<Finish>(record.finish);
  route.gain = gain;
  if constexpr (kReads) {
    route.program = record.program;
    route.read_count = record.read_count;
  }
#ifdef STEERFAST_DEBUG
  if (record.delta >= p.bank_rows || record.read_count > kMaxReads) __trap();
  if (record.read_count > 0 && (record.program < 0 || record.program >= p.programs)) __trap();
#endif
  return route;
}
__device__ inline Route<true> route_at(const SteerParams& p, int64_t row, bool vector) {
  return p.row_slot ? route_of<true>(p, p.row_slot[row], p.row_gain[row], vector) : Route<true>();
}

// The routes of a run of rows, 32 of them at a time: lane l has that of row l. So a row finds its
// own without waiting for memory.
template <bool kReads>
class RoutesAhead {
 public:
  // Of the first `count` rows from `row` on, of at most 32.
  __device__ void fetch(const SteerParams& p, int64_t row, int count) {
    const int lane = threadIdx.x % kWarp;
    const bool there = p.row_slot && lane < count;
    of_lane_ = Route<kReads>();
    if (there) of_lane_ = route_of<kReads>(p, p.row_slot[row + lane], p.row_gain[row + lane], true);
  }
  __device__ Route<kReads> at(int lane) const {
    Route<kReads> route;
    route.delta = __shfl_sync(kWholeWarp, of_lane_.delta, lane);
    route.gain = __shfl_sync(kWholeWarp, of_lane_.gain, lane);
    route.finish =
        static_cast<Finish>(__shfl_sync(kWholeWarp, static_cast<int>(of_lane_.finish), lane));
    if constexpr (kReads) {
      route.program = __shfl_sync(kWholeWarp, of_lane_.program, lane);
      route.read_count = __shfl_sync(kWholeWarp, of_lane_.read_count, lane);
    }
    return route;
  }

 private:
  Route<kReads> of_lane_;
};

// Zeros of the bank, for what is not there. They are loaded too: a branch around each load would
// have every load wait for the one before.
alignas(16) __device__ const float kZeros[8] = {};

// A place in a bank row, from where it is in the first.
__device__ inline const float* bank_row_at(const float* in_first, int32_t bank_row,
                                           uint32_t row_bytes) {
  return reinterpret_cast<const float*>(reinterpret_cast<const char*>(in_first) +
                                        uint64_t{static_cast<uint32_t>(bank_row)} * row_bytes);
}
__device__ inline const float* bank_vector(const SteerParams& p, int32_t bank_row, int64_t first) {
  const auto row_bytes = static_cast<uint32_t>(p.width * sizeof(float));
  return bank_row >= 0 ? bank_row_at(p.bank + first, bank_row, row_bytes) : kZeros;
}

// A read of a route. (Where 32 bits are not enough to count them, the table has 200 GB.)
__device__ inline const Read& read_at(const SteerParams& p, const Route<true>& route, int place) {
  return p.reads[static_cast<uint32_t>(route.program) * kMaxReads + place];
}

}  // namespace steerfast
