#include "kernels/lowbit/pack.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace twofour::lowbit {
namespace {

template <class T>
void put(std::byte* at, T value) {
  std::memcpy(at, &value, sizeof value);
}

template <class T>
T get(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

bool good_scale(std::uint16_t scale) { return scale < 0x7c00u; }  // fp16: finite, no sign
bool good_minimum(int minimum) { return minimum >= least_minimum && minimum <= greatest_minimum; }
bool good_value(Layout layout, int value) {
  return is_int4(layout) ? value >= 0 && value <= 15 : value != -128;
}
bool good_kept(Layout layout, std::uint32_t kept) {
  if (places_of(layout) == Places::pairs) return groups_kept_twice(kept);
  return std::popcount(kept) == tile_inputs / 2;
}

int padding_value(Layout layout) { return is_int4(layout) ? static_cast<int>(padding_level) : 0; }

// The parts of one row block.
struct Place {
  std::size_t blocks, header, tiles, tile;
  explicit Place(const Weights& w)
      : blocks(block_count(w.k, w.block)),
        header(header_bytes(w.k, w.block, w.minima)),
        tiles(input_tiles(w.k)),
        tile(tile_bytes(w.layout)) {}
  std::size_t start(std::size_t row_block) const { return row_block * (header + tiles * tile); }
};

void put_value(Layout layout, std::byte* tile, std::size_t lane, std::size_t slot, int value) {
  const ValuePlace place = value_place(layout, lane, slot);
  if (is_int4(layout)) {
    tile[place.byte] |= static_cast<std::byte>(value << place.shift);
  } else {
    tile[place.byte] = static_cast<std::byte>(value);
  }
}

int value_at(Layout layout, const std::byte* tile, std::size_t lane, std::size_t slot) {
  const ValuePlace place = value_place(layout, lane, slot);
  if (!is_int4(layout)) return get<std::int8_t>(tile + place.byte);
  return std::to_integer<int>(tile[place.byte] >> place.shift) & 15;
}

// What a row keeps of a tile; of places that are none, bits that are refused.
std::uint32_t kept_at(Layout layout, const std::byte* tile, std::size_t lane) {
  if (places_of(layout) == Places::all) return 0xffffffffu;
  const auto word = get<std::uint32_t>(tile + 4 * lane);
  if (places_of(layout) == Places::bitmap) return word;
  const Kept kept = kept_of_pairs(word);
  return kept.rising ? kept.bits : 0;
}

// One row of one tile: `inputs` of its 32 are the layer's, none in a row beyond n.
Finding pack_tile_row(const Weights& w, const Source& from, std::size_t row, std::size_t tile,
                      std::size_t inputs, std::byte* to) {
  const std::size_t lane = row % tile_rows, first = tile * tile_inputs;
  std::uint32_t kept = 0xffffffffu;
  if (places_of(w.layout) != Places::all) {
    const std::uint32_t own = inputs ? from.kept[row * input_tiles(w.k) + tile] : 0;
    kept = own | (padding_bits & ~bits_below(inputs));
    if (!good_kept(w.layout, kept) || (own & ~bits_below(inputs))) {
      return {Fault::places, row, first, own};
    }
    put(to + 4 * lane, places_of(w.layout) == Places::pairs ? pairs_of_kept(kept) : kept);
  }
  std::size_t slot = 0;
  for (std::size_t i = 0; i < tile_inputs; ++i) {
    if (((kept >> i) & 1u) == 0) continue;
    const int value = i < inputs ? from.values[row * w.k + first + i] : padding_value(w.layout);
    if (!good_value(w.layout, value)) {
      return {Fault::value, row, first + i, static_cast<std::uint32_t>(value)};
    }
    put_value(w.layout, to, lane, slot++, value);
  }
  return {};
}

Finding pack_header_row(const Weights& w, const Source& from, const Place& place, std::size_t row,
                        std::byte* to) {
  const std::size_t lane = row % tile_rows;
  for (std::size_t block = 0; block < place.blocks; ++block) {
    const std::size_t at = row * place.blocks + block;
    const std::uint16_t scale = row < w.n ? from.scales[at] : std::uint16_t{0};
    if (!good_scale(scale)) return {Fault::scale, row, block * w.block, scale};
    put(to + scale_place(block) + 2 * lane, scale);
    if (!w.minima) continue;
    const int minimum = row < w.n ? from.minima[at] : symmetric_minimum;
    if (!good_minimum(minimum)) {
      return {Fault::minimum, row, block * w.block, static_cast<std::uint32_t>(minimum)};
    }
    put(to + minimum_place(place.blocks, block) + lane, static_cast<std::int8_t>(minimum));
  }
  return {};
}

bool all_zero(const std::byte* at, std::size_t bytes) {
  return std::all_of(at, at + bytes, [](std::byte b) { return b == std::byte{0}; });
}

Finding check_header_row(const Weights& w, const Place& place, std::size_t row,
                         const std::byte* at) {
  const std::size_t lane = row % tile_rows;
  for (std::size_t block = 0; block < place.blocks; ++block) {
    const auto scale = get<std::uint16_t>(at + scale_place(block) + 2 * lane);
    if (!good_scale(scale)) return {Fault::scale, row, block * w.block, scale};
    int minimum = symmetric_minimum;
    if (w.minima) minimum = get<std::int8_t>(at + minimum_place(place.blocks, block) + lane);
    if (!good_minimum(minimum)) {
      return {Fault::minimum, row, block * w.block, static_cast<std::uint32_t>(minimum)};
    }
    if (row >= w.n && (scale != 0 || minimum != symmetric_minimum)) return {Fault::padding, row, 0};
  }
  return {};
}

Finding check_tile_row(const Weights& w, std::size_t row, std::size_t tile, const std::byte* at) {
  const std::size_t lane = row % tile_rows, first = tile * tile_inputs;
  const std::size_t inputs = row < w.n ? std::min(tile_inputs, w.k - first) : 0;
  const std::uint32_t kept = kept_at(w.layout, at, lane);
  if (places_of(w.layout) != Places::all) {
    if (!good_kept(w.layout, kept)) {
      return {Fault::places, row, first, get<std::uint32_t>(at + 4 * lane)};
    }
    const std::uint32_t beyond = ~bits_below(inputs);
    if ((kept & beyond) != (padding_bits & beyond)) return {Fault::padding, row, first};
  }
  std::size_t slot = 0;
  for (std::size_t i = 0; i < tile_inputs; ++i) {
    if (((kept >> i) & 1u) == 0) continue;
    const int value = value_at(w.layout, at, lane, slot++);
    if (!good_value(w.layout, value)) {
      return {Fault::value, row, first + i, static_cast<std::uint32_t>(value)};
    }
    if (i >= inputs && value != padding_value(w.layout)) return {Fault::padding, row, first};
  }
  return {};
}

}  // namespace

Finding pack(const Weights& w, const Source& from, std::byte* packed, std::size_t begin,
             std::size_t end) {
  const Place place(w);
  for (std::size_t row_block = begin; row_block < end; ++row_block) {
    std::byte* to = packed + place.start(row_block);
    std::memset(to, 0, place.header + place.tiles * place.tile);
    for (std::size_t lane = 0; lane < tile_rows; ++lane) {
      const std::size_t row = row_block * tile_rows + lane;
      Finding found = pack_header_row(w, from, place, row, to);
      for (std::size_t tile = 0; tile < place.tiles && found.fault == Fault::none; ++tile) {
        const std::size_t inputs = row < w.n ? std::min(tile_inputs, w.k - tile * tile_inputs) : 0;
        found = pack_tile_row(w, from, row, tile, inputs, to + place.header + tile * place.tile);
      }
      if (found.fault != Fault::none) return found;
    }
  }
  return {};
}

void unpack(const Weights& w, const Target& to, std::size_t begin, std::size_t end) {
  const Place place(w);
  for (std::size_t row = begin * tile_rows; row < std::min(end * tile_rows, w.n); ++row) {
    const std::byte* from = w.data + place.start(row / tile_rows);
    const std::size_t lane = row % tile_rows;
    for (std::size_t block = 0; block < place.blocks; ++block) {
      const std::size_t at = row * place.blocks + block;
      to.scales[at] = get<std::uint16_t>(from + scale_place(block) + 2 * lane);
      if (w.minima) {
        to.minima[at] = get<std::int8_t>(from + minimum_place(place.blocks, block) + lane);
      }
    }
    for (std::size_t tile = 0; tile < place.tiles; ++tile) {
      const std::byte* at = from + place.header + tile * place.tile;
      const std::size_t first = tile * tile_inputs, inputs = std::min(tile_inputs, w.k - first);
      const std::uint32_t kept = kept_at(w.layout, at, lane) & bits_below(inputs);
      if (to.kept) to.kept[row * place.tiles + tile] = kept;
      std::int8_t* values = to.values + row * w.k + first;
      std::size_t slot = 0;
      for (std::size_t i = 0; i < inputs; ++i) {
        const bool keeps = (kept >> i) & 1u;
        values[i] = static_cast<std::int8_t>(keeps ? value_at(w.layout, at, lane, slot++) : 0);
      }
    }
  }
}

Finding check(const Weights& w, std::size_t begin, std::size_t end) {
  const Place place(w);
  const std::size_t used = place.blocks * tile_rows * (w.minima ? 3 : 2);
  for (std::size_t row_block = begin; row_block < end; ++row_block) {
    const std::byte* at = w.data + place.start(row_block);
    if (!all_zero(at + used, place.header - used)) {
      return {Fault::padding, row_block * tile_rows, 0};
    }
    for (std::size_t lane = 0; lane < tile_rows; ++lane) {
      const std::size_t row = row_block * tile_rows + lane;
      Finding found = check_header_row(w, place, row, at);
      for (std::size_t tile = 0; tile < place.tiles && found.fault == Fault::none; ++tile) {
        found = check_tile_row(w, row, tile, at + place.header + tile * place.tile);
      }
      if (found.fault != Fault::none) return found;
    }
  }
  return {};
}

}  // namespace twofour::lowbit
