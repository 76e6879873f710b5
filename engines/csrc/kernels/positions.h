// Tables from placement codes to the places of the two kept inputs, for a lane permute to look up.
#pragma once

#include "kernels/layout.h"

namespace twofour {
namespace {

// entry[group][code] = place of the first kept input | place of the second << shift, where places
// count within the register of `inputs` inputs that holds the group. Codes 6-15 (refused by
// `check`) give 0.
struct alignas(64) Positions {
  std::uint32_t entry[tile_groups][16];
};

constexpr Positions make_positions(std::size_t inputs, unsigned shift) {
  Positions table{};
  for (std::size_t group = 0; group < tile_groups; ++group) {
    for (std::size_t code = 0; code < placement_count; ++code) {
      const std::size_t base = 4 * group % inputs;
      const auto first = static_cast<std::uint32_t>(base + placement_pairs[code][0]);
      const auto second = static_cast<std::uint32_t>(base + placement_pairs[code][1]);
      table.entry[group][code] = first | second << shift;
    }
  }
  return table;
}

}  // namespace
}  // namespace twofour
