// The second half of a row: RMSNorm of the stream that was just written and still lies in L1.
#pragma once

#include "tile.h"

namespace steerfast::STEERFAST_ISA {

// normed = round(weight * round_T(stream * rstd)), LlamaRMSNorm's order of rounding; without the
// inner rounding where kFloat32Order.
template <typename T, typename W, bool kFloat32Order, int kRows>
STEERFAST_FLATTEN void write_norm(const T* const* streams, const W* weight, W* const* outputs,
                                  int64_t width, const float* rstds) {
  const T* stream[kRows];
  W* normed[kRows];
  Lanes scale[kRows];
  for (int row = 0; row < kRows; ++row) {
    stream[row] = streams[row];
    normed[row] = outputs[row];
    scale[row] = canonical(Lanes::fill(rstds[row]));
  }
  sweep<kRows>(width, [stream, weight, normed, scale](auto at, int) {
    constexpr int kCells = decltype(at)::kCells;
    const auto scaled = cells<kCells>([&](auto cell) {
      const int row = at.row(cell);
      return at.read(stream[row], cell) * scale[row];
    });
    const auto unit = cells<kCells>([&](auto cell) {
      if constexpr (kFloat32Order) return scaled[cell];
      return round_to<T>(scaled[cell]);
    });
    const auto product = cells<kCells>([&](auto cell) {
      if constexpr (sizeof(W) == sizeof(T)) return at.read(weight, cell) * unit[cell];
      // float32 weight, 16-bit stream: the product stays float32
      return at.read(weight, cell) * unordered<T>(unit[cell]);
    });
    const auto rounded = cells<kCells>([&](auto cell) { return Rounded<W>(product[cell]); });
    for_cells<kCells>([&](auto cell) { at.write(rounded[cell], normed[at.row(cell)], cell); });
  });
}

}  // namespace steerfast::STEERFAST_ISA
