#include "decoder/table_row.h"

#include "common/bf16.h"
#include "kernels/lowbit/activations.h"

namespace twofour {

namespace {

void read_bf16(const Weights& w, std::size_t row, float* out) {
  for (std::size_t i = 0; i < w.k; ++i) {
    std::uint16_t value;
    __builtin_memcpy(&value, w.data + dense_place(w.k, row, i), sizeof value);
    out[i] = bf16_to_float(value);
  }
}

void read_lowbit(const Weights& w, std::size_t row, float* out) {
  const bool int4 = lowbit::is_int4(w.layout);
  const std::size_t lane = row % tile_rows, blocks = lowbit::block_count(w.k, w.block);
  const std::byte* rows =
      w.data + row / tile_rows * lowbit::row_block_bytes(w.layout, w.k, w.block, w.minima);
  const std::byte* tiles = rows + lowbit::header_bytes(w.k, w.block, w.minima);
  for (std::size_t i = 0; i < w.k; ++i) {
    const std::size_t b = i / w.block;
    std::uint16_t scale;
    __builtin_memcpy(&scale, rows + lowbit::scale_place(b) + 2 * lane, sizeof scale);
    const lowbit::ValuePlace place = lowbit::value_place(w.layout, lane, i % tile_inputs);
    const auto byte = std::to_integer<unsigned>(
        tiles[i / tile_inputs * lowbit::tile_bytes(w.layout) + place.byte]);
    int value = static_cast<std::int8_t>(byte);
    if (int4) {
      const int minimum =
          w.minima ? static_cast<std::int8_t>(rows[lowbit::minimum_place(blocks, b) + lane])
                   : lowbit::symmetric_minimum;
      value = lowbit::level_step * static_cast<int>(byte >> place.shift & 15u) + minimum;
    }
    out[i] = static_cast<float>(value) * lowbit::half_to_float(scale);
  }
}

}  // namespace

void read_row(const Weights& w, std::size_t row, float* out) {
  if (is_lowbit(w.layout)) {
    read_lowbit(w, row, out);
  } else {
    read_bf16(w, row, out);
  }
}

}  // namespace twofour
