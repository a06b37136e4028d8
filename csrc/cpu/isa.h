// Which compiled copy of the CPU kernel runs: the widest that both the build and the processor
// have.
#pragma once

#include "../steer.h"

namespace steerfast {

// Rows [begin, end) of a call that check() has passed.
using RowsFunction = void (*)(const SteerParams&, int64_t begin, int64_t end);

struct Isa {
  const char* name;
  RowsFunction rows;
  bool (*supported)();
};

const Isa& current_isa();
// By name ("avx512", "avx2", "baseline"); false, and no change, if it is not built or not
// supported.
bool select_isa(const char* name);

}  // namespace steerfast
