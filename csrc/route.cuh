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
    Route<kReads> route;
    if (there) route = route_of<kReads>(p, p.row_slot[row + lane], p.row_gain[row + lane], true);
    delta_ = route.delta;
    gain_ = route.gain;
    kinds_ = static_cast<int>(route.finish);
    if constexpr (kReads) {
      program_ = route.program;
      kinds_ |= route.read_count << kFinishBits;
    }
  }
  // Of a row of these: the one of that lane.
  __device__ Route<kReads> at(const SteerParams&, int64_t, int lane) const {
    Route<kReads> route;
    route.delta = __shfl_sync(kWholeWarp, delta_, lane);
    route.gain = __shfl_sync(kWholeWarp, gain_, lane);
    const int kinds = __shfl_sync(kWholeWarp, kinds_, lane);
    if constexpr (kReads) {
      route.finish = static_cast<Finish>(kinds & ((1 << kFinishBits) - 1));
      route.read_count = kinds >> kFinishBits;
      route.program = __shfl_sync(kWholeWarp, program_, lane);
    } else {
      route.finish = static_cast<Finish>(kinds);
    }
    return route;
  }

 private:
  static constexpr int kFinishBits = 2;
  int32_t delta_, program_;
  int kinds_;  // the finish, and how many reads
  float gain_;
};

// The same where there are no registers for it.
struct RouteOfRow {
  __device__ void fetch(const SteerParams&, int64_t, int) {}
  __device__ Route<true> at(const SteerParams& p, int64_t row, int) const {
    return route_at(p, row, true);
  }
};

__device__ inline const float* bank_row_at(const SteerParams& p, int32_t bank_row) {
  const auto row_bytes = static_cast<uint32_t>(p.width * sizeof(float));
  return reinterpret_cast<const float*>(reinterpret_cast<const char*>(p.bank) +
                                        uint64_t{static_cast<uint32_t>(bank_row)} * row_bytes);
}

// Where element `first` of a row of the bank lies, or as many zeros as a vector has for row -1.
// They are loaded too: a branch around each load would have every load wait for the one before.
alignas(16) __device__ const float kZeros[8] = {};
template <typename Index>
__device__ inline const float* part_at(const SteerParams& p, int32_t bank_row, Index first) {
  return bank_row >= 0 ? bank_row_at(p, bank_row) + first : kZeros;
}

// A read of a route. (Where 32 bits are not enough to count them, the table has 200 GB.)
__device__ inline const Read& read_at(const SteerParams& p, const Route<true>& route, int place) {
  return p.reads[static_cast<uint32_t>(route.program) * kMaxReads + place];
}

}  // namespace steerfast
