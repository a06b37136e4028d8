// The CPU kernel. Compiled once per instruction set (STEERFAST_ISA names it, the compiler flags
// make it so), with nothing but C headers included: an inline library function compiled here with
// AVX-512 could otherwise be the copy that the linker keeps for everybody.
//
// A row is handled by one thread in two passes over data that stays in L1 (more if it reads or
// finishes), and element i always lands in the same lane, so a row's result depends on D and dtype
// alone.
//
// In bfloat16 this is bound by arithmetic, most of it rounding, not by memory: software prefetch of
// the next row and running its first pass beside this row's second were tried and changed nothing.
#include "norm.h"
#include "reading.h"

namespace steerfast::STEERFAST_ISA {

// What is done to a row: the record of its slot, or null.
inline const Record* route(const SteerParams& p, int64_t n) {
  if (!p.row_slot || p.row_slot[n] < 0 || p.row_gain[n] == 0.f) return nullptr;
  const Record* record = p.records + p.row_slot[n];
  return record->delta >= 0 || record->read_count > 0 ? record : nullptr;
}

template <typename T, typename W, bool kHasX, int kRows>
void some_rows(const SteerParams& p, int64_t n, const Record* record) {
  Rows<T, kHasX, kRows> rows;
  float gain[kRows], squares[kRows];
  for (int row = 0; row < kRows; ++row) {
    rows.x[row] = kHasX ? static_cast<const T*>(p.x) + (n + row) * p.x_stride : nullptr;
    rows.residual[row] = static_cast<const T*>(p.residual) + (n + row) * p.residual_stride;
    rows.stream[row] = static_cast<T*>(p.stream) + (n + row) * p.stream_stride;
    gain[row] = record ? p.row_gain[n + row] : 0.f;
  }
  if (!record) {
    if (p.emptied) return;
    write_h(rows, p.width, squares);
  } else if (record->read_count > 0 || static_cast<Finish>(record->finish) != Finish::kNone) {
    write_reading(p, *record, rows, gain, squares);
  } else {
    const float* delta = p.bank + record->delta * p.width;
    bool unit = true;
    for (float of_row : gain) unit &= of_row == 1.f;
    if (unit) {
      write_sum<true>(rows, delta, gain, p.width, squares);
    } else {
      write_sum<false>(rows, delta, gain, p.width, squares);
    }
  }
  if (p.emptied) {
    for (int row = 0; row < kRows; ++row)
      std::memset(static_cast<T*>(p.emptied) + (n + row) * p.x_stride, 0, p.width * sizeof(T));
  }
  if (!p.normed) return;
  W* normed[kRows];
  float rstd[kRows];
  for (int row = 0; row < kRows; ++row) {
    normed[row] = static_cast<W*>(p.normed) + (n + row) * p.normed_stride;
    rstd[row] = 1.f / std::sqrt(squares[row] / static_cast<float>(p.width) + p.eps);
  }
  const W* weight = static_cast<const W*>(p.weight);
  if (p.fp32_norm) {
    write_norm<T, W, true, kRows>(rows.stream, weight, normed, p.width, rstd);
  } else {
    write_norm<T, W, false, kRows>(rows.stream, weight, normed, p.width, rstd);
  }
}

template <typename T, typename W, bool kHasX>
void rows(const SteerParams& p, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end;) {
    const Record* record = route(p, n);
    if (kTileCells == 2 && record && n + 1 < end && route(p, n + 1) == record) {
      some_rows<T, W, kHasX, kTileCells>(p, n, record);
      n += 2;
    } else {
      some_rows<T, W, kHasX, 1>(p, n, record);
      n += 1;
    }
  }
}

template <typename T, typename W>
void rows(const SteerParams& p, int64_t begin, int64_t end) {
  p.x ? rows<T, W, true>(p, begin, end) : rows<T, W, false>(p, begin, end);
}

// Rows [begin, end). Whatever a row names must have been checked: see check.h.
void steer_rows(const SteerParams& p, int64_t begin, int64_t end) {
  const bool wide_weight = p.weight_dtype == Dtype::kFloat32;
  switch (p.dtype) {
    case Dtype::kFloat32:
      return rows<float, float>(p, begin, end);
    case Dtype::kBFloat16:
      return wide_weight ? rows<BFloat16, float>(p, begin, end)
                         : rows<BFloat16, BFloat16>(p, begin, end);
    case Dtype::kFloat16:
      return wide_weight ? rows<Float16, float>(p, begin, end)
                         : rows<Float16, Float16>(p, begin, end);
  }
}

}  // namespace steerfast::STEERFAST_ISA
