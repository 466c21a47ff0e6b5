// Arithmetic on a node's row: one float per action, padded with -inf to a multiple of 4. A row first holds the
// network's logits. Before a descent first needs the prior, they become weights e^(logit - largest logit), which are
// proportional to it. An action is "closed", -inf, if it has a child already or must never be taken; else it is "open".
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "simd.hpp"

namespace efficientzero {

constexpr float kLargestFloat = std::numeric_limits<float>::max();

inline size_t pad(size_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

struct LogitsFound {
  bool valid;     // none is NaN or +inf, and at least one is finite
  bool all_open;  // none is -inf
};

// Copies logits [count] into a row.
inline LogitsFound store_logits(const float* logits, size_t count, float* row) {
  Float4 top = broadcast4(-kInfinity), bottom = broadcast4(kInfinity);
  Int4 good = {-1, -1, -1, -1};
  const auto look_at = [&](Float4 x) {
    top = max4(top, x);
    bottom = min4(bottom, x);
    good &= x <= kLargestFloat;  // false for NaN
  };
  if (count < kLanes) {
    store4(row, broadcast4(-kInfinity));
    for (size_t a = 0; a < count; ++a) look_at(broadcast4(row[a] = logits[a]));
  } else {
    size_t a = 0;
    for (; a + kLanes <= count; a += kLanes) {
      const Float4 x = load4(logits + a);
      look_at(x);
      store4(row + a, x);
    }
    if (a < count) {  // The last four, which overlap those before.
      const Float4 x = load4(logits + count - kLanes);
      look_at(x);
      store4(row + a, broadcast4(-kInfinity));
      store4(row + count - kLanes, x);
    }
  }
  return {bits4(good) == 15 && highest(top) > -kInfinity, lowest(bottom) > -kInfinity};
}

struct Weights {
  float largest_logit;
  float taken;      // weight of the action that this call closes
  float open_best;  // the largest weight of the open actions
  float open_sum;   // sum of the weights of the open actions
};

// Turns a row of logits into weights and closes `taken_action`, or none if that is -1.
inline Weights weigh(float* row, size_t padded, int taken_action) {
  const Float4 closed = broadcast4(-kInfinity), zero = broadcast4(0.0f);
  Float4 top = closed;
  for (size_t a = 0; a < padded; a += kLanes) top = max4(top, load4(row + a));
  const float largest = highest(top);
  Float4 taken = zero, sum = zero, best = closed;
  Int4 lanes = Int4{0, 1, 2, 3} - taken_action;
  for (size_t a = 0; a < padded; a += kLanes, lanes += kLanes) {
    const Float4 logits = load4(row + a), weights = exp4(logits - largest);
    const Int4 is_taken = lanes == 0, is_open = (logits > closed) & ~is_taken;
    const Float4 open = is_open ? weights : closed;
    taken += is_taken ? weights : zero;
    sum += is_open ? weights : zero;
    best = max4(best, open);
    store4(row + a, open);
  }
  return {largest, total(taken), highest(best), total(sum)};
}

inline float open_best(const float* row, size_t padded) {
  Float4 best = load4(row);
  for (size_t a = kLanes; a < padded; a += kLanes) best = max4(best, load4(row + a));
  return highest(best);
}

inline float open_sum(const float* row, size_t padded) {
  const Float4 closed = broadcast4(-kInfinity), zero = broadcast4(0.0f);
  Float4 sum = zero;
  for (size_t a = 0; a < padded; a += kLanes) {
    const Float4 x = load4(row + a);
    sum += x > closed ? x : zero;
  }
  return total(sum);
}

// Bits of those of up to 64 actions from `begin` that have at least the weight `least`, which must not be -inf.
inline uint64_t open_bits(const float* row, size_t begin, size_t end, float least) {
  uint64_t bits = 0;
  for (size_t a = end; a > begin; a -= kLanes) bits = bits << kLanes | bits4(load4(row + a - kLanes) >= least);
  return bits;
}

inline int count_open(const float* row, size_t padded, float least) {
  int count = 0;
  for (size_t a = 0; a < padded; a += kLanes) count += count_bits4(bits4(load4(row + a) >= least));
  return count;
}

// The n-th of the actions that count_open() counts, n from 0 and less than their number.
inline int nth_open(const float* row, size_t padded, float least, int n) {
  // Compares 64 actions without a branch, since the CPU cannot predict at which of them the n-th is.
  for (size_t begin = 0;; begin += 64) {
    uint64_t bits = open_bits(row, begin, padded < begin + 64 ? padded : begin + 64, least);
    for (; bits != 0; bits &= bits - 1, --n) {
      if (n == 0) return static_cast<int>(begin) + __builtin_ctzll(bits);
    }
  }
}

inline int first_best(const float* row, size_t padded) { return nth_open(row, padded, open_best(row, padded), 0); }

}  // namespace efficientzero
