// What the kernels rely on instead of checking it: that all a row names exists.
#pragma once

#include "../steer.h"

namespace steerfast {

struct Checked {
  const char* wrong =
      nullptr;        // the first argument that names something that is not there, or null
  int64_t reads = 0;  // of all rows together: what the call will cost
};

// One pass over the routes of a call and the records, programs and reads that they lead to.
Checked check(const SteerParams& p);

}  // namespace steerfast
