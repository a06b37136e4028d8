// Rows that look at themselves: reads, and finishes. h is stored into the stream first, which is
// the row's own memory even in place; then come the dots, several a sweep, so that h is converted
// once for all of them; the scalar stage; and a sweep that adds delta and f * targets. Bank rows
// come from L2, which bounds this, so two rows of a slot share them (tile.h).
#pragma once

#include "../lengths.h"
#include "row_dots.h"
#include "stream.h"

namespace steerfast::STEERFAST_ISA {

// A bank row (null: none) and the place in the program of the read that names it.
struct Direction {
  const float* data;
  int place;
};

// What a slot does, with indices resolved.
struct Program {
  const Read* reads;
  int count;
  const float* delta;  // or null
  Finish finish;
  int sources = 0, targets = 0, slerps = 0;
  Direction source[kMaxReads], target[kMaxReads], slerp[kMaxReads];

  Program(const SteerParams& p, const Record& record)
      : reads(p.reads + int64_t{record.program} * kMaxReads),
        count(record.read_count),
        delta(record.delta < 0 ? nullptr : p.bank + record.delta * p.width),
        finish(static_cast<Finish>(record.finish)) {
    for (int i = 0; i < count; ++i) {
      const Read& read = reads[i];
      const Direction from{read.source < 0 ? nullptr : p.bank + read.source * p.width, i};
      if (from.data) source[sources++] = from;
      if (read.op == Op::kSlerp) slerp[slerps++] = from;
      if (read.target >= 0) target[targets++] = {p.bank + read.target * p.width, i};
    }
  }
};

// The dots of kDots sources. They lie in natural order, so the one h of a block is brought into it.
template <int kDots, typename T, int kRows>
STEERFAST_FLATTEN void dot_group(const T* const* streams, const Direction* sources, int64_t width,
                                 RowDots* dots) {
  const T* h[kRows];
  for (int row = 0; row < kRows; ++row) h[row] = streams[row];
  Lanes sums[kRows][kDots];
  for (auto& row : sums)
    for (Lanes& sum : row) sum = Lanes::fill(0.f);
  sweep<kRows>(width, [&](auto at, int) {
    constexpr int kCells = decltype(at)::kCells;
    const auto wide =
        cells<kCells>([&](auto cell) { return unordered<T>(at.read(h[at.row(cell)], cell)); });
    for (int i = 0; i < kDots; ++i) {
      for_cells<kCells>([&](auto cell) {
        add_product(sums[at.row(cell)][i], wide[cell], at.read(sources[i].data, cell));
      });
    }
  });
  for (int row = 0; row < kRows; ++row)
    for (int i = 0; i < kDots; ++i) dots[row].p[sources[i].place] = sum(sums[row][i]);
}

// <h, source> and |h|^2 in float64, for slerp: 1 - (p/n)^2 cancels near its axis. Products of
// float32 are exact in float64, and the sums are lane by lane, the same for every instruction set.
template <typename T>
void exact_sums(const T* h, const float* source, int64_t width, double* dot, double* squares) {
  double dots[kLanes] = {}, norms[kLanes] = {};
  sweep<1>(width, [&](auto at, int) {
    for_cells<decltype(at)::kCells>([&](auto cell) {
      float p[kLanes], q[kLanes];
      unordered<T>(at.read(h, cell)).spill(p);
      (source ? at.read(source, cell) : Lanes::fill(0.f)).spill(q);
      for (int i = 0; i < kLanes; ++i) dots[i] += double{p[i]} * double{q[i]};
      for (int i = 0; i < kLanes; ++i) norms[i] += double{p[i]} * double{p[i]};
    });
  });
  for (int i = 1; i < kLanes; ++i) {
    dots[0] += dots[i];
    norms[0] += norms[i];
  }
  *dot = dots[0];
  *squares = norms[0];
}

template <typename T, int kRows>
void read_dots(const Program& program, const T* const* h, int64_t width, RowDots* dots) {
  int i = 0;
  for (; i + kDotsAtOnce <= program.sources; i += kDotsAtOnce)
    dot_group<kDotsAtOnce, T, kRows>(h, program.source + i, width, dots);
  switch (program.sources - i) {
    case 3:
      dot_group<3, T, kRows>(h, program.source + i, width, dots);
      break;
    case 2:
      dot_group<2, T, kRows>(h, program.source + i, width, dots);
      break;
    case 1:
      dot_group<1, T, kRows>(h, program.source + i, width, dots);
      break;
  }
  for (int row = 0; row < kRows; ++row) {
    for (int k = 0; k < program.slerps; ++k) {
      const auto [source, place] = program.slerp[k];
      exact_sums(h[row], source, width, &dots[row].exact_p[place], &dots[row].exact_squares);
    }
  }
}

// h + gain * (delta + sum of f * target + share * h), of rows whose h lies in the stream.
template <typename T, int kRows>
struct Steered {
  const Program& program;
  T* stream[kRows];
  float gain[kRows], share[kRows], f[kMaxReads][kRows];
  bool shares[kRows];

