// Prefetching of weights that are read once: at few tokens nothing else decides the speed.
#pragma once

#include "kernels/driver.h"

namespace twofour {
namespace {

// Covers memory's latency at the bandwidth of one core; measured best of 1 to 16 KiB for two rows
// at a time.
constexpr std::size_t prefetch_bytes = 8192;

// A share of the next chunk or, for a lone panel, what the R rows will read `prefetch_bytes` later
// (at the end of a row: in the next ones).
template <Layout L, int R>
inline __attribute__((always_inline)) void prefetch_tile(const Part<R>& part, std::size_t tile,
                                                         std::size_t tiles) {
  if (part.next_lines) {
    for (int r = 0; r < R; ++r) {
      for (std::size_t line = 0; line < part.next_lines; ++line) {
        __builtin_prefetch(part.next[r] + (tile * part.next_lines + line) * vector_bytes, 0, 2);
      }
    }
    return;
  }
  constexpr std::size_t ahead = (prefetch_bytes + tile_bytes(L) - 1) / tile_bytes(L);
  const std::size_t place = (tile + ahead) * tile_bytes(L) + (tile + ahead < tiles ? 0 : part.skip);
  for (int r = 0; r < R; ++r) {
    for (std::size_t line = 0; line < tile_bytes(L); line += vector_bytes) {
      __builtin_prefetch(part.w[r] + place + line, 0, 3);
    }
  }
}

}  // namespace
}  // namespace twofour
