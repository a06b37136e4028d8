// What every kernel of the package is given: plain pointers and sizes, no torch.
#pragma once

#include <cstdint>

namespace steerfast {

enum class Dtype : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// Fields of a record, int32 [kRecordWidth], one per (site, slot).
constexpr int kRecordWidth = 4;
constexpr int kRecordDelta = 0;   // row of the bank, -1: no active term
constexpr int kRecordFinish = 1;  // see Finish
enum class Finish : int32_t { kNone = 0, kPreserve = 1, kShrink = 2 };

// h = round_T(residual + x); stream = round_T(finish(h + gain * delta)); normed = RMSNorm(stream).
// Strides are in elements, between rows; within a row elements are contiguous.
struct SteerParams {
  const void* x = nullptr;       // [N, D] dtype, or null: h = residual
  const void* residual;          // [N, D] dtype
  void* stream;                  // [N, D] dtype; may be residual itself
  const void* weight = nullptr;  // [D] weight_dtype, or null: no norm
  void* normed = nullptr;        // [N, D] weight_dtype; may be x itself where the dtypes agree
  int64_t rows = 0, width = 0;   // N, D
  int64_t x_stride = 0, residual_stride = 0, stream_stride = 0, normed_stride = 0;
  float eps = 0.f;
  Dtype dtype = Dtype::kFloat32, weight_dtype = Dtype::kFloat32;
  const int32_t* row_slot = nullptr;  // [N], or null: nothing is steered
  const float* row_gain = nullptr;    // [N]
  const int32_t* records = nullptr;   // [slots, kRecordWidth]
  const float* bank = nullptr;        // [bank_rows, D]
  int64_t slots = 0, bank_rows = 0;
};

}  // namespace steerfast
