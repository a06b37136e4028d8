// From torch tensors to SteerParams: the checks, the allocation of results and the bodies of the
// operators, shared by every device. A device is a class with
//
//     static constexpr const char* kName;            // for messages
//     explicit Device(const Tensor& residual);       // where the call takes place
//     bool holds(const Tensor&) const;               // does it lie there
//     int32_t type() const, index() const;           // of the results, in aoti's numbers
//     void run(const SteerParams&) const;            // rows and width are not 0
//
// Argument checks here are terse; steerfast/ops/arguments.py repeats those of a failing call in
// Python, where the message can name shapes, what was wanted and the next step.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <tuple>

#include "steer.h"

namespace steerfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Dtype dtype_of(const Tensor& t, const char* what) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      STD_TORCH_CHECK(false, what, " must be float32, bfloat16 or float16");
  }
}

// [..., D] as rows at one stride, if its layout allows.
inline bool as_rows(const Tensor& t, int64_t* stride) {
  const int64_t dims = t.dim();
  if (dims == 0 || (t.size(dims - 1) > 1 && t.stride(dims - 1) != 1)) return false;
  if (t.numel() == 0) {  // the strides of nothing say nothing
    *stride = t.size(dims - 1);
    return true;
  }
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

inline Tensor rows_of(const Tensor& t, int64_t* stride) {
  if (as_rows(t, stride)) return t;
  Tensor copy = torch::stable::contiguous(t);
  *stride = t.size(t.dim() - 1);
  return copy;
}

// The same for a tensor that is written to: rows that share memory would race.
inline bool rows_in_place(const Tensor& t, int64_t* stride) {
  const int64_t width = t.dim() ? t.size(t.dim() - 1) : 0;
  return as_rows(t, stride) && (t.numel() <= width || *stride >= width);
}

// Whether rows that are written to have an element in common with those of another tensor. Rows of
// each lie at one stride, apart from each other.
inline bool rows_overlap(const Tensor& a, int64_t a_stride, const Tensor& b, int64_t b_stride,
                         int64_t rows, int64_t width) {
  if (rows == 0 || width == 0) return false;
  const int64_t size = a.element_size(), bytes = width * size;
  const auto address = [](const Tensor& t) {
    return static_cast<int64_t>(reinterpret_cast<intptr_t>(t.const_data_ptr()));
  };
  const int64_t a_step = a_stride * size, b_step = b_stride * size;
  int64_t ahead = address(b) - address(a);  // of row j of b, before row i of a
  if (ahead >= (rows - 1) * a_step + bytes || -ahead >= (rows - 1) * b_step + bytes) return false;
  for (int64_t i = 0, j = 0; i < rows && j < rows;) {  // perhaps they are only interleaved
    if (ahead < bytes && -ahead < bytes) return true;
    if (ahead > 0) {
      ++i, ahead -= a_step;
    } else {
      ++j, ahead += b_step;
    }
  }
  return false;
}

inline void check_same(const Tensor& a, const Tensor& b, const char* what) {
  STD_TORCH_CHECK(a.dim() == b.dim() && a.dim() >= 1, what, ": different number of dimensions");
  for (int64_t d = 0; d < a.dim(); ++d)
    STD_TORCH_CHECK(a.size(d) == b.size(d), what, ": different shapes");
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type(), what, ": different dtypes");
}

// The norm's and the steering's arguments of an operator.
struct Norm {
  const Tensor& weight;
  double eps;
  bool fp32;
};
struct Steering {
  const Tensor &row_slot, &row_gain, &records, &reads, &bank;
};

template <typename Device>
struct Call {
  Device device;
  SteerParams p;

  explicit Call(const Tensor& residual) : device(residual) {
    STD_TORCH_CHECK(residual.dim() >= 1 && device.holds(residual),
                    "residual must be a tensor [..., D] on ", Device::kName);
    p.rows = 1;
    for (int64_t d = 0; d + 1 < residual.dim(); ++d) p.rows *= residual.size(d);
    p.width = residual.size(residual.dim() - 1);
    p.dtype = dtype_of(residual, "residual");
  }

  void check_branch(const Tensor& x, const Tensor& residual) const {
    check_same(x, residual, "x and residual");
    STD_TORCH_CHECK(device.holds(x), "x must be on ", Device::kName, ", like residual");
  }

  void norm(const Norm& norm) {
    const Tensor& weight = norm.weight;
    STD_TORCH_CHECK(weight.dim() == 1 && weight.size(0) == p.width && weight.is_contiguous(),
                    "weight must be a contiguous [D]");
    p.weight_dtype = dtype_of(weight, "weight");
    STD_TORCH_CHECK(p.weight_dtype == p.dtype || p.weight_dtype == Dtype::kFloat32,
                    "weight must have the dtype of the stream, or float32");
    STD_TORCH_CHECK(device.holds(weight), "weight must be on ", Device::kName, ", like residual");
    p.weight = weight.const_data_ptr();
    p.eps = static_cast<float>(norm.eps);
    p.fp32_norm = norm.fp32;
  }

