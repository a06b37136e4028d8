// Which record a row follows.
#pragma once

#include "row.cuh"

namespace steerfast {

// What a row of the stream does. `delta`, its constant part, is null for none.
template <bool kReads>
struct Route {
  const float* delta = nullptr;
  float gain = 0.f;
  Finish finish = Finish::kNone;
  __device__ bool active() const { return delta; }
};
// With reads there are no registers for pointers: -1 for none.
template <>
struct Route<true> {
  int32_t delta = -1, program = 0;
  int read_count = 0;
  float gain = 0.f;
  Finish finish = Finish::kNone;
  __device__ bool active() const { return delta >= 0 || read_count > 0; }
};

// Slots, bank rows and programs are not checked here, as they are on the CPU: nothing cheap could
// report them, and to leave such a row unsteered would be silently wrong. Whoever fills the route
// answers for it (steerfast/routing/route.py). -DSTEERFAST_DEBUG stops the kernel, which then fails
// at the next synchronisation.
template <bool kReads>
__device__ inline Route<kReads> route_of(const SteerParams& p, int32_t slot, float gain) {
  Route<kReads> route;
  if (slot < 0 || gain == 0.f) return route;
#ifdef STEERFAST_DEBUG
  if (slot >= p.slots) __trap();
#endif
  const Record& record = p.records[slot];
  route.finish = static_cast<Finish>(record.finish);
  route.gain = gain;
  if constexpr (!kReads) {
    if (record.delta >= 0) route.delta = p.bank + record.delta * p.width;
  } else {
    route.delta = record.delta;
    route.program = record.program;
    route.read_count = record.read_count;
  }
#ifdef STEERFAST_DEBUG
  if (record.delta >= p.bank_rows || record.read_count > kMaxReads) __trap();
  if (record.read_count > 0 && (record.program < 0 || record.program >= p.programs)) __trap();
#endif
  return route;
}
__device__ inline Route<true> route_at(const SteerParams& p, int64_t row) {
  return p.row_slot ? route_of<true>(p, p.row_slot[row], p.row_gain[row]) : Route<true>();
}

// Where element `first` of a row of the bank lies.
template <typename Row>
__device__ inline const float* bank_at(const SteerParams& p, int32_t bank_row,
                                       typename Row::Index first) {
  const auto row_bytes = static_cast<typename Row::Index>(p.width * sizeof(float));
  const char* const at = reinterpret_cast<const char*>(p.bank + first);
  return reinterpret_cast<const float*>(at + int64_t{bank_row} * row_bytes);
}

// A read of a route. (Where 32 bits are not enough to count them, the table has 200 GB.)
__device__ inline const Read& read_at(const SteerParams& p, const Route<true>& route, int place) {
  return p.reads[static_cast<uint32_t>(route.program) * kMaxReads + place];
}

}  // namespace steerfast
