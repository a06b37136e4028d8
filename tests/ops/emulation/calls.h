// Calls of the driver, from a file and their results to another. All numbers are little-endian.
//
//   file    := count, count calls
//   call    := count, count scalars; count, count arrays
//   scalar  := name, float64 (integers below 2^53 are exact)
//   array   := names, offset, rows, row_bytes, [rows] places, the bytes of the rows
//   name    := length, bytes; names: one or, for an array with several roles, more, comma between
//   results := for every call: count, count outputs; output := name, length, the bytes of its rows
//
// Counts, lengths, offset, rows, row_bytes and places are int64; the last four are explained in
// buffer.h. A parameter that a call does not mention keeps its default.
#pragma once

#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "buffer.h"

namespace emulation {

struct Array {
  std::vector<std::string> names;
  std::string content;  // as given
  int64_t row_bytes;
  size_t rows;
  Buffer buffer;

  bool is(const std::string& name) const;
  std::string now() const;  // its rows, one behind the other
};

class Call {
 public:
  explicit Call(std::FILE* file);

  template <typename T>
  void scalar(const char* name, T& field) {
    if (const double* const value = find_scalar(name)) field = static_cast<T>(*value);
  }
  template <typename T>
  void array(const char* name, T*& field) {
    if (const Array* const found = find_array(name))
      field = reinterpret_cast<T*>(found->buffer.data());
  }
  template <typename T>
  void array(const char* name, const T*& field) {
    if (const Array* const found = find_array(name))
      field = reinterpret_cast<T*>(found->buffer.data());
  }
  void expect_all_used() const;  // a name that no parameter has would be silently without effect

  const std::vector<Array>& arrays() const { return arrays_; }
  void write_outputs(std::FILE* file, const std::vector<std::string>& names) const;
  void expect_rest_untouched(const std::vector<std::string>& outputs) const;

 private:
  const double* find_scalar(const std::string& name);
  const Array* find_array(const std::string& name);

  std::map<std::string, double> scalars_;
  std::vector<Array> arrays_;
  std::vector<std::string> used_;
};

int64_t read_int(std::FILE* file);

}  // namespace emulation
