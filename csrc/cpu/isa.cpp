#include "isa.h"

#include <atomic>
#include <cstring>

namespace steerfast {

namespace baseline {
void steer_rows(const SteerParams&, int64_t, int64_t);
}
#if defined(__x86_64__)
namespace avx2 {
void steer_rows(const SteerParams&, int64_t, int64_t);
}
namespace avx512 {
void steer_rows(const SteerParams&, int64_t, int64_t);
}
#endif

namespace {

#if defined(__x86_64__)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

constexpr Isa kIsas[] = {
// widest first
#if defined(__x86_64__)
    {"avx512", avx512::steer_rows, has_avx512},
    {"avx2", avx2::steer_rows,
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
     }},
#endif
    {"baseline", baseline::steer_rows, [] { return true; }},
};

const Isa* widest() {
  for (const Isa& isa : kIsas)
    if (isa.supported()) return &isa;
  return nullptr;  // not reached: the baseline is always supported
}

std::atomic<const Isa*>& selected() {
  static std::atomic<const Isa*> isa{widest()};
  return isa;
}

}  // namespace

const Isa& current_isa() { return *selected().load(std::memory_order_relaxed); }

bool select_isa(const char* name) {
  for (const Isa& isa : kIsas) {
    if (std::strcmp(isa.name, name) == 0 && isa.supported()) {
      selected().store(&isa, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace steerfast
