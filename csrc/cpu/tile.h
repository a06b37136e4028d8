// How a row is walked: in blocks of kLanes elements, kTileCells of them at a time. A tile is the
// same block of two rows of one slot, which share what is loaded for it, or two blocks of one row;
// either way the processor has two independent computations to overlap. Each row's arithmetic, and
// its order, is the same in both, so a row's result does not depend on its neighbours.
#pragma once

#include "lanes.h"

namespace steerfast::STEERFAST_ISA {

#define STEERFAST_INLINE [[gnu::always_inline]] inline
// Of a function with a sweep: its lambdas and all they call become part of its loop.
#define STEERFAST_FLATTEN [[gnu::flatten]]

// One value for each cell of a tile. Built stage by stage over the cells, so that what depends on
// nothing new stands next to each other in the code. Named members: GCC 12 keeps an array of them
// on the stack.
template <int kIndex>
struct Cell {
  constexpr operator int() const { return kIndex; }
};
template <typename V, int kCells>
struct Cells;
template <typename V>
struct Cells<V, 1> {
  V first;
  V& operator[](Cell<0>) { return first; }
  const V& operator[](Cell<0>) const { return first; }
};
template <typename V>
struct Cells<V, 2> {
  V first, second;
  V& operator[](Cell<0>) { return first; }
  V& operator[](Cell<1>) { return second; }
  const V& operator[](Cell<0>) const { return first; }
  const V& operator[](Cell<1>) const { return second; }
};
template <int kCells, typename F>
STEERFAST_INLINE auto cells(F f) {
  using V = decltype(f(Cell<0>{}));
  if constexpr (kCells == 1) {
    return Cells<V, 1>{f(Cell<0>{})};
  } else {
    return Cells<V, 2>{f(Cell<0>{}), f(Cell<1>{})};
  }
}
template <int kCells, typename F>
STEERFAST_INLINE void for_cells(F f) {
  f(Cell<0>{});
  if constexpr (kCells == 2) f(Cell<1>{});
}

// A position in kRows rows: kBlocks whole blocks from element `start`.
template <int kRows, int kBlocks>
struct Whole {
  static constexpr int kCells = kRows * kBlocks;
  static constexpr int row(int cell) { return kBlocks == 1 ? cell : 0; }
  static constexpr int block(int cell) { return kBlocks == 1 ? 0 : cell; }
  int64_t start;
  template <typename T>
  STEERFAST_INLINE Lanes read(const T* data, int cell) const {
    return load(data + start + block(cell) * kLanes);
  }
  template <typename T>
  STEERFAST_INLINE void write(const Rounded<T>& value, T* data, int cell) const {
    value.store(data + start + block(cell) * kLanes);
  }
};

// The last, short block of a row goes through padded copies, so that there is one arithmetic for
// all blocks.
template <int kRows>
struct Short {
  static constexpr int kCells = kRows;
  static constexpr int row(int cell) { return cell; }
  static constexpr int block(int) { return 0; }
  int64_t start;
  int count;
  template <typename T>
  STEERFAST_INLINE Lanes read(const T* data, int) const {
    T pad[kLanes];
    std::memset(pad, 0, sizeof pad);
    std::memcpy(pad, data + start, count * sizeof(T));
    return load(pad);
  }
  template <typename T>
  STEERFAST_INLINE void write(const Rounded<T>& value, T* data, int) const {
    T pad[kLanes];
    value.store(pad);
    std::memcpy(data + start, pad, count * sizeof(T));
  }
};

// Calls body(position, first of the two accumulators of a row) over kRows rows. The second argument
// is a constant once inlined, which keeps the accumulators in registers.
template <int kRows, typename Body>
STEERFAST_INLINE void sweep(int64_t width, Body body) {
  int64_t i = 0;
  for (; i + 2 * kLanes <= width; i += 2 * kLanes) {
    if constexpr (kTileCells / kRows == 2) {
      body(Whole<kRows, 2>{i}, 0);
    } else {
      body(Whole<kRows, 1>{i}, 0);
      body(Whole<kRows, 1>{i + kLanes}, 1);
    }
  }
  if (i + kLanes <= width) {
    body(Whole<kRows, 1>{i}, 0);
    i += kLanes;
  }
  if (i < width) body(Short<kRows>{i, static_cast<int>(width - i)}, 1);
}

// Of each row; blocks alternate between two accumulators.
template <typename T, int kRows>
struct SumOfSquares {
  Lanes part[kRows][2];
  SumOfSquares() {
    for (auto& row : part) row[0] = row[1] = Lanes::fill(0.f);
  }
  template <typename Position>
  STEERFAST_INLINE void add(Position, int which, int cell, const Lanes& p) {
    Lanes& sum = part[Position::row(cell)][which + Position::block(cell)];
    sum = sum + p * p;
  }
  // p: values of T, whose squares are exact if T has 16 bits.
  template <typename Position>
  STEERFAST_INLINE void add_rounded(Position, int which, int cell, const Lanes& p) {
    Lanes& sum = part[Position::row(cell)][which + Position::block(cell)];
    sum = square_add<T>(p, sum);
  }
  float total(int row) const { return sum(part[row][0] + part[row][1]); }
};

}  // namespace steerfast::STEERFAST_ISA
