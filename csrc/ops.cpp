// The operators, registered through the LibTorch stable ABI: one build serves torch 2.10 and later.
// Argument checks here are terse; steerfast/ops.py repeats a failing call's checks in Python, where
// the message can name shapes, what was wanted and the next step.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <atomic>
#include <string>
#include <tuple>

#include "cpu/isa.h"
#include "steer.h"

namespace steerfast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A decode row stays on one thread; above this many elements the pool's wake-up pays.
constexpr int64_t kGrainElements = 32768;

Dtype dtype_of(const Tensor& t, const char* what) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return Dtype::kFloat32;
    case ScalarType::BFloat16: return Dtype::kBFloat16;
    case ScalarType::Half: return Dtype::kFloat16;
    default: STD_TORCH_CHECK(false, what, " must be float32, bfloat16 or float16");
  }
}

// [..., D] as rows at one stride, if its layout allows.
bool as_rows(const Tensor& t, int64_t* stride) {
  const int64_t dims = t.dim();
  if (dims == 0 || (t.size(dims - 1) > 1 && t.stride(dims - 1) != 1)) return false;
  *stride = dims > 1 ? t.stride(dims - 2) : t.size(dims - 1);
  if (dims > 1 && t.size(dims - 2) == 1) *stride = t.size(dims - 1);
  int64_t expected = *stride;
  bool first = true;
  for (int64_t d = dims - 2; d >= 0; --d) {
    if (t.size(d) == 1) continue;
    if (first) {
      *stride = expected = t.stride(d);
      first = false;
    } else if (t.stride(d) != expected) {
      return false;
    }
    expected *= t.size(d);
  }
  return true;
}

Tensor rows_of(const Tensor& t, int64_t* stride) {
  if (as_rows(t, stride)) return t;
  Tensor copy = torch::stable::contiguous(t);
  *stride = t.size(t.dim() - 1);
  return copy;
}

void check_same(const Tensor& a, const Tensor& b, const char* what) {
  STD_TORCH_CHECK(a.dim() == b.dim() && a.dim() >= 1, what, ": different number of dimensions");
  for (int64_t d = 0; d < a.dim(); ++d)
    STD_TORCH_CHECK(a.size(d) == b.size(d), what, ": different shapes");
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type(), what, ": different dtypes");
}

Tensor empty_rows(const Tensor& like, ScalarType dtype) {
  int64_t sizes[16], strides[16], stride = 1;
  const int64_t dims = like.dim();
  STD_TORCH_CHECK(dims <= 16, "at most 16 dimensions");
  for (int64_t d = dims - 1; d >= 0; --d) {
    sizes[d] = like.size(d);
    strides[d] = stride;
    stride *= sizes[d] > 0 ? sizes[d] : 1;
  }
  AtenTensorHandle out;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dims, sizes, strides,
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      aoti_torch_device_type_cpu(), 0, &out));
  return Tensor(out);
}

struct Call {
  SteerParams p;

  explicit Call(const Tensor& residual) {
    p.rows = 1;
    for (int64_t d = 0; d + 1 < residual.dim(); ++d) p.rows *= residual.size(d);
    p.width = residual.size(residual.dim() - 1);
    p.dtype = dtype_of(residual, "residual");
  }

  void norm(const Tensor& weight, double eps) {
    STD_TORCH_CHECK(weight.dim() == 1 && weight.size(0) == p.width && weight.is_contiguous(),
                    "weight must be a contiguous [D]");
    p.weight_dtype = dtype_of(weight, "weight");
    STD_TORCH_CHECK(p.weight_dtype == p.dtype || p.weight_dtype == Dtype::kFloat32,
                    "weight must have the dtype of the stream, or float32");
    STD_TORCH_CHECK(weight.is_cpu(), "weight must be on the CPU");
    p.weight = weight.const_data_ptr();
    p.eps = static_cast<float>(eps);
  }

