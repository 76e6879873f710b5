#include "kernels/lowbit/patch.h"

#include <algorithm>

namespace twofour::lowbit {
namespace {

using Pair = const std::uint8_t (&)[2];

// One changed group: where it lies, and what it changes between.
struct Change {
  std::size_t tile;      // byte offset of its tile
  std::size_t lane;      // row in the tile
  std::size_t slot;      // of its first value
  int minimum;           // of its block; 0 in int8
  Pair from, to;         // kept places
  std::int8_t added[4];  // by place: the value where `to` keeps more, minus where `from` does
};

Change change_of(const Weights& w, const Patch& patch, std::size_t row, std::uint32_t i,
                 bool revert) {
  const std::size_t group = patch.group[i], row_block = row / tile_rows, lane = row % tile_rows;
  const std::size_t start = row_block * row_block_bytes(w.layout, w.k, w.block, w.minima);
  const std::size_t tile =
      start + header_bytes(w.k, w.block, w.minima) + (group / tile_groups) * tile_bytes(w.layout);
  int minimum = is_int4(w.layout) ? symmetric_minimum : 0;
  if (w.minima) {
    const std::size_t place = minimum_place(block_count(w.k, w.block), 4 * group / w.block);
    minimum = static_cast<std::int8_t>(w.data[start + place + lane]);
  }
  const unsigned base = patch.codes[i] & 15u, changed = patch.codes[i] >> 4;
  Change change{tile,
                lane,
                2 * (group % tile_groups),
                minimum,
                placement_pairs[revert ? changed : base],
                placement_pairs[revert ? base : changed],
                {}};
  for (std::size_t j = 0; j < 4; ++j) {
    const int value = patch.values[4 * std::size_t{i} + j];
    change.added[j] = static_cast<std::int8_t>(revert ? -value : value);
  }
  return change;
}

bool keeps(Pair pair, std::size_t place) { return pair[0] == place || pair[1] == place; }

unsigned place_at(const std::byte* tile, const Change& c, std::size_t which) {
  const unsigned bit = pair_shift(c.slot + which);
  return (std::to_integer<unsigned>(tile[4 * c.lane + bit / 8]) >> (bit % 8)) & 3u;
}

int stored_at(Layout layout, const std::byte* tile, const Change& c, std::size_t which) {
  const ValuePlace place = value_place(layout, c.lane, c.slot + which);
  if (!is_int4(layout)) return static_cast<std::int8_t>(tile[place.byte]);
  return std::to_integer<int>(tile[place.byte] >> place.shift) & 15;
}

void store_at(Layout layout, std::byte* tile, const Change& c, std::size_t which, unsigned input,
              int stored) {
  const unsigned bit = pair_shift(c.slot + which);
  std::byte& places = tile[4 * c.lane + bit / 8];
  places = (places & ~static_cast<std::byte>(3u << (bit % 8))) |
           static_cast<std::byte>(input << (bit % 8));
  const ValuePlace place = value_place(layout, c.lane, c.slot + which);
  if (is_int4(layout)) {
    tile[place.byte] = (tile[place.byte] & ~static_cast<std::byte>(15u << place.shift)) |
                       static_cast<std::byte>(stored << place.shift);
  } else {
    tile[place.byte] = static_cast<std::byte>(stored);
  }
}

// What a layout stores for a value; -1 for one that an int4 block does not have.
int stored_of(Layout layout, int value, int minimum) {
  if (!is_int4(layout)) return value;
  const int eighths = value - minimum;
  return eighths >= 0 && eighths % level_step == 0 && eighths / level_step <= 15
             ? eighths / level_step
             : -1;
}
int value_of(Layout layout, int stored, int minimum) {
  return is_int4(layout) ? level_step * stored + minimum : stored;
}

bool fits(Layout layout, const std::byte* tile, const Change& c) {
  for (std::size_t which = 0; which < 2; ++which) {
    const std::size_t place = c.from[which];
    if (place_at(tile, c, which) != place) return false;
    const int value = value_of(layout, stored_at(layout, tile, c, which), c.minimum);
    if (!keeps(c.to, place) && value != -c.added[place]) return false;
  }
  for (const std::uint8_t place : c.to) {
    if (keeps(c.from, place)) continue;
    if (is_int4(layout) && stored_of(layout, c.added[place], c.minimum) < 0) return false;
  }
  return true;
}

template <class Body>
bool for_changes(const Weights& w, const Patch& patch, bool revert, std::size_t begin,
                 std::size_t end, Body body) {
  for (std::size_t row = begin * tile_rows; row < std::min(end * tile_rows, patch.n); ++row) {
    for (std::uint32_t i = patch.row_start[row]; i < patch.row_start[row + 1]; ++i) {
      if (!body(change_of(w, patch, row, i, revert))) return false;
    }
  }
  return true;
}

}  // namespace

bool patch_fits(const Weights& w, const Patch& patch, bool revert, std::size_t begin,
                std::size_t end) {
  return for_changes(w, patch, revert, begin, end,
                     [&](const Change& c) { return fits(w.layout, w.data + c.tile, c); });
}

void patch_apply(const Weights& w, const Patch& patch, bool revert, std::byte* packed,
                 std::size_t begin, std::size_t end) {
  for_changes(w, patch, revert, begin, end, [&](const Change& c) {
    std::byte* tile = packed + c.tile;
    int stored[4] = {};
    for (std::size_t j = 0; j < 4; ++j) stored[j] = stored_of(w.layout, c.added[j], c.minimum);
    for (std::size_t which = 0; which < 2; ++which) {
      stored[c.from[which]] = stored_at(w.layout, tile, c, which);
    }
    for (std::size_t which = 0; which < 2; ++which) {
      store_at(w.layout, tile, c, which, c.to[which], stored[c.to[which]]);
    }
    return true;
  });
}

}  // namespace twofour::lowbit
