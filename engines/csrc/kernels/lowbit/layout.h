// The layouts of int8 and int4 values, byte by byte; docs/formats.md, "Packed int8 and int4
// weights".
//
// A row block is 16 rows (outputs). It starts with the scales of its blocks of inputs, then (int4
// with minima) their minima, filled up to 64 bytes; its tiles of 16 rows x 32 inputs follow. A tile
// is 64 bytes of places (unless dense) and then vectors of values: 64 bytes each in int8; in int4
// two of those vectors share 64 bytes, the first in the low nibbles, the second in the high ones.
#pragma once

#include "kernels/layout.h"

namespace twofour::lowbit {

inline constexpr std::uint32_t layout_version = 1;

// Which inputs a row keeps, as a tile tells it.
enum class Places { all, pairs, bitmap };

// Levels of int4 are 0 to 15. The value of a level is 8 level + minimum: the minimum counts eighths
// of a step, so that a value is always an int8. Without minima the grid is symmetric.
inline constexpr int level_step = 8;
inline constexpr int symmetric_minimum = -64;
inline constexpr int least_minimum = -127, greatest_minimum = 7;
inline constexpr unsigned padding_level = 8;  // value 0 on a symmetric grid

namespace {

constexpr bool is_int4(Layout layout) {
  return layout == Layout::dense_int4 || layout == Layout::sparse24_int4 ||
         layout == Layout::bitmap32_int4;
}
constexpr Places places_of(Layout layout) {
  if (layout == Layout::dense_int8 || layout == Layout::dense_int4) return Places::all;
  return layout == Layout::sparse24_int8 || layout == Layout::sparse24_int4 ? Places::pairs
                                                                            : Places::bitmap;
}

// Values of one row in one tile.
constexpr std::size_t tile_slots(Layout layout) {
  return places_of(layout) == Places::all ? tile_inputs : tile_inputs / 2;
}
constexpr std::size_t place_bytes(Layout layout) {
  return places_of(layout) == Places::all ? 0 : vector_bytes;
}
constexpr std::size_t tile_bytes(Layout layout) {
  return place_bytes(layout) + tile_rows * tile_slots(layout) / (is_int4(layout) ? 2 : 1);
}

constexpr std::size_t block_count(std::size_t k, std::size_t block) {
  return (k + block - 1) / block;
}
constexpr std::size_t header_bytes(std::size_t k, std::size_t block, bool minima) {
  const std::size_t used = block_count(k, block) * tile_rows * (minima ? 3 : 2);
  return (used + vector_bytes - 1) / vector_bytes * vector_bytes;
}
constexpr std::size_t row_block_bytes(Layout layout, std::size_t k, std::size_t block,
                                      bool minima) {
  return header_bytes(k, block, minima) + input_tiles(k) * tile_bytes(layout);
}
constexpr std::size_t packed_bytes(Layout layout, std::size_t n, std::size_t k, std::size_t block,
                                   bool minima) {
  return row_blocks(n) * row_block_bytes(layout, k, block, minima);
}

// Where things lie in a row block: scales as fp16, minima as int8, 16 of each for a block of
// inputs.
constexpr std::size_t scale_place(std::size_t block_index) { return 32 * block_index; }
constexpr std::size_t minimum_place(std::size_t blocks, std::size_t block_index) {
  return 32 * blocks + 16 * block_index;
}

// Where a value lies in its tile.
struct ValuePlace {
  std::size_t byte;
  unsigned shift;  // int4: 0 or 4
};
constexpr ValuePlace value_place(Layout layout, std::size_t lane, std::size_t slot) {
  const bool by_row = places_of(layout) == Places::bitmap;
  // Dense and 2:4: four values of each of the 16 rows; bitmap: 16 values of each of four rows.
  const std::size_t vector = by_row ? lane / 4 : slot / 4;
  const std::size_t byte = by_row ? 16 * (lane % 4) + slot : 4 * lane + slot % 4;
  const std::size_t first = place_bytes(layout) + byte;
  if (!is_int4(layout)) return {first + vector_bytes * vector, 0};
  return {first + vector_bytes * (vector / 2), static_cast<unsigned>(4 * (vector % 2))};
}

// Bits [shift, shift + 2) of a row's 32 bits of places hold the place (0-3) of a 2:4 tile's value
// in its group of four. Four consecutive values, of eight inputs, are in four bytes, so that a
// shift and a mask make them indices for a byte shuffle.
constexpr unsigned pair_shift(std::size_t slot) {
  return static_cast<unsigned>(8 * (slot % 4) + 2 * (slot / 4));
}

// Which of a tile's 32 inputs a row keeps, from its 32 bits of places, as a bitmap. For places of
// pairs that are no placement (two equal ones, or the higher one first) the result has other than
// two bits in a group, or `rising` is false.
struct Kept {
  std::uint32_t bits;
  bool rising;
};
constexpr Kept kept_of_pairs(std::uint32_t places) {
  Kept kept{0, true};
  for (std::size_t slot = 0; slot < tile_inputs / 2; slot += 2) {
    const unsigned first = (places >> pair_shift(slot)) & 3u;
    const unsigned second = (places >> pair_shift(slot + 1)) & 3u;
    kept.rising = kept.rising && first < second;
    kept.bits |= ((1u << first) | (1u << second)) << (2 * slot);
  }
  return kept;
}
// The inverse, of a bitmap with two bits in every group.
constexpr std::uint32_t pairs_of_kept(std::uint32_t bits) {
  std::uint32_t places = 0;
  std::size_t slot = 0;
  for (std::size_t input = 0; input < tile_inputs; ++input) {
    if ((bits >> input) & 1u) {
      places |= static_cast<std::uint32_t>(input % 4) << pair_shift(slot);
      ++slot;
    }
  }
  return places;
}

// What inputs beyond k keep, so that every row of a tile has 16 values: the first two of each four.
inline constexpr std::uint32_t padding_bits = 0x33333333u;

constexpr std::uint32_t bits_below(std::size_t inputs) {
  return inputs >= 32 ? 0xffffffffu : (1u << inputs) - 1u;
}
constexpr bool groups_kept_twice(std::uint32_t bits) {
  // Per group of four: the number of its bits, in its four bits.
  const std::uint32_t pairs = (bits & 0x55555555u) + ((bits >> 1) & 0x55555555u);
  const std::uint32_t counts = (pairs & 0x33333333u) + ((pairs >> 2) & 0x33333333u);
  return counts == 0x22222222u;
}

}  // namespace
}  // namespace twofour::lowbit