  void steering(const Tensor& row_slot, const Tensor& row_gain, const Tensor& records,
                const Tensor& bank) {
    STD_TORCH_CHECK(row_slot.scalar_type() == ScalarType::Int && row_slot.numel() == p.rows &&
                        row_slot.is_contiguous(),
                    "row_slot must be a contiguous int32 [N]");
    STD_TORCH_CHECK(row_gain.scalar_type() == ScalarType::Float && row_gain.numel() == p.rows &&
                        row_gain.is_contiguous(),
                    "row_gain must be a contiguous float32 [N]");
    STD_TORCH_CHECK(records.scalar_type() == ScalarType::Int && records.dim() == 2 &&
                        records.size(1) == kRecordWidth && records.is_contiguous(),
                    "records must be a contiguous int32 [S, 4]");
    STD_TORCH_CHECK(bank.scalar_type() == ScalarType::Float && bank.dim() == 2 &&
                        bank.size(1) == p.width && bank.is_contiguous(),
                    "bank must be a contiguous float32 [V, D]");
    STD_TORCH_CHECK(row_slot.is_cpu() && row_gain.is_cpu() && records.is_cpu() && bank.is_cpu(),
                    "route and table must be on the CPU, like the stream");
    p.row_slot = static_cast<const int32_t*>(row_slot.const_data_ptr());
    p.row_gain = static_cast<const float*>(row_gain.const_data_ptr());
    p.records = static_cast<const int32_t*>(records.const_data_ptr());
    p.bank = static_cast<const float*>(bank.const_data_ptr());
    p.slots = records.size(0);
    p.bank_rows = bank.size(0);
  }

  void run() const {
    if (p.rows == 0 || p.width == 0) return;
    const RowsFunction rows = current_isa().rows;
    const int64_t grain = p.width < kGrainElements ? kGrainElements / p.width : 1;
    if (p.rows <= grain) {
      STD_TORCH_CHECK(rows(p, 0, p.rows), "a row names a slot or a delta outside its table");
      return;
    }
    std::atomic<bool> valid{true};
    torch::stable::parallel_for(0, p.rows, grain, [&](int64_t begin, int64_t end) {
      if (!rows(p, begin, end)) valid.store(false, std::memory_order_relaxed);
    });
    STD_TORCH_CHECK(valid.load(), "a row names a slot or a delta outside its table");
  }
};

// The one body behind all ops; absent parts are null.
std::tuple<Tensor, Tensor> run(const Tensor* x, const Tensor& residual, const Tensor* weight,
                               double eps, const Tensor* row_slot, const Tensor* row_gain,
                               const Tensor* records, const Tensor* bank) {
  STD_TORCH_CHECK(residual.dim() >= 1 && residual.is_cpu(), "residual must be a CPU tensor [..., D]");
  Call call(residual);
  if (x) {
    check_same(*x, residual, "x and residual");
    STD_TORCH_CHECK(x->is_cpu(), "x must be on the CPU");
  }
  const Tensor residual_rows = rows_of(residual, &call.p.residual_stride);
  call.p.residual = residual_rows.const_data_ptr();
  const Tensor x_rows = x ? rows_of(*x, &call.p.x_stride) : residual_rows;
  if (x) call.p.x = x_rows.const_data_ptr();
  if (weight) call.norm(*weight, eps);
  if (row_slot) call.steering(*row_slot, *row_gain, *records, *bank);
  Tensor stream = empty_rows(residual, residual.scalar_type());
  call.p.stream = stream.mutable_data_ptr();
  call.p.stream_stride = call.p.width;
  if (!weight) {
    call.run();
    return {stream, stream};
  }
  Tensor normed = empty_rows(residual, weight->scalar_type());
  call.p.normed = normed.mutable_data_ptr();
  call.p.normed_stride = call.p.width;
  call.run();
  return {stream, normed};
}

