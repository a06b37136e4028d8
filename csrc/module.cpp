// steerfast._C: what was built, and the host router. No tensor crosses this module; the operators
// are in ops.cpp.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "router.h"

namespace py = pybind11;
using steerfast::Itinerary;
using steerfast::Router;

namespace {

// Integers from Python: an int64 array as it is, any other sequence item by item, which for the
// hundreds of a batch is faster than making an array of a list.
class Numbers {
 public:
  explicit Numbers(const py::object& given) {
    if (py::isinstance<py::array_t<int64_t, py::array::c_style>>(given)) {
      array_ = given.cast<py::array_t<int64_t, py::array::c_style>>();
      return;
    }
    const auto items = py::reinterpret_steal<py::object>(
        PySequence_Fast(given.ptr(), "integers are expected: an int64 array or a sequence"));
    if (!items) throw py::error_already_set();
    const Py_ssize_t size = PySequence_Fast_GET_SIZE(items.ptr());
    copied_.resize(size);
    for (Py_ssize_t i = 0; i < size; i++) {
      copied_[i] = PyLong_AsLongLong(PySequence_Fast_GET_ITEM(items.ptr(), i));
      if (copied_[i] == -1 && PyErr_Occurred()) throw py::error_already_set();
    }
  }
  const int64_t* data() const { return array_ ? array_->data() : copied_.data(); }
  int64_t size() const { return array_ ? array_->size() : static_cast<int64_t>(copied_.size()); }

 private:
  std::optional<py::array_t<int64_t, py::array::c_style>> array_;
  std::vector<int64_t> copied_;
};

int64_t fill(const Router& router, const py::object& seat, const py::object& from,
             const py::object& tokens, py::array_t<int32_t, py::array::c_style> rows) {
  const Numbers seats(seat), first(from), count(tokens);
  if (seats.size() != first.size() || seats.size() != count.size())
    throw std::invalid_argument("a seat, a first position and a count for each request");
  if (rows.ndim() != 2 || rows.shape(0) != 5)
    throw std::invalid_argument("rows is an int32 array of [5, capacity]");
  const int64_t capacity = rows.shape(1);
  int32_t* out = rows.mutable_data();
  return router.fill(
      {seats.data(), first.data(), count.data(), seats.size()},
      {out, out + capacity, out + 2 * capacity, out + 3 * capacity, out + 4 * capacity, capacity});
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "What the compiled part of steerfast was built with, and the host router.";
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
  py::class_<Router>(m, "Router",
                     "Fills the route of a ragged batch; see steerfast.routing.router.")
      .def(py::init<int64_t>(), py::arg("seats"))
      .def_property_readonly("seats", &Router::seats)
      .def(
          "set",
          [](Router& router, int64_t seat, std::vector<int64_t> starts, std::vector<int32_t> slots,
             std::vector<int64_t> gain_at, std::vector<double> gains) {
            router.set(seat, Itinerary{std::move(starts), std::move(slots), std::move(gain_at),
                                       std::move(gains)});
          },
          py::arg("seat"), py::arg("starts"), py::arg("slots"), py::arg("gain_at"),
          py::arg("gains"))
      .def("fill", &fill, py::arg("seats"), py::arg("first"), py::arg("count"),
           py::arg("rows").noconvert());
}
