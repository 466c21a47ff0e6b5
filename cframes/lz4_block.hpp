// Decoding of LZ4 blocks directly to their destination, optimised for data in which short patterns repeat.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace efficientzero {

// Adds the further bytes of a length above 14, of which only the last is not 255. False if the input ends before that.
inline bool add_to_length(const uint8_t*& in, const uint8_t* in_end, size_t& length) {
  uint8_t byte = 255;
  while (byte == 255) {
    if (in == in_end) return false;
    byte = *in++;
    length += byte;
  }
  return true;
}

// Writes `length` bytes at `out` that repeat the `distance` bytes before it.
inline void repeat(uint8_t* out, size_t distance, size_t length) {
  const uint8_t* const pattern = out - distance;
  // The bytes that can be copied at once double with every copy: a run of one colour needs only a few copies, while
  // liblz4 moves eight bytes at a time.
  while (length > 0) {
    const size_t known = static_cast<size_t>(out - pattern);
    const size_t count = known < length ? known : length;
    std::memcpy(out, pattern, count);
    out += count;
    length -= count;
  }
}

// Decodes an LZ4 block (https://github.com/lz4/lz4/blob/dev/doc/lz4_Block_format.md) into `out`. False if the block is
// damaged or does not decode to exactly `out_size` bytes. Never reads or writes outside of both, whatever `in` holds.
inline bool decode_lz4_block(const uint8_t* in, size_t in_size, uint8_t* out, size_t out_size) {
  constexpr size_t kPiece = 16;  // most literals and matches are shorter; copying a fixed size needs no branches
  const uint8_t* const in_end = in + in_size;
  uint8_t* const out_begin = out;
  uint8_t* const out_end = out + out_size;
  while (in < in_end) {
    const uint8_t token = *in++;

    size_t literals = token >> 4;
    if (literals == 15 && !add_to_length(in, in_end, literals)) return false;
    const size_t in_left = static_cast<size_t>(in_end - in);
    size_t out_left = static_cast<size_t>(out_end - out);
    if (literals > in_left || literals > out_left) return false;
    const bool short_literals = literals <= kPiece && in_left >= kPiece && out_left >= kPiece;
    std::memcpy(out, in, short_literals ? kPiece : literals);
    in += literals;
    out += literals;
    out_left -= literals;
    if (in == in_end) break;  // the last sequence has no match

    if (in_end - in < 2) return false;
    const size_t distance = static_cast<size_t>(in[0]) | static_cast<size_t>(in[1]) << 8;
    in += 2;
    if (distance == 0 || distance > static_cast<size_t>(out - out_begin)) return false;
    size_t length = token & 15;
    if (length == 15 && !add_to_length(in, in_end, length)) return false;
    length += 4;
    if (length > out_left) return false;
    if (length <= kPiece && distance >= kPiece && out_left >= kPiece) {
      std::memcpy(out, out - distance, kPiece);
    } else {
      repeat(out, distance, length);
    }
    out += length;
  }
  return out == out_end;
}

}  // namespace efficientzero
