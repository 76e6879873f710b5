// From a byte of a bitmap to which of its values each of eight inputs takes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace twofour::lowbit {
namespace {

// Byte i of an entry: how many bits are set below bit i or, where bit i is clear, 0x80, for which a
// byte shuffle gives zero.
struct alignas(64) SpreadTable {
  long long entry[256];
};

constexpr SpreadTable make_spread_table() {
  SpreadTable table{};
  for (unsigned bits = 0; bits < 256; ++bits) {
    std::uint64_t entry = 0;
    std::uint64_t rank = 0;
    for (unsigned i = 0; i < 8; ++i) {
      const bool kept = (bits >> i) & 1u;
      entry |= (kept ? rank : std::uint64_t{0x80}) << (8 * i);
      rank += kept ? 1 : 0;
    }
    table.entry[bits] = static_cast<long long>(entry);
  }
  return table;
}

constexpr SpreadTable spread_table = make_spread_table();

}  // namespace
}  // namespace twofour::lowbit
