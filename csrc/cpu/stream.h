// The first half of a row: its new stream and the sum of squares that the norm needs. Here is what
// all rows do, and the rows that need one sweep only; those that read or finish are in reading.h.
//
// Lambdas that store hold copies of pointers: through a reference they would be read again after
// every store.
#pragma once

#include "tile.h"

namespace steerfast::STEERFAST_ISA {

// The pointers of kRows rows that are routed alike. stream may be residual.
template <typename T, bool kHasX, int kRows>
struct Rows {
  const T* x[kRows];
  const T* residual[kRows];
  T* stream[kRows];

  // residual + x, which is h once it is rounded
  template <typename Position>
  STEERFAST_INLINE auto sum(Position at) const {
    return cells<Position::kCells>([&](auto cell) {
      const int row = Position::row(cell);
      const Lanes kept = at.read(residual[row], cell);
      if constexpr (kHasX) return kept + at.read(x[row], cell);
      return kept;
    });
  }
};

// Rounds and writes cells, and adds their squares.
template <typename T, int kRows>
struct Output {
  T* stream[kRows];
  SumOfSquares<T, kRows>* squares;

  template <typename Position, typename Values>
  STEERFAST_INLINE void put(Position at, int which, const Values& values) const {
    constexpr int kCells = Position::kCells;
    const auto rounded = cells<kCells>([&](auto cell) { return Rounded<T>(values[cell]); });
    for_cells<kCells>(
        [&](auto cell) { at.write(rounded[cell], stream[Position::row(cell)], cell); });
    for_cells<kCells>(
        [&](auto cell) { squares->add_rounded(at, which, cell, rounded[cell].lanes()); });
  }
};

template <typename T, bool kHasX, int kRows>
STEERFAST_INLINE Output<T, kRows> output_of(const Rows<T, kHasX, kRows>& rows,
                                            SumOfSquares<T, kRows>* squares) {
  Output<T, kRows> out;
  for (int row = 0; row < kRows; ++row) out.stream[row] = rows.stream[row];
  out.squares = squares;
  return out;
}

// stream = h
template <typename T, bool kHasX, int kRows>
STEERFAST_FLATTEN void write_h(const Rows<T, kHasX, kRows> rows, int64_t width, float* squares) {
  SumOfSquares<T, kRows> sums;
  const auto out = output_of(rows, &sums);
  sweep<kRows>(width, [rows, out](auto at, int which) { out.put(at, which, rows.sum(at)); });
  for (int row = 0; row < kRows; ++row) squares[row] = sums.total(row);
}

// stream = round_T(h + gain * delta): the additive form, which is worth its own sweep.
template <bool kUnitGain, typename T, bool kHasX, int kRows>
STEERFAST_FLATTEN void write_sum(const Rows<T, kHasX, kRows> rows, const float* delta,
                                 const float* gains, int64_t width, float* squares) {
  SumOfSquares<T, kRows> sums;
  const auto out = output_of(rows, &sums);
  float gain[kRows];
  for (int row = 0; row < kRows; ++row) gain[row] = gains[row];
  sweep<kRows>(width, [rows, out, delta, gain](auto at, int which) {
    constexpr int kCells = decltype(at)::kCells;
    const auto sum = rows.sum(at);
    const auto h = cells<kCells>([&](auto cell) { return round_to<T>(sum[cell]); });
    out.put(at, which, cells<kCells>([&](auto cell) {
              Lanes added = ordered<T>(at.read(delta, cell));
              // 1 * delta is delta, bit for bit
              if constexpr (!kUnitGain) added = Lanes::fill(gain[at.row(cell)]) * added;
              return h[cell] + added;
            }));
  });
  for (int row = 0; row < kRows; ++row) squares[row] = sums.total(row);
}

}  // namespace steerfast::STEERFAST_ISA
