// Runs calls of launch_steer on the emulated device:
//
//   driver CALLS RESULTS [--seed=0] [--multiprocessors=2] [--blocks=2] [--major=9]
//                        [--shared=227] [--granted=227] [--overlap=1]
//   driver --round FLOATS HALVES   every float32 of a file, rounded to bfloat16 and to half
//
// and prints a line for each launch: the number of the call, blocks, threads, whether the launch is
// a dependent one, bytes of shared memory (the kernel's own, asked for, allowed), and the signature
// of the function that launched it, which names the kernel.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

#include "calls.h"
#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "launch.h"
#include "random.h"
#include "runtime.h"

// Leaks are of no interest, and to look for them is not allowed everywhere.
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }
extern "C" const char* __ubsan_default_options() { return "print_stacktrace=1"; }

namespace {

const std::vector<std::string> kOutputs = {"stream", "normed", "emptied"};

// A new field of SteerParams takes a line here, and its value in tests/ops/emulated.py.
steerfast::SteerParams params_of(emulation::Call& call) {
  steerfast::SteerParams p = {};
  call.array("x", p.x);
  call.array("residual", p.residual);
  call.array("stream", p.stream);
  call.array("weight", p.weight);
  call.array("normed", p.normed);
  call.array("emptied", p.emptied);
  call.scalar("rows", p.rows);
  call.scalar("width", p.width);
  call.scalar("x_stride", p.x_stride);
  call.scalar("residual_stride", p.residual_stride);
  call.scalar("stream_stride", p.stream_stride);
  call.scalar("normed_stride", p.normed_stride);
  call.scalar("eps", p.eps);
  call.scalar("fp32_norm", p.fp32_norm);
  call.scalar("dtype", p.dtype);
  call.scalar("weight_dtype", p.weight_dtype);
  call.array("row_slot", p.row_slot);
  call.array("row_gain", p.row_gain);
  call.array("records", p.records);
  call.array("reads", p.reads);
  call.array("bank", p.bank);
  call.scalar("slots", p.slots);
  call.scalar("programs", p.programs);
  call.scalar("bank_rows", p.bank_rows);
  call.expect_all_used();
  return p;
}

std::FILE* open_file(const char* path, const char* mode) {
  std::FILE* const file = std::fopen(path, mode);
  if (!file) throw std::runtime_error(std::string("cannot open ") + path);
  return file;
}

void run(const char* calls, const char* results) {
  std::FILE* const in = open_file(calls, "rb");
  std::FILE* const out = open_file(results, "wb");
  const int64_t count = emulation::read_int(in);
  for (int64_t number = 0; number < count; ++number) {
    emulation::Call call(in);
    const steerfast::SteerParams p = params_of(call);
    emulation::hooks.launched = [number](const emulation::Launch& launch) {
      std::printf("%lld\t%u\t%u\t%d\t%lld\t%lld\t%lld\t%s\n", static_cast<long long>(number),
                  launch.blocks, launch.threads, launch.overlap, static_cast<long long>(launch.own),
                  static_cast<long long>(launch.asked), static_cast<long long>(launch.allowed),
                  launch.caller);
      std::fflush(stdout);
    };
    // The norm's weight alone is nothing that the kernel ahead may write (see select_overlap).
    emulation::hooks.close = [&call] {
      for (const emulation::Array& array : call.arrays()) {
        if (!array.is("weight")) array.buffer.close();
      }
    };
    emulation::hooks.open = [&call] {
      for (const emulation::Array& array : call.arrays()) array.buffer.open();
    };
    steerfast::launch_steer(p, nullptr);
    call.expect_rest_untouched(kOutputs);
    call.write_outputs(out, kOutputs);
  }
  std::fclose(in);
  if (std::fclose(out) != 0) throw std::runtime_error("the results cannot be written");
}

void round_all(const char* floats, const char* halves) {
  std::FILE* const in = open_file(floats, "rb");
  std::FILE* const out = open_file(halves, "wb");
  for (float value; std::fread(&value, sizeof value, 1, in) == 1;) {
    const __nv_bfloat16 bfloat = __float2bfloat16_rn(value);
    const __half half = __float2half_rn(value);
    const float back[] = {__bfloat162float(bfloat), __half2float(half)};
    std::fwrite(back, sizeof back, 1, out);
  }
  std::fclose(in);
  std::fclose(out);
}

bool option(const char* argument, const char* name, int* value) {
  const size_t length = std::strlen(name);
  if (std::strncmp(argument, name, length) != 0 || argument[length] != '=') return false;
  *value = std::atoi(argument + length + 1);
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<const char*> files;
  int seed = 0, overlap = 1;
  bool rounding = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--round") == 0) {
      rounding = true;
    } else if (!option(argv[i], "--seed", &seed) && !option(argv[i], "--overlap", &overlap) &&
               !option(argv[i], "--multiprocessors", &emulation::device.multiprocessors) &&
               !option(argv[i], "--blocks", &emulation::device.blocks_per_multiprocessor) &&
               !option(argv[i], "--major", &emulation::device.major) &&
               !option(argv[i], "--shared", &emulation::device.shared_kib) &&
               !option(argv[i], "--granted", &emulation::device.granted_kib)) {
      files.push_back(argv[i]);
    }
  }
  if (files.size() != 2) {
    std::fprintf(stderr, "see the head of main.cpp for the arguments\n");
    return 2;
  }
  emulation::random_state = static_cast<uint64_t>(seed);
  steerfast::select_overlap(overlap != 0);
  try {
    (rounding ? round_all : run)(files[0], files[1]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "emulation: %s\n", error.what());
    return 1;
  }
  return 0;
}
