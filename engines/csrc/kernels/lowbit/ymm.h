// Low-bit kernels in 256-bit registers, eight rows at a time: for AVX2, and for AVX2 with VNNI.
//
// Both have a product of unsigned with signed bytes, and of two signed ones none. So the weight's
// sign moves to the activation: w a = |w| (sign(w) a). That shares nothing with the other tokens,
// but needs no correction. Two such products are at most 2 * 127 * 127 < 2^15: `vpmaddubsw` cannot
// saturate.
//
// `Dot` is a type of the including file's anonymous namespace with dot(sum, magnitudes, signed),
// in_pairs (whether that takes a product of pairs to 16 bits) and names.
#pragma once

#include "kernels/lowbit/driver.h"
#include "kernels/lowbit/intrinsics.h"
#include "kernels/lowbit/spread_table.h"

namespace twofour::lowbit {
namespace {

template <class Dot>
struct YmmOps {
  static constexpr std::size_t max_tokens = 8;  // sums of eight tokens, and half the registers free
  static constexpr int offset = 0;
  static constexpr bool widens = false;
  static constexpr bool multiplies_bitmaps = true;

  static __m256i load(const std::byte* at) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  }
  static __m128i load_half(const std::byte* at) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  }

  // Levels as values but for the minimum: eight times the low or the high nibbles.
  static __m256i low_levels(__m256i nibbles) {
    return _mm256_and_si256(_mm256_slli_epi32(nibbles, 3), _mm256_set1_epi8(0x78));
  }
  static __m256i high_levels(__m256i nibbles) {
    return _mm256_and_si256(_mm256_srli_epi32(nibbles, 1), _mm256_set1_epi8(0x78));
  }

