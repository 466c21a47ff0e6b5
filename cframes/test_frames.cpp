// Decodes random and damaged blocks, for the sanitizers: test_frames <number of blocks>.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

#include "frames.hpp"

int main(int argc, char** argv) {
  const long rounds = argc > 1 ? std::atol(argv[1]) : 100'000;
  std::mt19937 random(1);
  long whole = 0;
  for (long round = 0; round < rounds; ++round) {
    // Memory of exactly these sizes, so that the sanitizers notice any access beyond. Bytes that encode lengths are
    // drawn often.
    const size_t count = 1 + random() % 3, in_size = random() % 60, row_size = random() % 300;
    const std::unique_ptr<uint8_t[]> in(new uint8_t[in_size]), out(new uint8_t[count * row_size]);
    for (size_t i = 0; i < in_size; ++i) {
      const uint8_t choices[] = {0, 1, 255, uint8_t(random() % 16 * 16), uint8_t(random() % 16), uint8_t(random())};
      in[i] = choices[random() % 6];
    }
    const uint8_t* data[3] = {in.get(), in.get(), in.get()};
    const size_t sizes[3] = {in_size, in_size, in_size};
    const efficientzero::Blocks blocks{data, sizes, static_cast<int64_t>(count), row_size};
    const int64_t first_bad = efficientzero::decode_blocks(blocks, out.get(), round % 100 == 0 ? 2 : 1);
    if (first_bad > 0) return std::puts("the same block was whole at first, then damaged"), 1;
    whole += first_bad == -1;
  }
  std::printf("%ld of %ld were whole\n", whole, rounds);
}
