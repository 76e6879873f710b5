// AVX2 with FMA: as AVX-512 without BF16, on half a row block at a time. vpermps looks at three
// bits of each index, so one register of 8 inputs serves two groups and a code's nibble is its own
// table index.
#include <immintrin.h>

#include "kernels/driver.h"
#include "kernels/positions.h"
#include "kernels/prefetch.h"
#include "kernels/tables.h"

namespace twofour {
namespace {

constexpr Positions positions = make_positions(8, 4);

// entry[pair][code]: which bytes of a group's two kept values the first or second two of its four
// inputs take, as a byte shuffle reads it; 0x80 (zero) where an input is not kept.
struct alignas(32) PairBytes {
  std::uint32_t entry[2][8];
};

constexpr PairBytes make_pair_bytes() {
  PairBytes table{};
  for (std::size_t code = 0; code < 8; ++code) {
    for (std::uint32_t input = 0; input < 4; ++input) {
      std::uint32_t bytes = 0x8080;
      for (std::uint32_t kept = 0; kept < 2 && code < placement_count; ++kept) {
        if (placement_pairs[code][kept] == input) bytes = 0x0100 + 0x0202 * kept;
      }
      table.entry[input / 2][code] |= bytes << (16 * (input % 2));
    }
  }
  return table;
}

constexpr PairBytes pair_bytes = make_pair_bytes();

struct Avx2Ops {
  using Activation = float;
  static constexpr std::size_t max_tokens = 6;  // 2 halves x 6 tokens: 12 of 16 registers
  // A product needs a permute, a dense one none: from two panels on a dense tile, made once for all
  // of them, was measured to be faster.
  static constexpr Source shared_source = Source::dense;

