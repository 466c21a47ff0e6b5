// The tree's random numbers: one stream per root.
#pragma once

#include <cstdint>

namespace efficientzero {

// splitmix64 hashes a counter, so that neighbouring seeds give unrelated streams.
inline uint64_t next_random(uint64_t& state) {
  uint64_t x = state += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

inline int random_below(uint64_t& state, int count) {
  return static_cast<int>((next_random(state) >> 32) * static_cast<uint64_t>(count) >> 32);
}

inline uint64_t root_stream(uint64_t seed, uint64_t root) {
  uint64_t state = seed;
  state = next_random(state) + root;
  return next_random(state);
}

}  // namespace efficientzero
