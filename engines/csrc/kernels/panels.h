// How the tokens of a batch are cut into panels that share one read of the weights; and the
// standard library's index sequences, which headers for several instruction sets must not use.
#pragma once

#include "kernels/numeric.h"

namespace twofour {
namespace {

// Panels of nearly equal size: 16 tokens are 8 + 8, not 12 + 4.
struct Panels {
  std::size_t count;
  std::size_t base, larger;  // the first `larger` panels hold base + 1 tokens, the others base
  std::size_t first(std::size_t panel) const { return panel * base + smaller(panel, larger); }
  std::size_t size(std::size_t panel) const { return base + (panel < larger ? 1 : 0); }
  std::size_t of(std::size_t token) const {
    const std::size_t in_larger = larger * (base + 1);
    return token < in_larger ? token / (base + 1) : larger + (token - in_larger) / base;
  }
};

inline Panels panels_of(std::size_t tokens, std::size_t most) {
  const std::size_t count = (tokens + most - 1) / most;
  return {count, count ? tokens / count : 0, count ? tokens % count : 0};
}

template <std::size_t... I>
struct Sequence {};
template <std::size_t N, std::size_t... I>
struct SequenceTo : SequenceTo<N - 1, N - 1, I...> {};
template <std::size_t... I>
struct SequenceTo<0, I...> {
  using type = Sequence<I...>;
};
template <std::size_t N>
using MakeSequence = typename SequenceTo<N>::type;

}  // namespace
}  // namespace twofour