  static __m256i load(const std::byte* at) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  }
  static __m256i load_words(const std::uint32_t* at) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(at));
  }
  // The two bf16 of each word as floats: a bf16 is the upper half of a float, whose lower half is
  // zero.
  static __m256 low(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
  static __m256 high(__m256i pairs) {
    return _mm256_castsi256_ps(
        _mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }

  // Each group's pair of kept values becomes two pairs of four, zeros where nothing is kept.
  static void expand(const std::byte* w, std::size_t tiles, std::byte* to) {
    const __m256i own_word = _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404,
                                               0x08080808, 0x0c0c0c0c);
    const __m256i tables[2] = {load_words(pair_bytes.entry[0]), load_words(pair_bytes.entry[1])};
    for (std::size_t tile = 0; tile < tiles; ++tile, w += sparse_tile_bytes) {
      const __m256i codes[2] = {load(w), load(w + 32)};
#pragma GCC unroll 8
      for (int g = 0; g < 8; ++g) {
        for (int h = 0; h < 2; ++h) {
          const __m256i code = _mm256_srli_epi32(codes[h], 4 * g);
          const __m256i kept = load(w + 64 + 64 * g + 32 * h);
          for (int pair = 0; pair < 2; ++pair) {
            const __m256i bytes = _mm256_permutevar8x32_epi32(tables[pair], code);
            const __m256i where = _mm256_or_si256(bytes, own_word);
            _mm256_store_si256(reinterpret_cast<__m256i*>(to + dense_tile_bytes * tile + 128 * g +
                                                          64 * pair + 32 * h),
                               _mm256_shuffle_epi8(kept, where));
          }
        }
      }
    }
  }

  template <Source S, int R, int T>
  static void block(const Part<R>& part, const Activation* x, std::size_t tiles, float* acc) {
    constexpr Layout L = layout_of(S);
    for (int r = 0; r < R; ++r) {
      const Part<1> one{{part.w[r]}, {}, part.skip, {part.next[r]}, part.next_lines};
      one_block<L, T>(one, x, tiles, acc + r * T * 16);
    }
  }

  template <Layout L, int T>
  static inline __attribute__((always_inline)) void one_block(const Part<1>& one,
                                                              const Activation* x,
                                                              std::size_t tiles, float* acc) {
    __m256 sum[2][T];
    for (int h = 0; h < 2; ++h) {
      for (int t = 0; t < T; ++t) sum[h][t] = _mm256_loadu_ps(acc + t * 16 + 8 * h);
    }
    for (std::size_t tile = 0; tile < tiles; ++tile) {
      const Activation* in = x + tile * T * tile_inputs;
      const std::byte* from = one.w[0] + tile * tile_bytes(L);
      prefetch_tile<L, 1>(one, tile, tiles);
      if constexpr (L == Layout::sparse24_bf16) {
        sparse_tile<T>(from, in, sum);
      } else {
        dense_tile<T>(from, in, sum);
      }
    }
    for (int h = 0; h < 2; ++h) {
      for (int t = 0; t < T; ++t) _mm256_storeu_ps(acc + t * 16 + 8 * h, sum[h][t]);
    }
  }

  template <int T>
  static inline __attribute__((always_inline)) void sparse_tile(const std::byte* from,
                                                                const Activation* in,
                                                                __m256 (&sum)[2][T]) {
    const __m256i codes[2] = {load(from), load(from + 32)};
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) {
      // vpermd looks each row's code up among the six entries; it reads three bits of an index, so
      // the group's nibble needs no mask, only to be the lowest. What it finds holds the two places
      // four bits apart, and is itself an index for vpermps as it is and shifted once.
      const __m256i table = load_words(positions.entry[g]);
      for (int h = 0; h < 2; ++h) {
        const __m256i first =
            _mm256_permutevar8x32_epi32(table, _mm256_srli_epi32(codes[h], 4 * g));
        const __m256i second = _mm256_srli_epi32(first, 4);
        const __m256i pairs = load(from + 64 + 64 * g + 32 * h);
        const __m256 left = low(pairs), right = high(pairs);
#pragma GCC unroll 6
        for (int t = 0; t < T; ++t) {
          const __m256 inputs = _mm256_loadu_ps(in + 32 * t + 8 * (g / 2));
          sum[h][t] = _mm256_fmadd_ps(left, _mm256_permutevar8x32_ps(inputs, first), sum[h][t]);
          sum[h][t] = _mm256_fmadd_ps(right, _mm256_permutevar8x32_ps(inputs, second), sum[h][t]);
        }
      }
    }
  }

  template <int T>
  static inline __attribute__((always_inline)) void dense_tile(const std::byte* from,
                                                               const Activation* in,
                                                               __m256 (&sum)[2][T]) {
#pragma GCC unroll 16
    for (int p = 0; p < 16; ++p) {
      const __m256i pairs[2] = {load(from + 64 * p), load(from + 64 * p + 32)};
      add_products<T>(low(pairs[0]), low(pairs[1]), in + 2 * p, sum);
      add_products<T>(high(pairs[0]), high(pairs[1]), in + 2 * p + 1, sum);
    }
  }

  // One input of each token, 32 apart, with the weights of both halves.
  template <int T>
  static inline __attribute__((always_inline)) void add_products(__m256 lower, __m256 upper,
                                                                 const Activation* in,
                                                                 __m256 (&sum)[2][T]) {
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t) {
      const __m256 input = _mm256_broadcast_ss(in + 32 * t);
      sum[0][t] = _mm256_fmadd_ps(lower, input, sum[0][t]);
      sum[1][t] = _mm256_fmadd_ps(upper, input, sum[1][t]);
    }
  }

  static float patch_row(const std::uint32_t* group, const std::uint16_t* delta, std::size_t length,
                         const Activation* x, std::size_t tile_stride) {
    __m128 sum = _mm_setzero_ps();
    for (std::size_t i = 0; i < length; ++i) {
      const float* from = x + (group[i] / tile_groups) * tile_stride + 4 * (group[i] % tile_groups);
      const __m128i change = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(delta + 4 * i));
      const __m128 values = _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(change), 16));
      sum = _mm_fmadd_ps(values, _mm_loadu_ps(from), sum);
    }
    float parts[4];
    _mm_storeu_ps(parts, sum);
    return (parts[0] + parts[1]) + (parts[2] + parts[3]);
  }

  static std::uint64_t read(const std::byte* data, std::size_t bytes) {
    __m256i a = _mm256_setzero_si256(), b = a;
    for (std::size_t i = 0; i + 64 <= bytes; i += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(data + i + prefetch_bytes), _MM_HINT_T0);
      a = _mm256_xor_si256(a, load(data + i));
      b = _mm256_xor_si256(b, load(data + i + 32));
    }
    std::uint64_t parts[4];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(parts), _mm256_xor_si256(a, b));
    return parts[0] ^ parts[1] ^ parts[2] ^ parts[3];
  }

  static const char* kernel_name(Layout layout, std::size_t tokens) {
    if (layout == Layout::dense_bf16) return "dense-ymm-fma";
    return tokens > max_tokens ? "sparse24-ymm-dense-tiles" : "sparse24-ymm-vpermps";
  }
};

}  // namespace

const Kernels& avx2_kernels() {
  static const Kernels table = Driver<Avx2Ops>::table();
  return table;
}

}  // namespace twofour