  void steering(const Steering& steering) {
    const auto& [row_slot, row_gain, records, reads, bank] = steering;
    STD_TORCH_CHECK(row_slot.scalar_type() == ScalarType::Int && row_slot.numel() == p.rows &&
                        row_slot.is_contiguous(),
                    "row_slot must be a contiguous int32 [N]");
    STD_TORCH_CHECK(row_gain.scalar_type() == ScalarType::Float && row_gain.numel() == p.rows &&
                        row_gain.is_contiguous(),
                    "row_gain must be a contiguous float32 [N]");
    STD_TORCH_CHECK(records.scalar_type() == ScalarType::Int && records.dim() == 2 &&
                        records.size(1) * sizeof(int32_t) == sizeof(Record) &&
                        records.is_contiguous(),
                    "records must be a contiguous int32 [S, 4]");
    STD_TORCH_CHECK(reads.scalar_type() == ScalarType::Int && reads.dim() == 3 &&
                        reads.size(1) == kMaxReads &&
                        reads.size(2) * sizeof(int32_t) == sizeof(Read) && reads.is_contiguous(),
                    "reads must be a contiguous int32 [P, 16, 12]");
    STD_TORCH_CHECK(bank.scalar_type() == ScalarType::Float && bank.dim() == 2 &&
                        bank.size(1) == p.width && bank.is_contiguous(),
                    "bank must be a contiguous float32 [V, D]");
    STD_TORCH_CHECK(device.holds(row_slot) && device.holds(row_gain) && device.holds(records) &&
                        device.holds(reads) && device.holds(bank),
                    "route and table must be on ", Device::kName, ", like the stream");
    p.row_slot = static_cast<const int32_t*>(row_slot.const_data_ptr());
    p.row_gain = static_cast<const float*>(row_gain.const_data_ptr());
    p.records = static_cast<const Record*>(records.const_data_ptr());
    p.reads = static_cast<const Read*>(reads.const_data_ptr());
    p.bank = static_cast<const float*>(bank.const_data_ptr());
    p.slots = records.size(0);
    p.programs = reads.size(0);
    p.bank_rows = bank.size(0);
  }

  Tensor empty_rows(const Tensor& like, ScalarType dtype) const {
    int64_t sizes[16], strides[16], stride = 1;
    const int64_t dims = like.dim();
    STD_TORCH_CHECK(dims <= 16, "at most 16 dimensions");
    for (int64_t d = dims - 1; d >= 0; --d) {
      sizes[d] = like.size(d);
      strides[d] = stride;
      stride *= sizes[d] > 0 ? sizes[d] : 1;
    }
    AtenTensorHandle out;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        dims, sizes, strides,
        torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), device.type(),
        device.index(), &out));
    return Tensor(out);
  }

  void run() const {
    if (p.rows > 0 && p.width > 0) device.run(p);
  }
};

// The operators. One body stands behind the functional ones, one behind those in place; absent
// parts are null.
template <typename Device>
struct Ops {
  static std::tuple<Tensor, Tensor> run(const Tensor* x, const Tensor& residual, const Norm* norm,
                                        const Steering* steering) {
    Call<Device> call(residual);
    if (x) call.check_branch(*x, residual);
    const Tensor residual_rows = rows_of(residual, &call.p.residual_stride);
    call.p.residual = residual_rows.const_data_ptr();
    const Tensor x_rows = x ? rows_of(*x, &call.p.x_stride) : residual_rows;
    if (x) call.p.x = x_rows.const_data_ptr();
    if (norm) call.norm(*norm);
    if (steering) call.steering(*steering);
    Tensor stream = call.empty_rows(residual, residual.scalar_type());
    call.p.stream = stream.mutable_data_ptr();
    call.p.stream_stride = call.p.width;
    if (!norm) {
      call.run();
      return {stream, stream};
    }
    Tensor normed = call.empty_rows(residual, norm->weight.scalar_type());
    call.p.normed = normed.mutable_data_ptr();
    call.p.normed_stride = call.p.width;
    call.run();
    return {stream, normed};
  }

  // In place: residual becomes the stream, x its norm; without a norm, x becomes 0 where a row is
  // steered, and other rows stay two halves.
  static void run_(Tensor* x, Tensor& residual, const Norm* norm, const Steering* steering) {
    Call<Device> call(residual);
    STD_TORCH_CHECK(rows_in_place(residual, &call.p.residual_stride),
                    "in place, the stream must be rows at one stride that do not overlap");
    call.p.residual = call.p.stream = residual.mutable_data_ptr();
    call.p.stream_stride = call.p.residual_stride;
    if (steering) call.steering(*steering);
    if (x) {
      call.check_branch(*x, residual);
      STD_TORCH_CHECK(rows_in_place(*x, &call.p.x_stride),
                      "in place, x must be rows at one stride that do not overlap");
      STD_TORCH_CHECK(!rows_overlap(*x, call.p.x_stride, residual, call.p.residual_stride,
                                    call.p.rows, call.p.width),
                      "in place, x and residual must not share memory");
      call.p.x = x->mutable_data_ptr();
    }
    if (norm) {
      STD_TORCH_CHECK(x->scalar_type() == norm->weight.scalar_type(),
                      "in place, weight must have the dtype of the stream");
      call.norm(*norm);
      call.p.normed = x->mutable_data_ptr();
      call.p.normed_stride = call.p.x_stride;
    } else if (x) {
      call.p.emptied = x->mutable_data_ptr();
    }
    call.run();
  }

