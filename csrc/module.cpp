// steerfast._C: what was built. No tensor crosses this module; the operators are in ops.cpp.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "What the compiled part of steerfast was built with.";
  m.def(
      "build_info",
      [] {
        py::dict info;
        info["isas"] = std::vector<std::string>{STEERFAST_BUILT_ISAS};
        info["cuda_archs"] = std::vector<std::string>{STEERFAST_BUILT_CUDA_ARCHS};
        info["torch_abi_target"] = STEERFAST_TORCH_TARGET;
        info["compiler"] = __VERSION__;
        return info;
      },
      "CPU instruction sets, CUDA architectures, the LibTorch ABI target and the compiler.");
}
