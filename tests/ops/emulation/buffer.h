// The memory that a kernel is given: rows at chosen places of an address range, and nothing between
// them. Whatever is not a row is poisoned for AddressSanitizer, unmapped where it fills pages (so a
// buffer may span many gigabytes), and filled with 0xff, so that a write that slips between the
// sanitizer's granules of eight bytes is found afterwards.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace emulation {

class Buffer {
 public:
  // Row i: `row_bytes` bytes, places[i] bytes from data(), which is `offset` bytes off a multiple
  // of 256. Rows may overlap.
  Buffer(int64_t offset, int64_t row_bytes, std::vector<int64_t> places);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;

  char* data() const { return data_; }
  char* row(size_t i) const { return data_ + places_[i]; }
  void open() const;   // the rows may be accessed, as after construction
  void close() const;  // nothing may be
  bool gaps_untouched() const;

 private:
  struct Range {
    char *begin, *end;
  };

  char *mapped_ = nullptr, *data_ = nullptr;
  int64_t mapped_bytes_ = 0, row_bytes_;
  std::vector<int64_t> places_;
  std::vector<Range> pages_;  // those that can be accessed at all, ascending
};

}  // namespace emulation
