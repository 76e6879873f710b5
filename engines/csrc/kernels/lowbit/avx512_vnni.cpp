// AVX-512 with VNNI and VBMI2: 16 rows a register, `vpdpbusd` adds four products of each.
//
// It multiplies bytes without sign by bytes with one. Activations are the former, 128 added, which
// costs 128 times the sum of the values that met them. That sum is made on the way, once for all
// tokens of a panel, by one more `vpdpbusd` with ones; storing it would cost memory's time.
#include "kernels/lowbit/driver.h"
#include "kernels/lowbit/intrinsics.h"

namespace twofour::lowbit {
namespace {

struct Avx512VnniOps {
  // 2 row blocks x 8 tokens: 16 sums of 32 registers, enough for the latency of two a cycle.
#ifndef TWOFOUR_EMULATED
  static constexpr std::size_t max_tokens = 8;
#else
  static constexpr std::size_t max_tokens = 4;  // each number of tokens takes SIMDe a minute
#endif
  static constexpr int offset = 128;
  static constexpr bool widens = true;
  static constexpr bool multiplies_bitmaps = true;

  static __m512i load(const std::byte* at) { return _mm512_loadu_si512(at); }

  // The minimum of each of 16 rows, four times.
  static __m512i minima_of(const std::byte* minima) {
    if (!minima) return _mm512_set1_epi8(symmetric_minimum);
    using Bytes = std::uint8_t __attribute__((vector_size(16)));
    Bytes rows;
    __builtin_memcpy(&rows, minima, sizeof rows);
    const Words repeated = __builtin_convertvector(rows, Words) * 0x01010101u;
    __m512i found;
    __builtin_memcpy(&found, &repeated, sizeof found);
    return found;
  }

  // A tile's vectors 2 i and 2 i + 1 of int4, as values.
  struct Two {
    __m512i low, high;
  };
  static Two widened(__m512i nibbles, __m512i minima) {
    const __m512i mask = _mm512_set1_epi8(0x78);
    return {_mm512_add_epi8(_mm512_and_si512(_mm512_slli_epi32(nibbles, 3), mask), minima),
            _mm512_add_epi8(_mm512_and_si512(_mm512_srli_epi32(nibbles, 1), mask), minima)};
  }

  // As in ymm.h: fields of two bits, spread to nibbles, are indices as they are and shifted once.
  struct Indices {
    __m512i even, odd;
    __m512i of_step(int s) const {
      const __m512i nibbles = s % 2 ? odd : even;
      return s < 2 ? nibbles : _mm512_srli_epi32(nibbles, 4);
    }
  };
  static Indices indices_of(__m512i places) {
    const __m512i fields = _mm512_set1_epi8(0x33), second = _mm512_set1_epi32(0x44440000);
    constexpr int and_or = 0xea;  // (a & b) | c
    return {_mm512_ternarylogic_epi32(places, fields, second, and_or),
            _mm512_ternarylogic_epi32(_mm512_srli_epi32(places, 2), fields, second, and_or)};
  }

  // The four values of each row in a tile's vector `s`.
  template <Form F>
  static inline __attribute__((always_inline)) __m512i values(const std::byte* tile, int s,
                                                              __m512i minima) {
    constexpr std::size_t first = pairs_form(F) ? vector_bytes : 0;
    if constexpr (!int4_form(F)) return load(tile + first + 64 * s);
    const Two both = widened(load(tile + first + 64 * (s / 2)), minima);
    return s % 2 ? both.high : both.low;
  }