  template <typename Position>
  STEERFAST_INLINE auto at(Position position) const {
    constexpr int kCells = Position::kCells;
    auto sum = cells<kCells>([&](auto cell) {
      return program.delta ? position.read(program.delta, cell) : Lanes::fill(0.f);
    });
    for (int i = 0; i < program.targets; ++i) {
      for_cells<kCells>([&](auto cell) {
        const Lanes factor = Lanes::fill(f[i][Position::row(cell)]);
        add_product(sum[cell], factor, position.read(program.target[i].data, cell));
      });
    }
    return cells<kCells>([&](auto cell) {
      const int row = Position::row(cell);
      const Lanes h = position.read(stream[row], cell);
      Lanes added = ordered<T>(sum[cell]);
      if (shares[row]) added = added + Lanes::fill(share[row]) * h;
      return h + Lanes::fill(gain[row]) * added;
    });
  }
};

// Of a row in the stream, by the sum of its squares.
template <typename T>
STEERFAST_FLATTEN inline Length length_of(const T* stream, int64_t width, float squares) {
  const float lift = lift_for(squares);
  if (lift == 1.f) return {std::sqrt(squares), lift};
  SumOfSquares<T, 1> lifted;
  sweep<1>(width, [&](auto at, int which) {
    for_cells<at.kCells>(
        [&](auto cell) { lifted.add(at, which, cell, at.read(stream, cell) * Lanes::fill(lift)); });
  });
  return {std::sqrt(lifted.total(0)), lift};
}

// write_steered where some row's length, before or after, is not for float32's squares. A row
// beside it gets the bits that it has alone.
template <typename T, int kRows>
[[gnu::noinline]] STEERFAST_FLATTEN void write_far(const Steered<T, kRows>& steered, int64_t width,
                                                   const Length* before, const float* lifts,
                                                   float* squares) {
  SumOfSquares<T, kRows> after, sums;
  sweep<kRows>(width, [&](auto at, int which) {
    const auto y = steered.at(at);
    for_cells<at.kCells>(
        [&](auto cell) { after.add(at, which, cell, y[cell] * Lanes::fill(lifts[at.row(cell)])); });
  });
  Lanes once[kRows], again[kRows];
  Output<T, kRows> out;
  for (int row = 0; row < kRows; ++row) {
    const Length length = {std::sqrt(after.total(row)), lifts[row]};
    const auto [factor, twice] = finish_factor(steered.program.finish, before[row], length);
    once[row] = Lanes::fill(factor);
    again[row] = Lanes::fill(twice ? factor : 1.f);
    out.stream[row] = steered.stream[row];
  }
  out.squares = &sums;
  sweep<kRows>(width, [&](auto at, int which) {
    const auto y = steered.at(at);
    out.put(at, which, cells<at.kCells>([&](auto cell) {
              return y[cell] * once[at.row(cell)] * again[at.row(cell)];
            }));
  });
  for (int row = 0; row < kRows; ++row) squares[row] = sums.total(row);
}

// stream = round_T(finish(h + gain * contribution)). before: |h|. squares: of the stream.
template <typename T, int kRows>
STEERFAST_FLATTEN void write_steered(const Steered<T, kRows>& steered, int64_t width,
                                     const Length* before, float* squares) {
  Lanes factor[kRows];
  const Finish finish = steered.program.finish;
  if (finish != Finish::kNone) {
    SumOfSquares<T, kRows> after;
    sweep<kRows>(width, [&](auto at, int which) {
      const auto y = steered.at(at);
      for_cells<at.kCells>([&](auto cell) { after.add(at, which, cell, y[cell]); });
    });
    float lifts[kRows];
    bool far = false;
    for (int row = 0; row < kRows; ++row) {
      const Length length = {std::sqrt(after.total(row)), 1.f};
      factor[row] = Lanes::fill(finish_factor(finish, before[row], length).factor);
      lifts[row] = lift_for(after.total(row));
      far |= lifts[row] != 1.f || before[row].lift != 1.f;
    }
    if (far) return write_far(steered, width, before, lifts, squares);
  }
  SumOfSquares<T, kRows> sums;
  Output<T, kRows> out;
  for (int row = 0; row < kRows; ++row) out.stream[row] = steered.stream[row];
  out.squares = &sums;
  sweep<kRows>(width, [&](auto at, int which) {
    const auto y = steered.at(at);
    out.put(at, which, cells<at.kCells>([&](auto cell) {
              return finish == Finish::kNone ? y[cell] : y[cell] * factor[at.row(cell)];
            }));
  });
  for (int row = 0; row < kRows; ++row) squares[row] = sums.total(row);
}

template <typename T, bool kHasX, int kRows>
void write_reading(const SteerParams& p, const Record& record, const Rows<T, kHasX, kRows>& rows,
                   const float* gains, float* squares) {
  write_h(rows, p.width, squares);
  const Program program(p, record);
  RowDots dots[kRows] = {};
  read_dots<T, kRows>(program, rows.stream, p.width, dots);
  Steered<T, kRows> steered{program};
  Length before[kRows];
  for (int row = 0; row < kRows; ++row) {
    float f[kMaxReads];
    before[row] = length_of(rows.stream[row], p.width, squares[row]);
    dots[row].norm = before[row].root / before[row].lift;
    coefficients(program.reads, program.count, dots[row], f, &steered.share[row]);
    for (int i = 0; i < program.targets; ++i) steered.f[i][row] = f[program.target[i].place];
    steered.shares[row] = steered.share[row] != 0.f;
    steered.stream[row] = rows.stream[row];
    steered.gain[row] = gains[row];
  }
  write_steered(steered, p.width, before, squares);
}

}  // namespace steerfast::STEERFAST_ISA
