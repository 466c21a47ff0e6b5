#include "frames.hpp"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "lz4_block.hpp"

namespace efficientzero {
namespace {

// Rows [begin, end); `first_bad` becomes the lowest row of a damaged block.
void decode_share(const Blocks& blocks, int64_t begin, int64_t end, uint8_t* out, std::atomic<int64_t>& first_bad) {
  for (int64_t row = begin; row < end; ++row) {
    uint8_t* const place = out + row * blocks.row_size;
    if (row > begin && blocks.data[row] == blocks.data[row - 1]) {
      std::memcpy(place, place - blocks.row_size, blocks.row_size);
    } else if (!decode_lz4_block(blocks.data[row], blocks.sizes[row], place, blocks.row_size)) {
      int64_t lowest = first_bad.load();
      while (row < lowest && !first_bad.compare_exchange_weak(lowest, row)) {
      }
      return;
    }
  }
}

}  // namespace

int64_t decode_blocks(const Blocks& blocks, uint8_t* out, int64_t num_threads) {
  const int64_t shares = std::clamp<int64_t>(num_threads, 1, std::max<int64_t>(blocks.count, 1));
  std::atomic<int64_t> first_bad{blocks.count};
  std::vector<std::thread> threads;
  for (int64_t share = 1; share < shares; ++share) {
    threads.emplace_back(decode_share, std::cref(blocks), blocks.count * share / shares,
                         blocks.count * (share + 1) / shares, out, std::ref(first_bad));
  }
  decode_share(blocks, 0, blocks.count / shares, out, first_bad);
  for (auto& thread : threads) thread.join();
  return first_bad == blocks.count ? -1 : first_bad.load();
}

}  // namespace efficientzero
