#include "kernels/pack.h"

#include <algorithm>
#include <cstring>

namespace twofour {
namespace {

// -0.0 and 0.0 are one value to a mask file's digest and two to a comparison of bytes.
std::uint16_t canonical(std::uint16_t value) { return value == 0x8000u ? std::uint16_t{0} : value; }

void put(std::byte* at, std::uint16_t value) { std::memcpy(at, &value, sizeof value); }

std::uint16_t get(const std::byte* at) {
  std::uint16_t value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

unsigned code_at(const std::byte* packed, const GroupPlace& place) {
  return (std::to_integer<unsigned>(packed[place.code_byte]) >> place.code_shift) & 15u;
}

void clear_blocks(Layout layout, std::size_t k, std::byte* packed, std::size_t begin,
                  std::size_t end) {
  const std::size_t bytes = block_bytes(layout, k);
  std::memset(packed + begin * bytes, 0, (end - begin) * bytes);
}

bool all_zero(const std::byte* at, std::size_t bytes) {
  return std::all_of(at, at + bytes, [](std::byte b) { return b == std::byte{0}; });
}

}  // namespace

bool pack_sparse(const std::uint16_t* dense, std::size_t stride, const std::uint8_t* codes,
                 std::size_t n, std::size_t k, std::byte* packed, std::size_t begin,
                 std::size_t end) {
  clear_blocks(Layout::sparse24_bf16, k, packed, begin, end);
  const std::size_t groups = k / 4;
  unsigned bad = 0;
  for (std::size_t row = begin * tile_rows; row < std::min(end * tile_rows, n); ++row) {
    const std::uint16_t* weights = dense + row * stride;
    const std::uint8_t* placements = codes + row * groups;
    for (std::size_t group = 0; group < groups; ++group, weights += 4) {
      const unsigned code = placements[group];
      if (code >= placement_count) {
        bad = 1;
        continue;
      }
      const GroupPlace place = group_place(k, row, group);
      packed[place.code_byte] |= static_cast<std::byte>(code << place.code_shift);
      put(packed + place.values, canonical(weights[placement_pairs[code][0]]));
      put(packed + place.values + 2, canonical(weights[placement_pairs[code][1]]));
    }
  }
  return bad == 0;
}

void pack_dense(const std::uint16_t* dense, std::size_t stride, std::size_t n, std::size_t k,
                std::byte* packed, std::size_t begin, std::size_t end) {
  clear_blocks(Layout::dense_bf16, k, packed, begin, end);
  for (std::size_t row = begin * tile_rows; row < std::min(end * tile_rows, n); ++row) {
    const std::uint16_t* weights = dense + row * stride;
    for (std::size_t input = 0; input < k; ++input) {
      put(packed + dense_place(k, row, input), canonical(weights[input]));
    }
  }
}

void unpack(const Weights& w, std::uint16_t* dense, std::size_t stride, std::uint8_t* codes,
            std::size_t begin, std::size_t end) {
  const std::size_t groups = w.k / 4;
  for (std::size_t row = begin * tile_rows; row < std::min(end * tile_rows, w.n); ++row) {
    std::uint16_t* weights = dense + row * stride;
    if (w.layout == Layout::dense_bf16) {
      for (std::size_t input = 0; input < w.k; ++input) {
        weights[input] = get(w.data + dense_place(w.k, row, input));
      }
      continue;
    }
    for (std::size_t group = 0; group < groups; ++group, weights += 4) {
      const GroupPlace place = group_place(w.k, row, group);
      const unsigned code = code_at(w.data, place);
      std::fill_n(weights, 4, std::uint16_t{0});
      weights[placement_pairs[code][0]] = get(w.data + place.values);
      weights[placement_pairs[code][1]] = get(w.data + place.values + 2);
      if (codes) codes[row * groups + group] = static_cast<std::uint8_t>(code);
    }
  }
}

Finding check(const Weights& w, std::size_t begin, std::size_t end) {
  const std::size_t tiles = input_tiles(w.k), bytes = tile_bytes(w.layout);
  const bool sparse = w.layout == Layout::sparse24_bf16;
  const std::size_t vectors = bytes / vector_bytes;
  for (std::size_t block = begin; block < end; ++block) {
    const std::size_t rows = std::min(tile_rows, w.n - block * tile_rows);
    for (std::size_t tile = 0; tile < tiles; ++tile) {
      const std::byte* at = w.data + (block * tiles + tile) * bytes;
      const std::size_t inputs = std::min(tile_inputs, w.k - tile * tile_inputs);
      if (sparse) {
        for (std::size_t lane = 0; lane < tile_rows; ++lane) {
          std::uint32_t nibbles;
          std::memcpy(&nibbles, at + 4 * lane, 4);
          // A nibble is 6 or more exactly when its top bit is set or both middle bits are.
          const std::uint32_t bad = (nibbles | ((nibbles & (nibbles << 1)) << 1)) & 0x88888888u;
          if (bad) {
            std::size_t group = 0;
            while (((bad >> (4 * group)) & 8u) == 0) ++group;
            return {Fault::code, block * tile_rows + lane, tile * tile_groups + group,
                    (nibbles >> (4 * group)) & 15u};
          }
          const std::size_t groups = lane < rows ? inputs / 4 : 0;
          if (groups < tile_groups && (nibbles >> (4 * groups)) != 0) {
            return {Fault::padding, 0, 0, 0};
          }
        }
      }
      const std::size_t first = sparse ? 1 : 0;
      const std::size_t used = first + (sparse ? inputs / 4 : (inputs + 1) / 2);
      if (!all_zero(at + used * vector_bytes, (vectors - used) * vector_bytes)) {
        return {Fault::padding, 0, 0, 0};
      }
      for (std::size_t v = first; v < used && rows < tile_rows; ++v) {
        if (!all_zero(at + v * vector_bytes + 4 * rows, vector_bytes - 4 * rows)) {
          return {Fault::padding, 0, 0, 0};
        }
      }
    }
  }
  return {Fault::none, 0, 0, 0};
}

bool patch_fits(const Patch& patch, const std::byte* packed, bool revert, std::size_t begin,
                std::size_t end) {
  for (std::size_t row = begin * tile_rows; row < std::min(end * tile_rows, patch.n); ++row) {
    for (std::uint32_t i = patch.row_start[row]; i < patch.row_start[row + 1]; ++i) {
      const unsigned from = revert ? patch.codes[i] >> 4 : patch.codes[i] & 15u;
      if (code_at(packed, group_place(patch.k, row, patch.group[i])) != from) return false;
    }
  }
  return true;
}

// A position that both masks keep has delta 0 and takes its value from the packed weights.
void patch_apply(const Patch& patch, std::byte* packed, bool revert, std::size_t begin,
                 std::size_t end) {
  for (std::size_t row = begin * tile_rows; row < std::min(end * tile_rows, patch.n); ++row) {
    for (std::uint32_t i = patch.row_start[row]; i < patch.row_start[row + 1]; ++i) {
      const unsigned base = patch.codes[i] & 15u, changed = patch.codes[i] >> 4;
      const unsigned from = revert ? changed : base, to = revert ? base : changed;
      const GroupPlace place = group_place(patch.k, row, patch.group[i]);
      std::uint16_t weights[4];
      for (std::size_t j = 0; j < 4; ++j) {
        const std::uint16_t value = patch.delta[4 * std::size_t{i} + j];
        weights[j] = canonical(revert ? static_cast<std::uint16_t>(value ^ 0x8000u) : value);
      }
      weights[placement_pairs[from][0]] = get(packed + place.values);
      weights[placement_pairs[from][1]] = get(packed + place.values + 2);
      const std::byte mask = static_cast<std::byte>(0xf0u >> place.code_shift);
      packed[place.code_byte] =
          (packed[place.code_byte] & mask) | static_cast<std::byte>(to << place.code_shift);
      put(packed + place.values, weights[placement_pairs[to][0]]);
      put(packed + place.values + 2, weights[placement_pairs[to][1]]);
    }
  }
}

}  // namespace twofour
