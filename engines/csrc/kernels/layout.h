// The weight layouts, as numbers, and the two of bf16 values; lowbit/layout.h has the others.
// docs/kernels.md has the picture.
//
// All cut a weight matrix (n rows = outputs, k columns = inputs) into tiles of 16 rows x 32
// inputs, stored row block by row block and, inside one, by rising input. Rows and inputs beyond n
// and k are zero.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/placements.h"

namespace twofour {

// The value is stored in engine directories: never renumber.
enum class Layout : std::uint32_t {
  sparse24_bf16 = 1,  // tile: 64 bytes of placement codes, then 8 x 64 bytes of kept pairs
  dense_bf16 = 2,     // tile: 16 x 64 bytes, each the 16 rows' weights for one pair of inputs
  dense_int8 = 3,
  dense_int4 = 4,
  sparse24_int8 = 5,
  sparse24_int4 = 6,
  bitmap32_int8 = 7,
  bitmap32_int4 = 8,
};
inline constexpr std::uint32_t layout_version = 1;

inline constexpr std::size_t tile_rows = 16;
inline constexpr std::size_t tile_inputs = 32;
inline constexpr std::size_t tile_groups = 8;
inline constexpr std::size_t vector_bytes = 64;
inline constexpr std::size_t sparse_tile_bytes = vector_bytes * (1 + tile_groups);
inline constexpr std::size_t dense_tile_bytes = vector_bytes * (tile_inputs / 2);

// Where one group lives in the sparse layout.
struct GroupPlace {
  std::size_t code_byte;  // its code is a nibble of this byte
  unsigned code_shift;    // 0 or 4
  std::size_t values;     // byte offset of its two kept bf16 values
};

// Compiled anew in each file: see common/lanes.h.
namespace {

// Of int8 or int4 values, with scales: lowbit/layout.h.
constexpr bool is_lowbit(Layout layout) { return layout >= Layout::dense_int8; }

constexpr std::size_t row_blocks(std::size_t n) { return (n + tile_rows - 1) / tile_rows; }
constexpr std::size_t input_tiles(std::size_t k) { return (k + tile_inputs - 1) / tile_inputs; }
constexpr std::size_t tile_bytes(Layout layout) {
  return layout == Layout::sparse24_bf16 ? sparse_tile_bytes : dense_tile_bytes;
}
constexpr std::size_t block_bytes(Layout layout, std::size_t k) {
  return input_tiles(k) * tile_bytes(layout);
}
constexpr std::size_t packed_bytes(Layout layout, std::size_t n, std::size_t k) {
  return row_blocks(n) * block_bytes(layout, k);
}

constexpr GroupPlace group_place(std::size_t k, std::size_t row, std::size_t group) {
  const std::size_t tile = (row / tile_rows) * block_bytes(Layout::sparse24_bf16, k) +
                           (group / tile_groups) * sparse_tile_bytes;
  const std::size_t lane = row % tile_rows, in_tile = group % tile_groups;
  return {tile + 4 * lane + in_tile / 2, static_cast<unsigned>(4 * (in_tile % 2)),
          tile + vector_bytes * (1 + in_tile) + 4 * lane};
}

// Byte offset of weight (row, input) in the dense layout.
constexpr std::size_t dense_place(std::size_t k, std::size_t row, std::size_t input) {
  const std::size_t in_tile = input % tile_inputs;
  return (row / tile_rows) * block_bytes(Layout::dense_bf16, k) +
         (input / tile_inputs) * dense_tile_bytes + (in_tile / 2) * vector_bytes +
         4 * (row % tile_rows) + 2 * (in_tile % 2);
}

}  // namespace
}  // namespace twofour
