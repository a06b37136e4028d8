// The operators on the CPU, registered through the LibTorch stable ABI: one build serves torch 2.10
// and later. Their bodies are in call.h; here is what the CPU does with a checked call.
#include <atomic>
#include <string>

#include "call.h"
#include "cpu/isa.h"

namespace steerfast {
namespace {

// A decode row stays on one thread; above this many elements the pool's wake-up pays.
constexpr int64_t kGrainElements = 32768;

struct Cpu {
  static constexpr const char* kName = "the CPU";

  explicit Cpu(const Tensor&) {}
  bool holds(const Tensor& t) const { return t.is_cpu(); }
  int32_t type() const { return aoti_torch_device_type_cpu(); }
  int32_t index() const { return 0; }

  void run(const SteerParams& p) const {
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

bool select_cpu_isa(const std::string& name) { return select_isa(name.c_str()); }
std::string cpu_isa() { return current_isa().name; }

}  // namespace
}  // namespace steerfast

STABLE_TORCH_LIBRARY_IMPL(steerfast, CPU, m) { steerfast::Ops<steerfast::Cpu>::implement(m); }

// The schemas live in steerfast/ops.py, so that they exist whichever libraries were built.
STABLE_TORCH_LIBRARY_FRAGMENT(steerfast, m) {
  m.def("select_cpu_isa(str name) -> bool");
  m.def("cpu_isa() -> str");
}
STABLE_TORCH_LIBRARY_IMPL(steerfast, CompositeExplicitAutograd, m) {
  m.impl("select_cpu_isa", TORCH_BOX(&steerfast::select_cpu_isa));
  m.impl("cpu_isa", TORCH_BOX(&steerfast::cpu_isa));
}
