// The shared memory that a kernel declares itself, which comes out of the same room as what a
// launch asks for.
#pragma once

#include <cstdint>

namespace emulation {

// In bytes, each variable at the next multiple of 16. Read from the symbols of this program: a
// kernel's shared variables are thread-local ones of its function.
int64_t own_shared(const void* kernel);

}  // namespace emulation