  template <Form F, int R, int T>
  static inline __attribute__((always_inline)) void tile_product(const std::byte* const* tile,
                                                                 const std::uint8_t* x,
                                                                 const __m512i (&minima)[R],
                                                                 __m512i (&sum)[R][T],
                                                                 __m512i (&total)[R]) {
    constexpr int steps = pairs_form(F) ? 4 : 8;
    Indices indices[R];
    if constexpr (pairs_form(F)) {
      for (int r = 0; r < R; ++r) indices[r] = indices_of(load(tile[r]));
    }
#pragma GCC unroll 8
    for (int s = 0; s < steps; ++s) {
      __m512i w[R], where[R];
      for (int r = 0; r < R; ++r) {
        w[r] = values<F>(tile[r], s, minima[r]);
        total[r] = _mm512_dpbusd_epi32(total[r], _mm512_set1_epi8(1), w[r]);
        if constexpr (pairs_form(F)) where[r] = indices[r].of_step(s);
      }
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        if constexpr (pairs_form(F)) {
          long long eight;
          __builtin_memcpy(&eight, x + 32 * t + 8 * s, sizeof eight);
          const __m512i inputs = _mm512_set1_epi64(eight);
          for (int r = 0; r < R; ++r) {
            sum[r][t] = _mm512_dpbusd_epi32(sum[r][t], _mm512_shuffle_epi8(inputs, where[r]), w[r]);
          }
        } else {
          int four;
          __builtin_memcpy(&four, x + 32 * t + 4 * s, sizeof four);
          const __m512i inputs = _mm512_set1_epi32(four);
          for (int r = 0; r < R; ++r) sum[r][t] = _mm512_dpbusd_epi32(sum[r][t], inputs, w[r]);
        }
      }
    }
  }

  template <Form F, int R, int T>
  static void block(const Part<R>& part, float* acc) {
    constexpr std::size_t bytes = form_tile_bytes(F);
    // Sums of few tokens stay in registers from block to block, those of many would push the
    // operands out.
    constexpr bool held = R * T <= 4;
    Floats found[R][T];
    for (int r = 0; held && r < R; ++r) load_sums<T>(acc + 16 * T * r, found[r]);
    for (std::size_t first = 0; first < part.tile_count; first += part.block_tiles) {
      const std::size_t b = first / part.block_tiles;
      const std::size_t last = smaller(first + part.block_tiles, part.tile_count);
      __m512i sum[R][T], total[R], minima[R]{};
      for (int r = 0; r < R; ++r) {
        total[r] = _mm512_setzero_si512();
        for (int t = 0; t < T; ++t) sum[r][t] = _mm512_setzero_si512();
        if constexpr (int4_form(F)) {
          minima[r] = minima_of(part.minima[r] ? part.minima[r] + 16 * b : nullptr);
        }
      }
      for (std::size_t tile = first; tile < last; ++tile) {
        const std::byte* at[R];
        for (int r = 0; r < R; ++r) {
          at[r] = part.tiles[r] + tile * bytes;
          if (part.fetch) prefetch_tile<bytes>(at[r], tile, part.tiles_left, part.skip);
        }
        tile_product<F, R, T>(at, part.x + tile * T * 32, minima, sum, total);
      }
      for (int r = 0; r < R; ++r) {
        if constexpr (!held) load_sums<T>(acc + 16 * T * r, found[r]);
        const Ints shift = ints(total[r]) * offset;
        add_block<T>(part.scales[r] + scale_place(b), part.x_scales + b * T, sum[r], shift,
                     found[r]);
        if constexpr (!held) store_sums<T>(acc + 16 * T * r, found[r]);
      }
    }
    for (int r = 0; held && r < R; ++r) store_sums<T>(acc + 16 * T * r, found[r]);
  }

  template <int T>
  static inline __attribute__((always_inline)) void load_sums(const float* acc,
                                                              Floats (&found)[T]) {
    for (int t = 0; t < T; ++t) found[t] = twofour::load(acc + 16 * t);
  }
  template <int T>
  static inline __attribute__((always_inline)) void store_sums(float* acc,
                                                               const Floats (&found)[T]) {
    for (int t = 0; t < T; ++t) store(acc + 16 * t, found[t]);
  }

  static Ints ints(__m512i v) {
    Ints found;
    __builtin_memcpy(&found, &v, sizeof found);
    return found;
  }

  template <int T>
  static inline __attribute__((always_inline)) void add_block(const std::byte* scales,
                                                              const float* x_scales,
                                                              const __m512i (&sum)[T], Ints shift,
                                                              Floats (&acc)[T]) {
    using Halves = std::uint16_t __attribute__((vector_size(32)));
    Halves halves;
    __builtin_memcpy(&halves, scales, sizeof halves);
    const Floats scale = half_to_float(__builtin_convertvector(halves, Words));
    for (int t = 0; t < T; ++t) {
      const Floats product =
          __builtin_convertvector(ints(sum[t]) - shift, Floats) * (scale * x_scales[t]);
      acc[t] += product;
    }
  }

