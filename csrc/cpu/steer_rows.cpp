// The CPU kernel. Compiled once per instruction set (STEERFAST_ISA names it, the compiler flags
// make it so), with nothing but C headers included: an inline library function compiled here with
// AVX-512 could otherwise be the copy that the linker keeps for everybody.
//
// A row is handled by one thread in two passes over data that stays in L1 (three with a finish),
// and element i always lands in the same lane, so a row's result depends on D and dtype alone.
//
// In bfloat16 this is bound by arithmetic, most of it rounding, not by memory: software prefetch of
// the next row and running its first pass beside this row's second were tried and changed nothing.
#include "../steer.h"
#include "lanes.h"

namespace steerfast::STEERFAST_ISA {

template <typename T>
struct SumOfSquares {
  Lanes part[2] = {Lanes::fill(0.f), Lanes::fill(0.f)};
  void add(int which, const Lanes& p) { part[which] = part[which] + p * p; }
  void add(int which, const Rounded<T>& p) { part[which] = square_add<T>(p.lanes(), part[which]); }
  float total() const { return sum(part[0] + part[1]); }
};

// One block of kLanes elements at an offset. The last, short block of a row goes through padded
// copies, so that there is one arithmetic for all blocks.
struct Whole {
  int64_t at;
  template <typename T>
  Lanes read(const T* row) const {
    return load(row + at);
  }
  template <typename T>
  void write(const Rounded<T>& block, T* row) const {
    block.store(row + at);
  }
};
struct Short {
  int64_t at;
  int count;
  template <typename T>
  Lanes read(const T* row) const {
    T pad[kLanes];
    std::memset(pad, 0, sizeof pad);
    std::memcpy(pad, row + at, count * sizeof(T));
    return load(pad);
  }
  template <typename T>
  void write(const Rounded<T>& block, T* row) const {
    T pad[kLanes];
    block.store(pad);
    std::memcpy(row + at, pad, count * sizeof(T));
  }
};

// Calls body(block, which of two accumulators) over a row. The second argument is a constant once
// inlined, which keeps the accumulators in registers.
template <typename Body>
[[gnu::always_inline]] inline void sweep(int64_t width, Body body) {
  int64_t i = 0;
  for (; i + 2 * kLanes <= width; i += 2 * kLanes) {
    body(Whole{i}, 0);
    body(Whole{i + kLanes}, 1);
  }
  if (i + kLanes <= width) {
    body(Whole{i}, 0);
    i += kLanes;
  }
  if (i < width) body(Short{i, static_cast<int>(width - i)}, 1);
}

template <typename T, bool kHasX>
struct Row {
  const T* x;
  const T* residual;
  const float* delta;  // null: not steered
  float gain;

