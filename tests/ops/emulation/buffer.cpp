#include "buffer.h"

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace emulation {
namespace {

constexpr int64_t kPage = 4096, kMargin = 256;  // a margin on both sides of a row is always mapped

int64_t page_of(int64_t byte) { return byte / kPage * kPage; }

}  // namespace

Buffer::Buffer(int64_t offset, int64_t row_bytes, std::vector<int64_t> places)
    : row_bytes_(row_bytes), places_(std::move(places)) {
  std::vector<int64_t> ascending = places_;
  std::sort(ascending.begin(), ascending.end());
  const int64_t span = ascending.empty() ? 0 : ascending.back() + row_bytes;
  const int64_t before = kPage + offset;
  mapped_bytes_ = page_of(before + span + kMargin) + kPage;
  void* const mapped = mmap(nullptr, static_cast<size_t>(mapped_bytes_), PROT_NONE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw std::runtime_error("no address space for a buffer");
  mapped_ = static_cast<char*>(mapped);
  data_ = mapped_ + before;

  for (const int64_t place : ascending) {
    char* const begin = mapped_ + page_of(before + place - kMargin);
    char* const end = mapped_ + page_of(before + place + row_bytes + kMargin) + kPage;
    if (!pages_.empty() && begin <= pages_.back().end) {
      pages_.back().end = std::max(pages_.back().end, end);
    } else {
      pages_.push_back({begin, end});
    }
  }
  for (const Range& range : pages_) {
    const size_t bytes = static_cast<size_t>(range.end - range.begin);
    if (mprotect(range.begin, bytes, PROT_READ | PROT_WRITE) != 0)
      throw std::runtime_error("no memory for a buffer");
    std::memset(range.begin, 0xff, bytes);
  }
  close();
  open();
}

Buffer::Buffer(Buffer&& other) noexcept
    : mapped_(std::exchange(other.mapped_, nullptr)),
      data_(other.data_),
      mapped_bytes_(other.mapped_bytes_),
      row_bytes_(other.row_bytes_),
      places_(std::move(other.places_)),
      pages_(std::move(other.pages_)) {}

Buffer::~Buffer() {
  if (!mapped_) return;
  for (const Range& range : pages_)
    ASAN_UNPOISON_MEMORY_REGION(range.begin, range.end - range.begin);
  munmap(mapped_, static_cast<size_t>(mapped_bytes_));
}

void Buffer::open() const {
  for (const int64_t place : places_) ASAN_UNPOISON_MEMORY_REGION(data_ + place, row_bytes_);
}

void Buffer::close() const {
  for (const Range& range : pages_) ASAN_POISON_MEMORY_REGION(range.begin, range.end - range.begin);
}

__attribute__((no_sanitize_address)) bool Buffer::gaps_untouched() const {
  std::vector<int64_t> ascending = places_;
  std::sort(ascending.begin(), ascending.end());
  auto place = ascending.begin();
  for (const Range& range : pages_) {
    for (char* at = range.begin; at < range.end;) {
      if (place != ascending.end() && at >= data_ + *place) {
        at = std::max(at, data_ + *place++ + row_bytes_);
      } else if (static_cast<unsigned char>(*at++) != 0xff) {
        return false;
      }
    }
  }
  return true;
}

}  // namespace emulation
