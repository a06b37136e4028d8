// The one source of chance: the seed is the driver's.
#pragma once

#include <cstdint>

namespace emulation {

inline uint64_t random_state = 0;

// Below `bound`, evenly enough. (splitmix64)
inline unsigned draw_below(unsigned bound) {
  uint64_t z = random_state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return static_cast<unsigned>(((z ^ z >> 31) >> 32) * bound >> 32);
}

}  // namespace emulation