// In place: residual becomes the stream, x its norm.
void run_(Tensor& x, Tensor& residual, const Tensor& weight, double eps, const Tensor* row_slot,
          const Tensor* row_gain, const Tensor* records, const Tensor* bank) {
  STD_TORCH_CHECK(residual.dim() >= 1 && residual.is_cpu(), "residual must be a CPU tensor [..., D]");
  check_same(x, residual, "x and residual");
  STD_TORCH_CHECK(x.is_cpu(), "x must be on the CPU");
  STD_TORCH_CHECK(x.scalar_type() == weight.scalar_type(),
                  "in place, weight must have the dtype of the stream");
  Call call(residual);
  STD_TORCH_CHECK(as_rows(x, &call.p.x_stride) && as_rows(residual, &call.p.residual_stride),
                  "in place, x and residual must be rows at one stride");
  call.norm(weight, eps);
  if (row_slot) call.steering(*row_slot, *row_gain, *records, *bank);
  call.p.x = call.p.normed = x.mutable_data_ptr();
  call.p.residual = call.p.stream = residual.mutable_data_ptr();
  call.p.normed_stride = call.p.x_stride;
  call.p.stream_stride = call.p.residual_stride;
  call.run();
}

std::tuple<Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& residual,
                                        const Tensor& weight, double eps) {
  return run(&x, residual, &weight, eps, nullptr, nullptr, nullptr, nullptr);
}
std::tuple<Tensor, Tensor> steer_add_rms_norm(const Tensor& x, const Tensor& residual,
                                              const Tensor& weight, double eps,
                                              const Tensor& row_slot, const Tensor& row_gain,
                                              const Tensor& records, const Tensor& bank) {
  return run(&x, residual, &weight, eps, &row_slot, &row_gain, &records, &bank);
}
std::tuple<Tensor, Tensor> steer_rms_norm(const Tensor& stream, const Tensor& weight, double eps,
                                          const Tensor& row_slot, const Tensor& row_gain,
                                          const Tensor& records, const Tensor& bank) {
  return run(nullptr, stream, &weight, eps, &row_slot, &row_gain, &records, &bank);
}
Tensor steer_add(const Tensor& x, const Tensor& residual, const Tensor& row_slot,
                 const Tensor& row_gain, const Tensor& records, const Tensor& bank) {
  return std::get<0>(run(&x, residual, nullptr, 0., &row_slot, &row_gain, &records, &bank));
}
Tensor steer(const Tensor& stream, const Tensor& row_slot, const Tensor& row_gain,
             const Tensor& records, const Tensor& bank) {
  return std::get<0>(run(nullptr, stream, nullptr, 0., &row_slot, &row_gain, &records, &bank));
}
void add_rms_norm_(Tensor x, Tensor residual, const Tensor& weight, double eps) {
  run_(x, residual, weight, eps, nullptr, nullptr, nullptr, nullptr);
}
void steer_add_rms_norm_(Tensor x, Tensor residual, const Tensor& weight, double eps,
                         const Tensor& row_slot, const Tensor& row_gain, const Tensor& records,
                         const Tensor& bank) {
  run_(x, residual, weight, eps, &row_slot, &row_gain, &records, &bank);
}

bool select_cpu_isa(const std::string& name) { return select_isa(name.c_str()); }
std::string cpu_isa() { return current_isa().name; }

}  // namespace
}  // namespace steerfast

STABLE_TORCH_LIBRARY_IMPL(steerfast, CPU, m) {
  m.impl("add_rms_norm", TORCH_BOX(&steerfast::add_rms_norm));
  m.impl("add_rms_norm_", TORCH_BOX(&steerfast::add_rms_norm_));
  m.impl("steer_add_rms_norm", TORCH_BOX(&steerfast::steer_add_rms_norm));
  m.impl("steer_add_rms_norm_", TORCH_BOX(&steerfast::steer_add_rms_norm_));
  m.impl("steer_rms_norm", TORCH_BOX(&steerfast::steer_rms_norm));
  m.impl("steer_add", TORCH_BOX(&steerfast::steer_add));
  m.impl("steer", TORCH_BOX(&steerfast::steer));
}

// The schemas live in steerfast/ops.py, so that they exist whichever libraries were built.
STABLE_TORCH_LIBRARY_FRAGMENT(steerfast, m) {
  m.def("select_cpu_isa(str name) -> bool");
  m.def("cpu_isa() -> str");
}
STABLE_TORCH_LIBRARY_IMPL(steerfast, CompositeExplicitAutograd, m) {
  m.impl("select_cpu_isa", TORCH_BOX(&steerfast::select_cpu_isa));
  m.impl("cpu_isa", TORCH_BOX(&steerfast::cpu_isa));
}
