#include "frames.hpp"

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "lz4_block.hpp"

namespace efficientzero {
namespace {

// Decodes rows [begin, end), up to the first damaged block; `first_bad` becomes the minimum of itself and that row.
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
  const auto begin_of = [&](int64_t share) { return blocks.count * share / shares; };
  std::vector<std::thread> threads;
  int64_t share = 1;
  try {
    for (; share < shares; ++share) {
      threads.emplace_back(decode_share, std::cref(blocks), begin_of(share), begin_of(share + 1), out,
                           std::ref(first_bad));
    }
  } catch (const std::system_error&) {
    // The system allows no more threads: this one decodes the shares that have none.
    decode_share(blocks, begin_of(share), blocks.count, out, first_bad);
  }
  decode_share(blocks, 0, begin_of(1), out, first_bad);
  for (auto& thread : threads) thread.join();
  return first_bad == blocks.count ? -1 : first_bad.load();
}

}  // namespace efficientzero
