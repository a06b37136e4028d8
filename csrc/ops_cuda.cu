// The operators on CUDA devices. Their bodies are in call.h, the kernels in steer.cu; here is where
// a call takes place: the stream and the device of its tensors.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "call.h"
#include "launch.h"

// In libtorch_cuda since 2.9, declared by no header of the stable ABI, and absent from a CPU-only
// torch: weak, so that the library still loads there (its build needs no CUDA torch, nor do its
// load tests).
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);

namespace steerfast {
namespace {

using CurrentStream = AOTITorchError (*)(int32_t, void**);

// libtorch, which this library names as needed, brings libtorch_cuda along. The second way is for a
// torch whose libtorch does not: Python loads torch privately, out of a weak symbol's sight.
CurrentStream find_current_stream() {
  if (aoti_torch_get_current_cuda_stream) return aoti_torch_get_current_cuda_stream;
  void* const torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  if (!torch_cuda) return nullptr;
  return reinterpret_cast<CurrentStream>(dlsym(torch_cuda, "aoti_torch_get_current_cuda_stream"));
}

class Cuda {
 public:
  static constexpr const char* kName = "one CUDA device";

  explicit Cuda(const Tensor& residual) : index_(residual.get_device_index()) {}
  bool holds(const Tensor& t) const { return t.is_cuda() && t.get_device_index() == index_; }
  int32_t type() const { return aoti_torch_device_type_cuda(); }
  int32_t index() const { return index_; }

  void run(const SteerParams& p) const {
    static const CurrentStream current_stream = find_current_stream();
    STD_TORCH_CHECK(current_stream, "this torch is built without CUDA");
    const torch::stable::accelerator::DeviceGuard guard(index_);
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(current_stream(index_, &stream));
    launch_steer(p, static_cast<cudaStream_t>(stream));
  }

 private:
  int32_t index_;
};

bool select_cuda_overlap(bool on) { return select_overlap(on); }

}  // namespace
}  // namespace steerfast

STABLE_TORCH_LIBRARY_IMPL(steerfast, CUDA, m) { steerfast::Ops<steerfast::Cuda>::implement(m); }

// The schemas live in steerfast/ops/forms.py.
STABLE_TORCH_LIBRARY_FRAGMENT(steerfast, m) { m.def("select_cuda_overlap(bool on) -> bool"); }
STABLE_TORCH_LIBRARY_IMPL(steerfast, CompositeExplicitAutograd, m) {
  m.impl("select_cuda_overlap", TORCH_BOX(&steerfast::select_cuda_overlap));
}
