#include "block.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cuda_runtime.h"
#include "fiber.h"
#include "random.h"
#include "runtime.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulation {
namespace {

constexpr int kMaxThreads = 1024;

enum class At { kGoing, kBlock, kDependency, kWarp, kEnd };

void run_threads();

struct Thread {
  Fiber fiber{&run_threads};
  At at = At::kGoing;
  Site site{""};
  unsigned mask = 0;  // at a warp's meeting: who takes part, what is brought and from whom to take
  uint64_t value = 0;
  int source = 0;
  Taken taken = {};
};

class Block {
 public:
  void run(const char* kernel, int threads, bool overlap, const std::function<void()>& body);
  void end();
  void meet_all(At at, const Site& site);
  Taken meet_warp(const Site& site, unsigned mask, uint64_t value, int source);

  bool dependent() const { return dependent_; }
  const std::function<void()>& body() const { return *body_; }

 private:
  Thread& wait(At at, const Site& site);
  void release(int thread);
  void leave();
  int draw();
  void check_site(const Thread& a, const Thread& b);
  [[noreturn]] void fail(const std::string& why);

  const char* kernel_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  Fiber host_;
  std::vector<std::unique_ptr<Thread>> threads_;  // kept for the next block; count_ are in use
  int count_ = 0, running_ = 0, warp_ = 0;        // warp_: the one that ran last
  int arrived_ = 0, ended_ = 0;                   // at a meeting of the whole block; for good
  bool dependent_ = false;                        // the kernel ahead may still be running
  unsigned ready_[kMaxThreads / kWarp] = {}, waiting_[kMaxThreads / kWarp] = {};  // a bit a lane
} block;

void run_threads() {
  for (;;) {
    block.body()();
    block.end();
  }
}

void Block::run(const char* kernel, int threads, bool overlap, const std::function<void()>& body) {
  kernel_ = kernel;
  body_ = &body;
  dependent_ = overlap;
  while (static_cast<int>(threads_.size()) < threads)
    threads_.push_back(std::make_unique<Thread>());
  count_ = threads;
  arrived_ = ended_ = 0;
  for (int t = 0; t < threads; ++t) release(t);
  running_ = draw();
  threadIdx.x = static_cast<unsigned>(running_);
  Fiber::change(host_, threads_[running_]->fiber);
}

void Block::end() {
  threads_[running_]->at = At::kEnd;
  ++ended_;
  leave();
}

// A random thread that can go on, -1 if there is none. Mostly one of the warp that ran last: so a
// warp is now and then far ahead of another, as on a device.
int Block::draw() {
  const int warps = (count_ + kWarp - 1) / kWarp;
  if (ready_[warp_] == 0 || draw_below(8) == 0) {
    int left = warps;
    warp_ = static_cast<int>(draw_below(static_cast<unsigned>(warps)));
    for (; ready_[warp_] == 0 && left > 0; --left) warp_ = (warp_ + 1) % warps;
    if (left == 0) return -1;
  }
  unsigned lane = draw_below(kWarp);
  while (!(ready_[warp_] >> lane & 1)) lane = (lane + 1) % kWarp;
  ready_[warp_] &= ~(1u << lane);
  return warp_ * kWarp + static_cast<int>(lane);
}

// To another thread; returns when this one is drawn.
void Block::leave() {
  const int left = running_, next = draw();
  if (next == left) return;
  if (next < 0 && ended_ < count_) fail("no thread can go on");
  if (next >= 0) {
    running_ = next;
    threadIdx.x = static_cast<unsigned>(next);
  }
  Fiber::change(threads_[left]->fiber, next < 0 ? host_ : threads_[next]->fiber);
}

Thread& Block::wait(At at, const Site& site) {
  Thread& thread = *threads_[running_];
  thread.at = at;
  thread.site = site;
  return thread;
}

void Block::release(int thread) {
  threads_[thread]->at = At::kGoing;
  ready_[thread / kWarp] |= 1u << thread % kWarp;
}

void Block::check_site(const Thread& a, const Thread& b) {
  if (a.at != b.at || a.site.line != b.site.line || std::strcmp(a.site.file, b.site.file) != 0)
    fail("threads of one meeting are at different places");
}

void Block::meet_all(At at, const Site& site) {
  const Thread& thread = wait(at, site);
  if (++arrived_ == count_) {
    for (int t = 0; t < count_; ++t) check_site(*threads_[t], thread);
    if (at == At::kDependency) {
      dependent_ = false;
      hooks.open();
    }
    arrived_ = 0;
    for (int t = 0; t < count_; ++t) release(t);
  }
  leave();
}

Taken Block::meet_warp(const Site& site, unsigned mask, uint64_t value, int source) {
  Thread& thread = wait(At::kWarp, site);
  thread.mask = mask;
  thread.value = value;
  thread.source = source;
  const int warp = running_ / kWarp, lanes = count_ - warp * kWarp;
  if (!(mask >> running_ % kWarp & 1)) fail("a thread is not in its own mask");
  if (!(mask >> source & 1)) fail("a thread takes the value of one that is not in the mask");
  if (lanes < kWarp && mask >> lanes) fail("a mask names threads that the block does not have");
  unsigned& waiting = waiting_[warp];
  waiting |= 1u << running_ % kWarp;
  if ((waiting & mask) == mask) {
    unsigned nonzero = 0;
    for (int lane = 0; lane < kWarp; ++lane) {
      if (!(mask >> lane & 1)) continue;
      Thread& other = *threads_[warp * kWarp + lane];
      check_site(other, thread);
      if (other.mask != mask) fail("threads of one meeting have different masks");
      other.taken.value = threads_[warp * kWarp + other.source]->value;
      nonzero |= unsigned{other.value != 0} << lane;
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      if (!(mask >> lane & 1)) continue;
      threads_[warp * kWarp + lane]->taken.nonzero = nonzero;
      release(warp * kWarp + lane);
    }
    waiting &= ~mask;
  }
  leave();
  return thread.taken;
}

std::string place_of(const Thread& thread) {
  if (thread.at == At::kEnd) return "ended";
  const char* const slash = std::strrchr(thread.site.file, '/');
  char text[256];
  std::snprintf(text, sizeof text, "at %s (%s:%d)", thread.site.what,
                slash ? slash + 1 : thread.site.file, thread.site.line);
  if (thread.at == At::kGoing) return "between meetings";
  if (thread.at != At::kWarp) return text;
  char mask[32];
  std::snprintf(mask, sizeof mask, ", mask %08x", thread.mask);
  return std::string(text) + mask;
}

void Block::fail(const std::string& why) {
  std::fprintf(stderr, "emulation: %s: thread %d of block %u, in %s\n", why.c_str(), running_,
               blockIdx.x, kernel_);
  for (int t = 0; t < count_;) {
    const int first = t;
    const std::string place = place_of(*threads_[first]);
    while (t < count_ && place_of(*threads_[t]) == place) ++t;
    std::fprintf(stderr, "  threads %d to %d: %s\n", first, t - 1, place.c_str());
  }
  std::fflush(nullptr);
  std::_Exit(1);
}

}  // namespace

void meet_block(const Site& site) { block.meet_all(At::kBlock, site); }

void meet_dependency(const Site& site) {
  if (block.dependent()) block.meet_all(At::kDependency, site);
}

Taken meet_warp(const Site& site, unsigned mask, uint64_t value, int source) {
  return block.meet_warp(site, mask, value, source);
}

void run_block(const char* kernel, int threads, bool overlap, const std::function<void()>& body) {
  block.run(kernel, threads, overlap, body);
}

}  // namespace emulation