  static std::tuple<Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& residual,
                                                 const Tensor& weight, double eps, bool fp32) {
    const Norm norm{weight, eps, fp32};
    return run(&x, residual, &norm, nullptr);
  }
  static std::tuple<Tensor, Tensor> steer_add_rms_norm(const Tensor& x, const Tensor& residual,
                                                       const Tensor& weight, double eps, bool fp32,
                                                       const Tensor& row_slot,
                                                       const Tensor& row_gain,
                                                       const Tensor& records, const Tensor& reads,
                                                       const Tensor& bank) {
    const Norm norm{weight, eps, fp32};
    const Steering steering{row_slot, row_gain, records, reads, bank};
    return run(&x, residual, &norm, &steering);
  }
  static std::tuple<Tensor, Tensor> steer_rms_norm(const Tensor& stream, const Tensor& weight,
                                                   double eps, bool fp32, const Tensor& row_slot,
                                                   const Tensor& row_gain, const Tensor& records,
                                                   const Tensor& reads, const Tensor& bank) {
    const Norm norm{weight, eps, fp32};
    const Steering steering{row_slot, row_gain, records, reads, bank};
    return run(nullptr, stream, &norm, &steering);
  }
  static Tensor steer_add(const Tensor& x, const Tensor& residual, const Tensor& row_slot,
                          const Tensor& row_gain, const Tensor& records, const Tensor& reads,
                          const Tensor& bank) {
    const Steering steering{row_slot, row_gain, records, reads, bank};
    return std::get<0>(run(&x, residual, nullptr, &steering));
  }
  static Tensor steer(const Tensor& stream, const Tensor& row_slot, const Tensor& row_gain,
                      const Tensor& records, const Tensor& reads, const Tensor& bank) {
    const Steering steering{row_slot, row_gain, records, reads, bank};
    return std::get<0>(run(nullptr, stream, nullptr, &steering));
  }
  static void add_rms_norm_(Tensor x, Tensor residual, const Tensor& weight, double eps,
                            bool fp32) {
    const Norm norm{weight, eps, fp32};
    run_(&x, residual, &norm, nullptr);
  }
  static void steer_add_rms_norm_(Tensor x, Tensor residual, const Tensor& weight, double eps,
                                  bool fp32, const Tensor& row_slot, const Tensor& row_gain,
                                  const Tensor& records, const Tensor& reads, const Tensor& bank) {
    const Norm norm{weight, eps, fp32};
    const Steering steering{row_slot, row_gain, records, reads, bank};
    run_(&x, residual, &norm, &steering);
  }
  static void steer_(Tensor stream, const Tensor& row_slot, const Tensor& row_gain,
                     const Tensor& records, const Tensor& reads, const Tensor& bank) {
    const Steering steering{row_slot, row_gain, records, reads, bank};
    run_(nullptr, stream, nullptr, &steering);
  }
  static void steer_halves_(Tensor x, Tensor residual, const Tensor& row_slot,
                            const Tensor& row_gain, const Tensor& records, const Tensor& reads,
                            const Tensor& bank) {
    const Steering steering{row_slot, row_gain, records, reads, bank};
    run_(&x, residual, nullptr, &steering);
  }

  // To be called in a STABLE_TORCH_LIBRARY_IMPL(steerfast, <key>, m).
  static void implement(torch::stable::detail::StableLibrary& m) {
    m.impl("add_rms_norm", TORCH_BOX(&Ops::add_rms_norm));
    m.impl("add_rms_norm_", TORCH_BOX(&Ops::add_rms_norm_));
    m.impl("steer_add_rms_norm", TORCH_BOX(&Ops::steer_add_rms_norm));
    m.impl("steer_add_rms_norm_", TORCH_BOX(&Ops::steer_add_rms_norm_));
    m.impl("steer_rms_norm", TORCH_BOX(&Ops::steer_rms_norm));
    m.impl("steer_add", TORCH_BOX(&Ops::steer_add));
    m.impl("steer", TORCH_BOX(&Ops::steer));
    m.impl("steer_", TORCH_BOX(&Ops::steer_));
    m.impl("steer_halves_", TORCH_BOX(&Ops::steer_halves_));
  }
};

}  // namespace steerfast
