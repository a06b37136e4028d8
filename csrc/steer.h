// What every kernel of the package is given: plain pointers and sizes, no torch. The layout of
// records and reads is that of steerfast/ops/records.py, their meaning that of
// steerfast/ops/reference.py.
#pragma once

#include <cstdint>

namespace steerfast {

enum class Dtype : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// A record, one per (site, slot): what a slot does here. It does nothing where delta is -1 and
// read_count 0.
struct Record {
  int32_t delta;       // row of the bank, -1: no constant part
  int32_t finish;      // see Finish
  int32_t program;     // which program of reads, where read_count > 0
  int32_t read_count;  // 0 to kMaxReads
};
enum class Finish : int32_t { kNone = 0, kPreserve = 1, kShrink = 2 };

// How a read's coefficient f follows from its dot p, its partner's dot p' and n = |h|.
enum class Op : int32_t {
  kKey = 0,       // 0: its dot opens gates of other reads
  kAffine = 1,    // slope p + cross p' + offset
  kFloor = 2,     // max(slope p + offset, 0)
  kCeiling = 3,   // min(slope p + offset, 0)
  kSigned = 4,    // slope sign(p), sign(0) = 0
  kRelative = 5,  // slope n
  kFeature = 6,   // z = p + offset; level - (z if z > threshold else 0)
  kTurn = 7,      // slope p + cross hypot(p, p')
  // n (cos w' - cos w s), and (s - 1) h is added; w = acos(p/n), w' = (1 - slope) w, s = sin w' /
  // sin w; nothing where n = 0 or sin w < 1e-4
  kSlerp = 8,
};

// What multiplies f (and slerp's share of h), from the dot k of the read `key` and n.
enum class Gate : int32_t {
  kOpen = 0,     // 1
  kHard = 1,     // 1 where k + bias > 0, else 0
  kCosine = 2,   // 1 where k > bias n and n > 0, else 0
  kSigmoid = 3,  // 1 / (1 + exp(-(k + bias)))
};

// One dot product p = <h, bank[source]>, and f * bank[target], which is added to the row.
struct Read {
  Op op;
  int32_t source, target;  // rows of the bank; -1: p = 0, nothing is added
  int32_t partner;         // place in the program, -1: p' = 0
  Gate gate;
  int32_t key;  // place in the program, -1: the gate is open
  float slope, cross, offset, level, threshold, bias;
};
constexpr int kMaxReads = 16;  // of a program
static_assert(sizeof(Record) == 4 * sizeof(int32_t) && sizeof(Read) == 12 * sizeof(int32_t));

// h = round_T(residual + x)
// stream = round_T(finish(h + gain * (delta + sum of gate * (f * bank[target] + share * h))))
// normed = RMSNorm(stream)
// Strides are in elements, between rows; within a row elements are contiguous.
struct SteerParams {
  const void* x = nullptr;       // [N, D] dtype, or null: h = residual
  const void* residual;          // [N, D] dtype
  void* stream;                  // [N, D] dtype; may be residual itself
  const void* weight = nullptr;  // [D] weight_dtype, or null: no norm
  void* normed = nullptr;        // [N, D] weight_dtype; may be x itself where the dtypes agree
  // x itself, where the stream is to stay in two halves: it becomes 0 in rows that are steered, and
  // rows that are not are left as they are. Else null. Not with a norm.
  void* emptied = nullptr;
  int64_t rows = 0, width = 0;  // N, D
  int64_t x_stride = 0, residual_stride = 0, stream_stride = 0, normed_stride = 0;
  float eps = 0.f;
  float inverse_width = 0.f;  // 1/D; launch_steer sees to it
  // round(weight * stream * rstd) with no rounding in between (what vLLM's kernel does), instead of
  // round(weight * round_T(stream * rstd)) (LlamaRMSNorm).
  bool fp32_norm = false;
  Dtype dtype = Dtype::kFloat32, weight_dtype = Dtype::kFloat32;
  const int32_t* row_slot = nullptr;  // [N], or null: nothing is steered
  const float* row_gain = nullptr;    // [N]
  const Record* records = nullptr;    // [slots]
  const Read* reads = nullptr;        // [programs, kMaxReads]
  const float* bank = nullptr;        // [bank_rows, D]
  int64_t slots = 0, programs = 0, bank_rows = 0;
};

}  // namespace steerfast
