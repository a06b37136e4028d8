#include "calls.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace emulation {
namespace {

void read(std::FILE* file, void* to, size_t bytes) {
  if (bytes && std::fread(to, bytes, 1, file) != 1)
    throw std::runtime_error("the file of calls ends early");
}

void write(std::FILE* file, const void* from, size_t bytes) {
  if (bytes && std::fwrite(from, bytes, 1, file) != 1)
    throw std::runtime_error("the results cannot be written");
}

void write_text(std::FILE* file, const std::string& text) {
  const int64_t length = static_cast<int64_t>(text.size());
  write(file, &length, sizeof length);
  write(file, text.data(), text.size());
}

std::string read_text(std::FILE* file) {
  std::string text(static_cast<size_t>(read_int(file)), '\0');
  read(file, text.data(), text.size());
  return text;
}

bool among(const std::vector<std::string>& names, const std::string& name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t end; (end = text.find(',', begin)) != std::string::npos; begin = end + 1)
    parts.push_back(text.substr(begin, end - begin));
  parts.push_back(text.substr(begin));
  return parts;
}

Array read_array(std::FILE* file) {
  std::vector<std::string> names = split(read_text(file));
  const int64_t offset = read_int(file), rows = read_int(file), row_bytes = read_int(file);
  std::vector<int64_t> places(static_cast<size_t>(rows));
  read(file, places.data(), places.size() * sizeof(int64_t));
  std::string content(static_cast<size_t>(rows * row_bytes), '\0');
  read(file, content.data(), content.size());
  Buffer buffer(offset, row_bytes, std::move(places));
  for (int64_t i = 0; i < rows; ++i)
    std::memcpy(buffer.row(static_cast<size_t>(i)), content.data() + i * row_bytes,
                static_cast<size_t>(row_bytes));
  return {std::move(names), std::move(content), row_bytes, static_cast<size_t>(rows),
          std::move(buffer)};
}

}  // namespace

int64_t read_int(std::FILE* file) {
  int64_t value = 0;
  read(file, &value, sizeof value);
  return value;
}

bool Array::is(const std::string& name) const { return among(names, name); }

std::string Array::now() const {
  std::string all;
  for (size_t i = 0; i < rows; ++i) all.append(buffer.row(i), static_cast<size_t>(row_bytes));
  return all;
}

Call::Call(std::FILE* file) {
  for (int64_t left = read_int(file); left > 0; --left) {
    const std::string name = read_text(file);
    read(file, &scalars_[name], sizeof(double));
  }
  for (int64_t left = read_int(file); left > 0; --left) arrays_.push_back(read_array(file));
}

const double* Call::find_scalar(const std::string& name) {
  used_.push_back(name);
  const auto found = scalars_.find(name);
  return found == scalars_.end() ? nullptr : &found->second;
}

const Array* Call::find_array(const std::string& name) {
  used_.push_back(name);
  for (const Array& array : arrays_) {
    if (array.is(name)) return &array;
  }
  return nullptr;
}

void Call::expect_all_used() const {
  std::vector<std::string> given;
  for (const auto& scalar : scalars_) given.push_back(scalar.first);
  for (const Array& array : arrays_)
    given.insert(given.end(), array.names.begin(), array.names.end());
  for (const std::string& name : given) {
    if (!among(used_, name)) throw std::runtime_error("main.cpp knows no parameter " + name);
  }
}

void Call::write_outputs(std::FILE* file, const std::vector<std::string>& names) const {
  std::vector<std::pair<std::string, std::string>> outputs;
  for (const std::string& name : names) {
    for (const Array& array : arrays_) {
      if (array.is(name)) outputs.emplace_back(name, array.now());
    }
  }
  const int64_t count = static_cast<int64_t>(outputs.size());
  write(file, &count, sizeof count);
  for (const auto& [name, content] : outputs) {
    write_text(file, name);
    write_text(file, content);
  }
}

void Call::expect_rest_untouched(const std::vector<std::string>& outputs) const {
  for (const Array& array : arrays_) {
    if (!array.buffer.gaps_untouched())
      throw std::runtime_error("a write between the rows of " + array.names[0]);
    bool output = false;
    for (const std::string& name : outputs) output = output || array.is(name);
    if (!output && array.now() != array.content)
      throw std::runtime_error("a write to " + array.names[0] + ", which is an input only");
  }
}

}  // namespace emulation