  // int4 as int8, where several panels share the weights.
  template <Layout L>
  static void widen(const std::byte* from, const std::byte* minima, std::byte* to) {
    constexpr std::size_t first = place_bytes(L);
    if constexpr (first > 0) _mm512_storeu_si512(to, load(from));
    const __m512i minimum = minima_of(minima);
    for (std::size_t v = 0; v < tile_slots(L) / 4; v += 2) {
      const Two both = widened(load(from + first + 32 * v), minimum);
      _mm512_storeu_si512(to + first + 64 * v, both.low);
      _mm512_storeu_si512(to + first + 64 * (v + 1), both.high);
    }
  }

  // The minima of a block's 16 rows, in every quarter.
  static __m512i all_minima(const std::byte* minima) {
    if (!minima) return _mm512_set1_epi8(symmetric_minimum);
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(minima)));
  }

  // In quarter q the 16 values of row 4 v + q.
  template <Layout L>
  static inline __attribute__((always_inline)) __m512i four_rows(const std::byte* tile,
                                                                 __m512i minima, int v) {
    if constexpr (!is_int4(L)) return load(tile + vector_bytes + 64 * v);
    const __m512i nibbles = load(tile + vector_bytes + 64 * (v / 2));
    const __m512i levels = v % 2 ? _mm512_srli_epi32(nibbles, 1) : _mm512_slli_epi32(nibbles, 3);
    const __m512i row = _mm512_add_epi8(
        _mm512_set1_epi8(static_cast<char>(4 * v)),
        _mm512_set_epi64(0x0303030303030303, 0x0303030303030303, 0x0202020202020202,
                         0x0202020202020202, 0x0101010101010101, 0x0101010101010101, 0, 0));
    return _mm512_add_epi8(_mm512_and_si512(levels, _mm512_set1_epi8(0x78)),
                           _mm512_shuffle_epi8(minima, row));
  }

  // `vpexpandb` spreads the values of rows 2 i and 2 i + 1, a half of `four`, over their 64 inputs.
  static inline __attribute__((always_inline)) __m512i spread_rows(const std::byte* tile,
                                                                   __m512i four, int i) {
    std::uint64_t kept;
    __builtin_memcpy(&kept, tile + 8 * i, sizeof kept);
    const __m512i two = i % 2 ? _mm512_castsi256_si512(_mm512_extracti64x4_epi64(four, 1)) : four;
    return _mm512_maskz_expand_epi8(kept, two);
  }

  // Of rows 0, 2, 4, 6 (in quarters 0 and 1) and 1, 3, 5, 7 (2 and 3), and of rows 8-15 alike: the
  // quarters 0 and 2, or 1 and 3, with the rows in order.
  static __m512i first_quarters(__m512i upper, __m512i lower) {
    const __m512i order =
        _mm512_set_epi32(27, 19, 26, 18, 25, 17, 24, 16, 11, 3, 10, 2, 9, 1, 8, 0);
    return _mm512_permutex2var_epi32(upper, order, lower);
  }
  static __m512i second_quarters(__m512i upper, __m512i lower) {
    const __m512i order =
        _mm512_set_epi32(31, 23, 30, 22, 29, 21, 28, 20, 15, 7, 14, 6, 13, 5, 12, 4);
    return _mm512_permutex2var_epi32(upper, order, lower);
  }

  template <Layout L>
  static void spread(const std::byte* from, const std::byte* minima, std::byte* to) {
    const __m512i minimum = all_minima(minima);
    __m512i rows[8];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const __m512i four = four_rows<L>(from, minimum, v);
      rows[2 * v] = spread_rows(from, four, 2 * v);
      rows[2 * v + 1] = spread_rows(from, four, 2 * v + 1);
    }
    __m512i upper[4], lower[4];
    transpose(rows, upper);
    transpose(rows + 4, lower);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      _mm512_storeu_si512(to + 64 * c, first_quarters(upper[c], lower[c]));
      _mm512_storeu_si512(to + 64 * (c + 4), second_quarters(upper[c], lower[c]));
    }
  }

  // One token: two rows a register, without turning rows into lanes but for the sums.
  template <Layout L, int R>
  static void bitmap_block(const Part<R>& part, float* acc) {
    constexpr std::size_t bytes = tile_bytes(L);
    for (int r = 0; r < R; ++r) {
      Floats found[1] = {twofour::load(acc + 16 * r)};
      for (std::size_t first = 0; first < part.tile_count; first += part.block_tiles) {
        const std::size_t b = first / part.block_tiles;
        const std::size_t last = smaller(first + part.block_tiles, part.tile_count);
        const __m512i minima = all_minima(part.minima[r] ? part.minima[r] + 16 * b : nullptr);
        __m512i sum[8], total[4];
        for (int i = 0; i < 8; ++i) sum[i] = _mm512_setzero_si512();
        for (int v = 0; v < 4; ++v) total[v] = _mm512_setzero_si512();
        for (std::size_t tile = first; tile < last; ++tile) {
          const std::byte* at = part.tiles[r] + tile * bytes;
          prefetch_tile<bytes>(at, tile, part.tiles_left, part.skip);
          const __m512i inputs = _mm512_broadcast_i64x4(
              _mm256_loadu_si256(reinterpret_cast<const __m256i*>(part.x + 32 * tile)));
#pragma GCC unroll 4
          for (int v = 0; v < 4; ++v) {
            const __m512i four = four_rows<L>(at, minima, v);
            total[v] = _mm512_dpbusd_epi32(total[v], _mm512_set1_epi8(1), four);
            for (int i = 2 * v; i < 2 * v + 2; ++i) {
              sum[i] = _mm512_dpbusd_epi32(sum[i], inputs, spread_rows(at, four, i));
            }
          }
        }
        const __m512i upper = sums_of_four(sum), lower = sums_of_four(sum + 4);
        const __m512i product[1] = {
            _mm512_add_epi32(first_quarters(upper, lower), second_quarters(upper, lower))};
        // Lane v of quarter q is of row 4 v + q.
        const __m512i order =
            _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
        const Ints shift = ints(_mm512_permutexvar_epi32(order, sums_of_four(total))) * offset;
        add_block<1>(part.scales[r] + scale_place(b), part.x_scales + b, product, shift, found);
      }
      store(acc + 16 * r, found[0]);
    }
  }

  // In each quarter, lane i: the sum of the lanes of register i's quarter.
  static __m512i sums_of_four(const __m512i* rows) {
    __m512i columns[4];
    transpose(rows, columns);
    return _mm512_add_epi32(_mm512_add_epi32(columns[0], columns[1]),
                            _mm512_add_epi32(columns[2], columns[3]));
  }

  // 4 x 4 words of 32 bits in each quarter.
  static inline __attribute__((always_inline)) void transpose(const __m512i* rows,
                                                              __m512i (&columns)[4]) {
    const __m512i a = _mm512_unpacklo_epi32(rows[0], rows[1]);
    const __m512i b = _mm512_unpackhi_epi32(rows[0], rows[1]);
    const __m512i c = _mm512_unpacklo_epi32(rows[2], rows[3]);
    const __m512i d = _mm512_unpackhi_epi32(rows[2], rows[3]);
    columns[0] = _mm512_unpacklo_epi64(a, c);
    columns[1] = _mm512_unpackhi_epi64(a, c);
    columns[2] = _mm512_unpacklo_epi64(b, d);
    columns[3] = _mm512_unpackhi_epi64(b, d);
  }

  static constexpr KernelNames names = {
      {"dense-int8-zmm-vpdpbusd", "dense-int4-zmm-vpdpbusd", "sparse24-int8-zmm-vpshufb-vpdpbusd",
       "sparse24-int4-zmm-vpshufb-vpdpbusd", "bitmap32-int8-zmm-vpexpandb-vpdpbusd",
       "bitmap32-int4-zmm-vpexpandb-vpdpbusd"}};
};

}  // namespace

const Kernels& avx512_vnni_kernels() {
  static const Kernels table = Driver<Avx512VnniOps>::table();
  return table;
}

}  // namespace twofour::lowbit
