// A stack of its own to run on: the threads of an emulated block are fibers.
#pragma once

#include <cstddef>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emulation {

class Fiber {
 public:
  using Body = void (*)();

  Fiber() = default;          // the stack that this process already runs on
  explicit Fiber(Body body);  // a new one; body begins with the first switch to it, never returns
  Fiber(const Fiber&) = delete;

  static void change(Fiber& from, Fiber& to);

 private:
  static void begin();
  static void arrived();

  Body body_ = nullptr;
  const void* bottom_ = nullptr;  // of the stack; AddressSanitizer wants to know
  size_t size_ = 0;
#ifdef __x86_64__
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
};

}  // namespace emulation
