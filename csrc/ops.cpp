// The operators on the CPU, registered through the LibTorch stable ABI: one build serves torch 2.10
// and later. Their bodies are in call.h; here is what the CPU does with a checked call.
#include <string>

#include "call.h"
#include "cpu/check.h"
#include "cpu/isa.h"

namespace steerfast {
namespace {

// A decode row stays on one thread; above this many elements the pool's wake-up pays. A read costs
// up to half of what the rest of its row does (measured).
constexpr int64_t kGrainElements = 32768;

int64_t grain_of(const SteerParams& p, int64_t reads) {
  const int64_t elements = p.width * (p.rows + reads / 2);
  return elements < kGrainElements ? p.rows : 1 + p.rows * kGrainElements / (elements + 1);
}

struct Cpu {
  static constexpr const char* kName = "the CPU";

  explicit Cpu(const Tensor&) {}
  bool holds(const Tensor& t) const { return t.is_cpu(); }
  int32_t type() const { return aoti_torch_device_type_cpu(); }
  int32_t index() const { return 0; }

  void run(const SteerParams& p) const {
    const Checked checked = check(p);
    STD_TORCH_CHECK(!checked.wrong, checked.wrong, " names something that is not in the table");
    const RowsFunction rows = current_isa().rows;
    const int64_t grain = grain_of(p, checked.reads);
    if (p.rows <= grain) return rows(p, 0, p.rows);
    torch::stable::parallel_for(0, p.rows, grain,
                                [&](int64_t begin, int64_t end) { rows(p, begin, end); });
  }
};

bool select_cpu_isa(const std::string& name) { return select_isa(name.c_str()); }
std::string cpu_isa() { return current_isa().name; }

}  // namespace
}  // namespace steerfast

STABLE_TORCH_LIBRARY_IMPL(steerfast, CPU, m) { steerfast::Ops<steerfast::Cpu>::implement(m); }

// The schemas live in steerfast/ops/forms.py, so that they exist whichever libraries were built.
STABLE_TORCH_LIBRARY_FRAGMENT(steerfast, m) {
  m.def("select_cpu_isa(str name) -> bool");
  m.def("cpu_isa() -> str");
}
STABLE_TORCH_LIBRARY_IMPL(steerfast, CompositeExplicitAutograd, m) {
  m.impl("select_cpu_isa", TORCH_BOX(&steerfast::select_cpu_isa));
  m.impl("cpu_isa", TORCH_BOX(&steerfast::cpu_isa));
}