  template <typename Block>
  Rounded<T> h(Block block) const {
    if constexpr (kHasX) return Rounded<T>(block.read(residual) + block.read(x));
    return Rounded<T>(block.read(residual));
  }
  template <bool kUnitGain, typename Block>
  Lanes steered(Block block) const {
    Lanes added = ordered<T>(block.read(delta));
    if constexpr (!kUnitGain) added = Lanes::fill(gain) * added;  // 1 * delta is delta, bit for bit
    return h(block).lanes() + added;
  }
};

// |h|/|y|, at most 1 for shrink, 1 where |y| = 0.
template <typename T, bool kHasX>
inline float finish_factor(const Row<T, kHasX>& row, int64_t width, Finish finish) {
  SumOfSquares<T> before, after;
  sweep(width, [&](auto block, int which) {
    before.add(which, row.h(block));
    after.add(which, row.template steered<false>(block));
  });
  const float norm = std::sqrt(after.total());
  if (!(norm > 0.f)) return 1.f;
  const float factor = std::sqrt(before.total()) / norm;
  return finish == Finish::kShrink && factor > 1.f ? 1.f : factor;
}

// Writes the new stream; returns the sum of squares of its rounded values. Lambdas hold copies of
// the row: through a reference its pointers would be read again after every store.
template <typename T, bool kHasX>
inline float write_stream(const Row<T, kHasX> row, T* stream, int64_t width, Finish finish) {
  SumOfSquares<T> squares;
  auto put = [stream, &squares](auto block, int which, const Rounded<T>& out) {
    block.write(out, stream);
    squares.add(which, out);
  };
  if (!row.delta) {
    sweep(width, [row, &put](auto block, int which) { put(block, which, row.h(block)); });
  } else if (finish != Finish::kNone) {
    const Lanes factor = Lanes::fill(finish_factor(row, width, finish));
    sweep(width, [row, factor, &put](auto block, int which) {
      put(block, which, Rounded<T>(row.template steered<false>(block) * factor));
    });
  } else if (row.gain == 1.f) {
    sweep(width, [row, &put](auto block, int which) {
      put(block, which, Rounded<T>(row.template steered<true>(block)));
    });
  } else {
    sweep(width, [row, &put](auto block, int which) {
      put(block, which, Rounded<T>(row.template steered<false>(block)));
    });
  }
  return squares.total();
}

// normed = round(weight * round_T(stream * rstd)), LlamaRMSNorm's order of rounding.
template <typename T, typename W>
inline void write_norm(const T* stream, const W* weight, W* normed, int64_t width, float rstd) {
  const Lanes scale = canonical(Lanes::fill(rstd));
  sweep(width, [&](auto block, int) {
    const Lanes unit = Rounded<T>(block.read(stream) * scale).lanes();
    if constexpr (sizeof(W) == sizeof(T)) {
      block.write(Rounded<W>(block.read(weight) * unit), normed);
    } else {  // float32 weight, 16-bit stream: the product stays float32
      block.write(Rounded<float>(block.read(weight) * unordered<T>(unit)), normed);
    }
  });
}

template <typename T, typename W, bool kHasX>
bool rows(const SteerParams& p, int64_t begin, int64_t end) {
  bool valid = true;
  for (int64_t n = begin; n < end; ++n) {
    Row<T, kHasX> row;
    row.x = kHasX ? static_cast<const T*>(p.x) + n * p.x_stride : nullptr;
    row.residual = static_cast<const T*>(p.residual) + n * p.residual_stride;
    row.delta = nullptr;
    row.gain = 0.f;
    Finish finish = Finish::kNone;
    const int64_t slot = p.row_slot ? p.row_slot[n] : -1;
    if (slot >= p.slots) {
      valid = false;
    } else if (slot >= 0 && p.row_gain[n] != 0.f) {
      const int32_t* record = p.records + slot * kRecordWidth;
      if (record[kRecordDelta] >= p.bank_rows) {
        valid = false;
      } else if (record[kRecordDelta] >= 0) {
        row.delta = p.bank + record[kRecordDelta] * p.width;
        row.gain = p.row_gain[n];
        finish = static_cast<Finish>(record[kRecordFinish]);
      }
    }
    T* stream = static_cast<T*>(p.stream) + n * p.stream_stride;
    const float squares = write_stream(row, stream, p.width, finish);
    if (!p.normed) continue;
    const float rstd = 1.f / std::sqrt(squares / static_cast<float>(p.width) + p.eps);
    write_norm(stream, static_cast<const W*>(p.weight),
               static_cast<W*>(p.normed) + n * p.normed_stride, p.width, rstd);
  }
  return valid;
}

template <typename T, typename W>
bool rows(const SteerParams& p, int64_t begin, int64_t end) {
  return p.x ? rows<T, W, true>(p, begin, end) : rows<T, W, false>(p, begin, end);
}

// Rows [begin, end). False if a slot or a bank row was out of range; such rows are left unsteered.
bool steer_rows(const SteerParams& p, int64_t begin, int64_t end) {
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
  return false;
}

}  // namespace steerfast::STEERFAST_ISA
