// Decodes many stored frames into one array.
#pragma once

#include <cstddef>
#include <cstdint>

namespace efficientzero {

struct Blocks {
  const uint8_t* const* data;  // [count] LZ4 blocks; if the same block follows itself, it is decoded only once
  const size_t* sizes;         // [count] their sizes in bytes
  int64_t count;
  size_t row_size;  // bytes to which each block decodes
};

// Decodes block i into row i of `out` [count, row_size]. Returns the first row whose block is damaged, or -1.
int64_t decode_blocks(const Blocks& blocks, uint8_t* out, int64_t num_threads);

}  // namespace efficientzero
