// Between quantised weights and the packed int8 and int4 layouts. All functions take row blocks
// [begin, end), so that threads can share a layer.
#pragma once

#include "kernels/kernels.h"
#include "kernels/lowbit/layout.h"

namespace twofour::lowbit {

// One layer, row by row; what packing reads and unpacking writes.
template <class Value, class Scale, class Word>
struct Rows {
  Value* values;  // n x k: int8, or levels 0 to 15; what a row does not keep is ignored, read as 0
  Scale* scales;  // n x blocks: fp16
  Value* minima;  // n x blocks; null without minima
  Word* kept;     // n x tiles: bit i of a word is input i of its 32; null for dense layouts
};
using Source = Rows<const std::int8_t, const std::uint16_t, const std::uint32_t>;
using Target = Rows<std::int8_t, std::uint16_t, std::uint32_t>;

enum class Fault : int { none, places, value, scale, minimum, padding };
struct Finding {
  Fault fault = Fault::none;
  std::size_t row = 0, input = 0;  // input: the first of the tile (places), of the block, or itself
  std::uint32_t value = 0;         // as stored
};

// `w.data` is not read: it says the shape. With a fault, what was packed is unspecified.
Finding pack(const Weights& w, const Source& from, std::byte* packed, std::size_t begin,
             std::size_t end);
void unpack(const Weights& w, const Target& to, std::size_t begin, std::size_t end);

// What a kernel relies on, and that equal weights have equal bytes: every place is one, no value is
// -128, scales are finite and not negative, minima keep every level's value an int8, and what lies
// beyond n and k is as packing leaves it.
Finding check(const Weights& w, std::size_t begin, std::size_t end);

}  // namespace twofour::lowbit
