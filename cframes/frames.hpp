// Decoding of many stored frames into one array.
#pragma once

#include <cstddef>
#include <cstdint>

namespace efficientzero {

struct Blocks {
  const uint8_t* const* data;  // [count] LZ4 blocks; neighbours that are the same block are decoded once
  const size_t* sizes;         // [count] their sizes
  int64_t count;
  size_t row_size;  // bytes that each decodes to
};

// Decodes block i into row i of `out` [count, row_size]. Returns the first row whose block is damaged, or -1.
int64_t decode_blocks(const Blocks& blocks, uint8_t* out, int64_t num_threads);

}  // namespace efficientzero
