// The difference between two masks of one layer of int8 or int4 values, as compressed rows.
//
// A mask never changes values, scales or minima: what a patch lists is the inputs that one of the
// two masks keeps and the other does not, with their values. That is the same for every layout, 2:4
// or bitmap.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"

namespace twofour {

struct LowbitPatch {
  std::size_t n, k;
  const std::uint32_t*
      row_start;               // n + 1; entries of row r are row_start[r] .. row_start[r + 1] - 1
  const std::uint32_t* place;  // input, by rising input; patch_removes is set where it is dropped
  const std::int8_t* value;    // of the input, -127 to 127
};
inline constexpr std::uint32_t patch_removes = 0x80000000u;

// Activations of a batch, quantised as the kernels do it: int8 and scales, row by row.
struct QuantisedInputs {
  const std::int8_t* values;  // tokens x k
  const float* scales;        // tokens x blocks
};

// One token: k values and their scales (kernels/lowbit/activations.h).
void quantise_row(const float* x, std::size_t k, std::size_t block, std::int8_t* values,
                  float* scales);

// y[t] += patch product, for the `count` tokens listed in `which`, outputs of row blocks
// [begin, end). `base` is the packed layer, whose scales count.
void add_patch(const LowbitPatch& patch, const Weights& base, const QuantisedInputs& x,
               const std::uint32_t* which, std::size_t count, float* y, std::size_t stride,
               std::size_t begin, std::size_t end);

// Rewrites packed weights (`w.data` is `packed`), byte for byte to what packing the other mask
// gives. False, and nothing changed, if they do not hold the mask that the patch changes from.
bool apply_patch(const LowbitPatch& patch, const Weights& w, std::byte* packed, bool revert,
                 int threads);

}  // namespace twofour
