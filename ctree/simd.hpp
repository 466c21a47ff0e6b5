// Operations on four floats by the vector extension of GCC and Clang, which needs no -march flag to use SSE2 or NEON.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace efficientzero {

constexpr int kLanes = 4;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));
typedef uint32_t Uint4 __attribute__((vector_size(16)));  // unsigned: it may wrap

inline Float4 load4(const float* from) {
  Float4 x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
inline void store4(float* to, Float4 x) { std::memcpy(to, &x, sizeof x); }
inline Float4 broadcast4(float x) { return Float4{x, x, x, x}; }

// A comparison with NaN is false, so NaN lanes of `x` leave `best` as it is.
inline Float4 max4(Float4 best, Float4 x) { return x > best ? x : best; }
inline Float4 min4(Float4 best, Float4 x) { return x < best ? x : best; }

inline float highest(Float4 x) {
  x = max4(x, Float4{x[2], x[3], x[0], x[1]});
  return x[0] > x[1] ? x[0] : x[1];
}
inline float lowest(Float4 x) {
  x = min4(x, Float4{x[2], x[3], x[0], x[1]});
  return x[0] < x[1] ? x[0] : x[1];
}
inline float total(Float4 x) { return (x[0] + x[1]) + (x[2] + x[3]); }

// Returns bits, of which bit i says whether the comparison is true in lane i.
inline int bits4(Int4 lanes) {
#ifdef __SSE2__
  return _mm_movemask_ps(_mm_castsi128_ps(reinterpret_cast<__m128i>(lanes)));
#else
  lanes &= Int4{1, 2, 4, 8};
  return (lanes[0] | lanes[1]) | (lanes[2] | lanes[3]);
#endif
}
inline int count_bits4(int bits) { return static_cast<int>(0x4332322132212110 >> (4 * bits) & 15); }
// The first lane whose bit is set; any lane if none is.
inline int first_lane(int bits) { return __builtin_ctz(static_cast<unsigned>(bits) | 8u); }

// e^x with an error of at most 2 units in the last place; e^-87 for NaN and below -87, where it would be denormal.
inline Float4 exp4(Float4 x) {
  x = min4(max4(broadcast4(-87.0f), x), broadcast4(88.0f));
  // Adding 1.5 * 2^23 rounds to an integer, which is then in the low bits of the sum.
  const Float4 shifter = broadcast4(12582912.0f);
  const Float4 shifted = x * 1.44269504f + shifter;
  const Float4 n = shifted - shifter;
  // ln 2 in two parts, the first short enough that n times it is exact.
  const Float4 r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  // The Taylor polynomial, |r| <= ln(2) / 2, evaluated in pairs: Horner's chain would take twice as long.
  const Float4 r2 = r * r;
  const Float4 low = (r + 1.0f) + r2 * (r * (1.0f / 6) + 0.5f);
  const Float4 high = (r * (1.0f / 120) + 1.0f / 24) + r2 * (r * (1.0f / 5040) + 1.0f / 720);
  Float4 sum = low + (r2 * r2) * high;
  Uint4 bits, power;
  std::memcpy(&bits, &sum, sizeof bits);
  std::memcpy(&power, &shifted, sizeof power);
  bits += power << 23;
  std::memcpy(&sum, &bits, sizeof sum);
  return sum;
}

}  // namespace efficientzero
