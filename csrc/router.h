// Which slot and gain every row of a ragged batch gets: the host's side of a route, once per
// forward pass. steerfast/routing/router.py says the same in Python, and what an itinerary is in
// steerfast/routing/itinerary.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace steerfast {

struct Itinerary {
  std::vector<int64_t> starts;   // ascending; before the first: not steered
  std::vector<int32_t> slots;    // from each start on
  std::vector<int64_t> gain_at;  // ascending; empty: gain 1
  std::vector<double> gains;     // at these positions, straight lines between, held at the ends

  int32_t slot(int64_t position) const {
    const auto next = std::upper_bound(starts.begin(), starts.end(), position);
    return next == starts.begin() ? -1 : slots[next - starts.begin() - 1];
  }

  float gain(int64_t position) const {
    if (gain_at.empty()) return 1.f;
    const size_t next =
        std::upper_bound(gain_at.begin(), gain_at.end(), position) - gain_at.begin();
    if (next == 0) return static_cast<float>(gains.front());
    if (next == gain_at.size()) return static_cast<float>(gains.back());
    const double share = static_cast<double>(position - gain_at[next - 1]) /
                         static_cast<double>(gain_at[next] - gain_at[next - 1]);
    return static_cast<float>(gains[next - 1] + (gains[next] - gains[next - 1]) * share);
  }
};

// The rows of a batch: request i brings `count[i]` tokens from position `first[i]` on.
struct Spans {
  const int64_t *seat, *first, *count;
  int64_t size;
};

// What a forward pass is given, each [capacity]; rows beyond the batch are not steered. `base` is
// the gain once more: conditions change the other one.
struct RouteRows {
  int32_t *slot, *gain, *seat, *position, *base;
  int64_t capacity;
};

class Router {
 public:
  explicit Router(int64_t seats) : itineraries_(check_count(seats)) {}

  int64_t seats() const { return static_cast<int64_t>(itineraries_.size()); }

  void set(int64_t seat, Itinerary itinerary) {
    if (itinerary.starts.size() != itinerary.slots.size() ||
        itinerary.gain_at.size() != itinerary.gains.size())
      throw std::invalid_argument(
          "an itinerary has a slot for every start, a gain for every point");
    if (!std::is_sorted(itinerary.starts.begin(), itinerary.starts.end()) ||
        !std::is_sorted(itinerary.gain_at.begin(), itinerary.gain_at.end()))
      throw std::invalid_argument("an itinerary's positions must ascend");
    at(seat) = std::move(itinerary);
  }

  // Fills all of `rows`; returns how many belong to the batch. Nothing is written on an error.
  int64_t fill(const Spans& spans, const RouteRows& rows) const {
    int64_t total = 0;
    for (int64_t i = 0; i < spans.size; i++) {
      if (spans.seat[i] >= 0) check_seat(spans.seat[i]);
      if (spans.count[i] < 0 || spans.first[i] < 0)
        throw std::invalid_argument("request " + std::to_string(i) + " of the batch has " +
                                    std::to_string(spans.count[i]) + " tokens from position " +
                                    std::to_string(spans.first[i]));
      total += spans.count[i];
    }
    if (total > rows.capacity)
      throw std::invalid_argument("the batch has " + std::to_string(total) +
                                  " rows, the route's buffer " + std::to_string(rows.capacity));
    int64_t row = 0;
    for (int64_t i = 0; i < spans.size; i++) {
      const Itinerary* itinerary = spans.seat[i] < 0 ? nullptr : &itineraries_[spans.seat[i]];
      for (int64_t j = 0; j < spans.count[i]; j++, row++) {
        const int64_t position = spans.first[i] + j;
        put(rows, row, itinerary ? itinerary->slot(position) : -1,
            itinerary ? itinerary->gain(position) : 1.f, static_cast<int32_t>(spans.seat[i]),
            static_cast<int32_t>(position));
      }
    }
    for (; row < rows.capacity; row++) put(rows, row, -1, 1.f, -1, 0);
    return total;
  }

 private:
  static size_t check_count(int64_t seats) {
    if (seats < 1) throw std::invalid_argument("a router needs at least one seat");
    return static_cast<size_t>(seats);
  }

  void check_seat(int64_t seat) const {
    if (seat < 0 || seat >= seats())
      throw std::out_of_range("seat " + std::to_string(seat) + " of a router with " +
                              std::to_string(seats()));
  }

  Itinerary& at(int64_t seat) {
    check_seat(seat);
    return itineraries_[seat];
  }

  static void put(const RouteRows& rows, int64_t row, int32_t slot, float gain, int32_t seat,
                  int32_t position) {
    rows.slot[row] = slot;
    std::memcpy(rows.gain + row, &gain, sizeof gain);
    std::memcpy(rows.base + row, &gain, sizeof gain);
    rows.seat[row] = seat;
    rows.position[row] = position;
  }

  std::vector<Itinerary> itineraries_;
};

}  // namespace steerfast