  // The minimum of each of eight rows, four times.
  static __m256i minima_of(const std::byte* minima) {
    if (!minima) return _mm256_set1_epi8(symmetric_minimum);
    const __m128i rows = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(minima));
    return _mm256_shuffle_epi8(
        _mm256_cvtepu8_epi32(rows),
        _mm256_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12, 0, 0, 0, 0, 4, 4, 4, 4,
                         8, 8, 8, 8, 12, 12, 12, 12));
  }

  template <Form F>
  static constexpr int steps = pairs_form(F) ? 4 : 8;

  // Which of eight inputs each kept value takes. A byte of places has four fields of two bits, for
  // four steps. Spread to nibbles, with 4 added for the second group of four, they are indices as
  // they are and shifted once: a byte shuffle looks at four bits of an index, and at the highest,
  // which stays clear.
  struct Indices {
    __m256i even, odd;
    __m256i of_step(int s) const {
      const __m256i nibbles = s % 2 ? odd : even;
      return s < 2 ? nibbles : _mm256_srli_epi32(nibbles, 4);
    }
  };
  template <Form F>
  static Indices indices(const std::byte* tile, int half) {
    __m256i even = _mm256_setzero_si256(), odd = even;
    if constexpr (pairs_form(F)) {
      const __m256i places = load(tile + 32 * half);
      const __m256i fields = _mm256_set1_epi8(0x33), second = _mm256_set1_epi32(0x44440000);
      even = _mm256_or_si256(_mm256_and_si256(places, fields), second);
      odd = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi32(places, 2), fields), second);
    }
    return {even, odd};
  }

  // Each row's four inputs of step `s`.
  template <Form F>
  static inline __attribute__((always_inline)) __m256i inputs_of(const std::uint8_t* x, int s,
                                                                 __m256i index) {
    if constexpr (pairs_form(F)) {
      long long eight;
      __builtin_memcpy(&eight, x + 8 * s, sizeof eight);
      return _mm256_shuffle_epi8(_mm256_set1_epi64x(eight), index);
    } else {
      int four;
      __builtin_memcpy(&four, x + 4 * s, sizeof four);
      return _mm256_set1_epi32(four);
    }
  }

  // The four values of each of eight rows in a tile's vector `s`.
  template <Form F>
  static inline __attribute__((always_inline)) __m256i values(const std::byte* tile, int s,
                                                              int half, __m256i minima) {
    constexpr std::size_t first = pairs_form(F) ? vector_bytes : 0;
    if constexpr (!int4_form(F)) return load(tile + first + 64 * s + 32 * half);
    const __m256i nibbles = load(tile + first + 64 * (s / 2) + 32 * half);
    return _mm256_add_epi8(s % 2 ? high_levels(nibbles) : low_levels(nibbles), minima);
  }

  // H halves of 8 rows, from `half`.
  template <Form F, int H, int T>
  static inline __attribute__((always_inline)) void tile_product(const std::byte* tile, int half,
                                                                 const std::uint8_t* x,
                                                                 const __m256i (&minima)[H],
                                                                 __m256i (&sum)[H][T]) {
    Indices where[H];
    for (int h = 0; h < H; ++h) where[h] = indices<F>(tile, half + h);
#pragma GCC unroll 8
    for (int s = 0; s < steps<F>; ++s) {
#pragma GCC unroll 2
      for (int h = 0; h < H; ++h) {
        const __m256i w = values<F>(tile, s, half + h, minima[h]);
        const __m256i magnitudes = _mm256_abs_epi8(w);
        const __m256i index = where[h].of_step(s);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const __m256i inputs = inputs_of<F>(x + 32 * t, s, index);
          sum[h][t] = Dot::dot(sum[h][t], magnitudes, _mm256_sign_epi8(inputs, w));
        }
      }
    }
  }

  template <Form F, int R, int T>
  static void block(const Part<R>& part, float* acc) {
    for (std::size_t first = 0; first < part.tile_count; first += part.block_tiles) {
      const std::size_t b = first / part.block_tiles;
      const std::size_t last = smaller(first + part.block_tiles, part.tile_count);
      for (int r = 0; r < R; ++r) {
        if constexpr (T == 1 && int4_form(F) && Dot::in_pairs) {
          level_block<F>(part.tiles[r], part.minima[r] ? part.minima[r] + 16 * b : nullptr,
                         part.scales[r] + scale_place(b), part, first, last, acc + 16 * r);
        } else if constexpr (T <= 4) {
          halves<F, R, T, 2>(part, r, 0, first, last, b, acc);
        } else {
          halves<F, R, T, 1>(part, r, 0, first, last, b, acc);
          halves<F, R, T, 1>(part, r, 1, first, last, b, acc);
        }
      }
    }
  }

  // Tiles [first, last), one block of inputs, of H halves of row block r.
  template <Form F, int R, int T, int H>
  static inline __attribute__((always_inline)) void halves(const Part<R>& part, int r, int half,
                                                           std::size_t first, std::size_t last,
                                                           std::size_t b, float* acc) {
    constexpr std::size_t bytes = form_tile_bytes(F);
    __m256i sum[H][T], minima[H];
    for (int h = 0; h < H; ++h) {
      const std::byte* from = part.minima[r] ? part.minima[r] + 16 * b + 8 * (half + h) : nullptr;
      minima[h] = int4_form(F) ? minima_of(from) : _mm256_setzero_si256();
      for (int t = 0; t < T; ++t) sum[h][t] = _mm256_setzero_si256();
    }
    for (std::size_t tile = first; tile < last; ++tile) {
      const std::byte* at = part.tiles[r] + tile * bytes;
      if (part.fetch && half == 0) prefetch_tile<bytes>(at, tile, part.tiles_left, part.skip);
      tile_product<F, H, T>(at, half, part.x + tile * T * 32, minima, sum);
    }
    for (int h = 0; h < H; ++h) {
      add_block<T>(part.scales[r] + scale_place(b) + 16 * (half + h), part.x_scales + b * T, sum[h],
                   acc + 16 * T * r + 8 * (half + h));
    }
  }

  // One token and int4: sum (8 level + minimum) a = 8 sum level a + minimum sum a. Levels have no
  // sign, and eight products of theirs fit in 16 bits (2 * 8 * 15 * 127 < 2^15). Sums of
  // activations alone cost as much as moving signs, so that it does not pay for more tokens.
  template <Form F, int R>
  static inline __attribute__((always_inline)) void level_block(
      const std::byte* tiles, const std::byte* minima, const std::byte* scales, const Part<R>& part,
      std::size_t first, std::size_t last, float* acc) {
    constexpr std::size_t bytes = form_tile_bytes(F), start = pairs_form(F) ? vector_bytes : 0;
    const __m256i ones = _mm256_set1_epi8(1), words = _mm256_set1_epi16(1);
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i sum[2]{}, plain[2]{};
    for (std::size_t tile = first; tile < last; ++tile) {
      const std::byte* at = tiles + tile * bytes;
      const std::uint8_t* x = part.x + 32 * tile;
      if (part.fetch) prefetch_tile<bytes>(at, tile, part.tiles_left, part.skip);
      __m256i pairs[2]{};
      Indices where[2];
      for (int h = 0; h < 2; ++h) where[h] = indices<F>(at, h);
#pragma GCC unroll 8
      for (int s = 0; s < steps<F>; ++s) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; ++h) {
          const __m256i stored = load(at + start + 64 * (s / 2) + 32 * h);
          const __m256i levels =
              _mm256_and_si256(s % 2 ? _mm256_srli_epi32(stored, 4) : stored, nibble);
          const __m256i inputs = inputs_of<F>(x, s, where[h].of_step(s));
          pairs[h] = _mm256_add_epi16(pairs[h], _mm256_maddubs_epi16(levels, inputs));
          if constexpr (pairs_form(F)) {
            plain[h] = _mm256_add_epi16(plain[h], _mm256_maddubs_epi16(ones, inputs));
          }
        }
      }
      for (int h = 0; h < 2; ++h) {
        sum[h] = _mm256_add_epi32(sum[h], _mm256_madd_epi16(pairs[h], words));
      }
      if constexpr (!pairs_form(F)) {
        const __m256i inputs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
        plain[0] = _mm256_add_epi16(plain[0], _mm256_maddubs_epi16(ones, inputs));
      }
    }
    for (int h = 0; h < 2; ++h) {
      __m256i total = _mm256_madd_epi16(plain[pairs_form(F) ? h : 0], words);
      if constexpr (!pairs_form(F)) total = total_of(total);
      const __m256i minimum = minima ? _mm256_cvtepi8_epi32(_mm_loadl_epi64(
                                           reinterpret_cast<const __m128i*>(minima + 8 * h)))
                                     : _mm256_set1_epi32(symmetric_minimum);
      const __m256i product[1] = {
          _mm256_add_epi32(_mm256_slli_epi32(sum[h], 3), _mm256_mullo_epi32(minimum, total))};
      const std::size_t b = first / part.block_tiles;
      add_block<1>(scales + 16 * h, part.x_scales + b, product, acc + 8 * h);
    }
  }

  // The sum of eight lanes, in all of them.
  static __m256i total_of(__m256i v) {
    v = _mm256_add_epi32(v, _mm256_permute2x128_si256(v, v, 1));
    v = _mm256_add_epi32(v, _mm256_shuffle_epi32(v, 0x4e));
    return _mm256_add_epi32(v, _mm256_shuffle_epi32(v, 0xb1));
  }

  template <int T>
  static inline __attribute__((always_inline)) void add_block(const std::byte* scales,
                                                              const float* x_scales,
                                                              const __m256i (&sum)[T], float* acc) {
    const __m256i halves = _mm256_cvtepu16_epi32(load_half(scales));
    const __m256 scale =
        _mm256_mul_ps(_mm256_castsi256_ps(_mm256_slli_epi32(halves, 13)), _mm256_set1_ps(0x1p112f));
    for (int t = 0; t < T; ++t) {
      const __m256 both = _mm256_mul_ps(scale, _mm256_set1_ps(x_scales[t]));
      const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(sum[t]), both);
      _mm256_storeu_ps(acc + 16 * t, _mm256_add_ps(_mm256_loadu_ps(acc + 16 * t), product));
    }
  }

  // How many bits are set before each byte of a 32-bit word: where its values start in the row's.
  static __m256i first_values(__m256i kept) {
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1,
                                           2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i nibble = _mm256_set1_epi8(15);
    const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(kept, nibble));
    const __m256i high =
        _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi32(kept, 4), nibble));
    __m256i counts = _mm256_add_epi8(low, high);
    counts = _mm256_add_epi8(counts, _mm256_slli_epi32(counts, 8));
    counts = _mm256_add_epi8(counts, _mm256_slli_epi32(counts, 16));
    return _mm256_slli_epi32(counts, 8);
  }

  // The 16 values of row 8 half + i.
  template <Layout L>
  static __m128i row_values(const std::byte* tile, const std::byte* minima, int half, int i) {
    if constexpr (!is_int4(L)) {
      return load_half(tile + vector_bytes + 16 * (8 * half + i));
    } else {
      const int row = 8 * half + i;
      const __m128i nibbles = load_half(tile + vector_bytes + 64 * half + 16 * (i % 4));
      const __m128i levels = i < 4 ? _mm_slli_epi32(nibbles, 3) : _mm_srli_epi32(nibbles, 1);
      const int minimum = minima ? static_cast<std::int8_t>(minima[row]) : symmetric_minimum;
      return _mm_add_epi8(_mm_and_si128(levels, _mm_set1_epi8(0x78)),
                          _mm_set1_epi8(static_cast<char>(minimum)));
    }
  }

  // A byte of a bitmap says, by a table, which of its values each of eight inputs takes, or none; a
  // shuffle spreads the row's 16 values over its 32 inputs. `before`: of the row, from
  // first_values.
  template <Layout L>
  static inline __attribute__((always_inline)) __m256i spread_row(const std::byte* tile,
                                                                  const std::byte* minima, int half,
                                                                  int i, int before) {
    const __m256i by_byte = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2,
                                             2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    std::uint8_t kept[4];
    __builtin_memcpy(kept, tile + 32 * half + 4 * i, sizeof kept);
    const __m256i places =
        _mm256_setr_epi64x(spread_table.entry[kept[0]], spread_table.entry[kept[1]],
                           spread_table.entry[kept[2]], spread_table.entry[kept[3]]);
    const __m256i where =
        _mm256_add_epi8(places, _mm256_shuffle_epi8(_mm256_set1_epi32(before), by_byte));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(row_values<L>(tile, minima, half, i)),
                               where);
  }

  template <Layout L>
  static void spread(const std::byte* from, const std::byte* minima, std::byte* to) {
    for (int half = 0; half < 2; ++half) {
      alignas(32) int before[8];
      _mm256_store_si256(reinterpret_cast<__m256i*>(before), first_values(load(from + 32 * half)));
      __m256i row[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) row[i] = spread_row<L>(from, minima, half, i, before[i]);
      transpose(row);
#pragma GCC unroll 8
      for (int s = 0; s < 8; ++s) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 64 * s + 32 * half), row[s]);
      }
    }
  }

  // One token: a row a register, without turning rows into lanes but for the sums.
  template <Layout L, int R>
  static void bitmap_block(const Part<R>& part, float* acc) {
    constexpr std::size_t bytes = tile_bytes(L);
    for (std::size_t first = 0; first < part.tile_count; first += part.block_tiles) {
      const std::size_t b = first / part.block_tiles;
      const std::size_t last = smaller(first + part.block_tiles, part.tile_count);
      for (int r = 0; r < R; ++r) {
        const std::byte* minima = part.minima[r] ? part.minima[r] + 16 * b : nullptr;
        for (int half = 0; half < 2; ++half) {
          __m256i row[8]{};
          for (std::size_t tile = first; tile < last; ++tile) {
            const std::byte* at = part.tiles[r] + tile * bytes;
            if (half == 0) prefetch_tile<bytes>(at, tile, part.tiles_left, part.skip);
            alignas(32) int before[8];
            _mm256_store_si256(reinterpret_cast<__m256i*>(before),
                               first_values(load(at + 32 * half)));
            const __m256i inputs =
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(part.x + 32 * tile));
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) {
              const __m256i w = spread_row<L>(at, minima, half, i, before[i]);
              row[i] = Dot::dot(row[i], _mm256_abs_epi8(w), _mm256_sign_epi8(inputs, w));
            }
          }
          const __m256i sum[1] = {sums_of_rows(row)};
          add_block<1>(part.scales[r] + scale_place(b) + 16 * half, part.x_scales + b, sum,
                       acc + 16 * r + 8 * half);
        }
      }
    }
  }

  // Lane i: the sum of row i's lanes.
  static __m256i sums_of_rows(const __m256i (&row)[8]) {
    const __m256i upper =
        _mm256_hadd_epi32(_mm256_hadd_epi32(row[0], row[1]), _mm256_hadd_epi32(row[2], row[3]));
    const __m256i lower =
        _mm256_hadd_epi32(_mm256_hadd_epi32(row[4], row[5]), _mm256_hadd_epi32(row[6], row[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(upper, lower, 0x20),
                            _mm256_permute2x128_si256(upper, lower, 0x31));
  }

  // 8 x 8 words of 32 bits.
  static inline __attribute__((always_inline)) void transpose(__m256i (&row)[8]) {
    __m256i pair[8], four[8];
    for (int i = 0; i < 4; ++i) {
      pair[2 * i] = _mm256_unpacklo_epi32(row[2 * i], row[2 * i + 1]);
      pair[2 * i + 1] = _mm256_unpackhi_epi32(row[2 * i], row[2 * i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 2; ++j) {
        four[4 * i + 2 * j] = _mm256_unpacklo_epi64(pair[4 * i + j], pair[4 * i + 2 + j]);
        four[4 * i + 2 * j + 1] = _mm256_unpackhi_epi64(pair[4 * i + j], pair[4 * i + 2 + j]);
      }
    }
    for (int j = 0; j < 4; ++j) {
      row[j] = _mm256_permute2x128_si256(four[j], four[4 + j], 0x20);
      row[4 + j] = _mm256_permute2x128_si256(four[j], four[4 + j], 0x31);
    }
  }

  static constexpr KernelNames names = Dot::names;
};

}  // namespace
}  // namespace twofour::lowbit
