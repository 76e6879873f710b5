// Decoder operations for AVX2 with FMA.
#include <immintrin.h>

#include "decoder/ops_impl.h"

namespace twofour {
namespace {

struct Avx2Lanes {
  static constexpr int attention_rows = 4, attention_vectors = 1;
  // GCC splits vectors of 64 bytes in two by itself, but fuses nothing by itself.
  static Floats fused(Floats a, Floats b, Floats c) {
    __m256 x[2], y[2], z[2];
    __builtin_memcpy(x, &a, sizeof x);
    __builtin_memcpy(y, &b, sizeof y);
    __builtin_memcpy(z, &c, sizeof z);
    z[0] = _mm256_fmadd_ps(x[0], y[0], z[0]);
    z[1] = _mm256_fmadd_ps(x[1], y[1], z[1]);
    __builtin_memcpy(&c, z, sizeof z);
    return c;
  }

  // In registers of 32 bytes: a vector of 64 that goes through those intrinsics goes through
  // memory.
  struct Sums {
    __m256 half[2];
  };
  struct Pairs {
    __m256 first[2], second[2];
  };
  struct Pair {
    __m256 first, second;
  };
  static Sums load(const float* from) {
    return {{_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}};
  }
  static void store(float* to, const Sums& sums) {
    for (int h = 0; h < 2; ++h) _mm256_storeu_ps(to + 8 * h, sums.half[h]);
  }
  static Sums scaled(const Sums& sums, float factor) {
    const __m256 all = _mm256_set1_ps(factor);
    return {{_mm256_mul_ps(sums.half[0], all), _mm256_mul_ps(sums.half[1], all)}};
  }
  // A bf16 is the upper half of a float, whose lower half is zero.
  static __m256 first_of(__m256i pairs) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
  }
  static __m256 second_of(__m256i pairs) {
    return _mm256_castsi256_ps(
        _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static Pairs pairs(const std::byte* from) {
    const auto* at = reinterpret_cast<const __m256i*>(from);
    const __m256i half[2] = {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
    return {{first_of(half[0]), first_of(half[1])}, {second_of(half[0]), second_of(half[1])}};
  }
  static Pair pair(const std::uint16_t* from) {
    int word;
    __builtin_memcpy(&word, from, sizeof word);
    const __m256i both = _mm256_set1_epi32(word);
    return {first_of(both), second_of(both)};
  }
  static Sums dot(const Sums& sums, const Pairs& pairs, const Pair& pair) {
    Sums found;
    for (int h = 0; h < 2; ++h) {
      const __m256 first = _mm256_fmadd_ps(pairs.first[h], pair.first, sums.half[h]);
      found.half[h] = _mm256_fmadd_ps(pairs.second[h], pair.second, first);
    }
    return found;
  }
};

}  // namespace

const DecoderOps& avx2_decoder_ops() {
  static const DecoderOps table = decoder_ops_of<Avx2Lanes>();
  return table;
}

}  // namespace twofour
