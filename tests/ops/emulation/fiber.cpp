#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {
namespace {

constexpr size_t kStack = 256 << 10, kGuard = 4096;  // only pages that are touched cost memory

Fiber *leaving, *arriving;  // of the change under way
void* fake_stack = nullptr;

#ifdef __x86_64__
// swapcontext would do, but for a system call and a sanitizer that forgets the stack's redzones at
// every change. All that a callee has to keep is on the stack that is left.
extern "C" void emulation_change_stack(void** leave, void* enter);
asm(R"(
.text
.type emulation_change_stack, @function
emulation_change_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_change_stack, .-emulation_change_stack
)");
#endif

}  // namespace

Fiber::Fiber(Body body) : body_(body), size_(kStack) {
  void* const mapped = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED || mprotect(mapped, kGuard, PROT_NONE) != 0) {
    std::perror("emulation: the stack of a thread");
    std::exit(1);
  }
  char* const bottom = static_cast<char*>(mapped) + kGuard;
  bottom_ = bottom;
#ifdef __x86_64__
  // What emulation_change_stack pops: six registers, and begin() as the address to return to. The
  // zero above is begin's own return address, which puts the stack where a call would.
  uintptr_t* top = reinterpret_cast<uintptr_t*>(bottom + kStack);
  *--top = 0;
  *--top = reinterpret_cast<uintptr_t>(&Fiber::begin);
  for (int i = 0; i < 6; ++i) *--top = 0;
  stack_pointer_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = bottom;
  context_.uc_stack.ss_size = kStack;
  makecontext(&context_, &Fiber::begin, 0);
#endif
}

void Fiber::begin() {
  arrived();
  arriving->body_();
  std::abort();
}

void Fiber::arrived() {
#ifdef __SANITIZE_ADDRESS__
  // Where the stack that was left lies: for the process's own, this is how it becomes known.
  __sanitizer_finish_switch_fiber(fake_stack, &leaving->bottom_, &leaving->size_);
#endif
}

void Fiber::change(Fiber& from, Fiber& to) {
  leaving = &from;
  arriving = &to;
#ifdef __SANITIZE_ADDRESS__
  void* kept = nullptr;
  __sanitizer_start_switch_fiber(&kept, to.bottom_, to.size_);
#endif
#ifdef __x86_64__
  emulation_change_stack(&from.stack_pointer_, to.stack_pointer_);
#else
  swapcontext(&from.context_, &to.context_);
#endif
#ifdef __SANITIZE_ADDRESS__
  fake_stack = kept;
#endif
  arrived();
}

}  // namespace emulation
