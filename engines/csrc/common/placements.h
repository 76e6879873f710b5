// The six ways to keep two of four: 1100 1010 1001 0110 0101 0011. Their codes are 0 to 5.
#pragma once

#include <cstddef>
#include <cstdint>

namespace twofour {

inline constexpr std::size_t placement_count = 6;
// Kept positions, the lower one first.
inline constexpr std::uint8_t placement_pairs[placement_count][2] = {{0, 1}, {0, 2}, {0, 3},
                                                                     {1, 2}, {1, 3}, {2, 3}};

}  // namespace twofour
