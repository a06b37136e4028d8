// One block of threads at a time, each thread a fiber. A thread runs until it must meet others or
// ends; which of those that can go on comes next is drawn at random, so that a result that hangs on
// the order differs from seed to seed. A meeting that can never take place ends the process with a
// report, and so does one that CUDA calls undefined:
//
//   block        all threads of the block, at the same line of the source
//   warp         all lanes of the mask, with the same mask, at the same line
//   dependency   all threads of the block: the kernel ahead in the stream has ended (programmatic
//                dependent launch, see runtime.h)
#pragma once

#include <cstdint>
#include <functional>

namespace emulation {

inline constexpr int kWarp = 32;

// Where in the source a thread meets others: as a default argument, the place of the call.
struct Site {
  const char *what, *file;
  int line;
  Site(const char* what, const char* file = __builtin_FILE(), int line = __builtin_LINE())
      : what(what), file(file), line(line) {}
};
void meet_block(const Site& site);
void meet_dependency(const Site& site);
struct Taken {
  uint64_t value;    // what lane `source` brought
  unsigned nonzero;  // the lanes of the mask that brought anything but 0
};
Taken meet_warp(const Site& site, unsigned mask, uint64_t value, int source);

// All threads of one block, to their end. `kernel` is for reports.
void run_block(const char* kernel, int threads, bool overlap, const std::function<void()>& body);

}  // namespace emulation
