// Patches of 2:4 layers of int8 and int4 values. Scales and minima are those of the dense block, so
// a mask changes places and values alone. `Patch::values` holds what bf16's patches hold in
// `delta`: the value where newly kept, minus the value where newly dropped. Row blocks [begin,
// end).
#pragma once

#include "kernels/kernels.h"
#include "kernels/lowbit/layout.h"

namespace twofour::lowbit {

// Whether every listed group holds the placement and the values that the patch changes from, and
// can hold those that it changes to.
bool patch_fits(const Weights& w, const Patch& patch, bool revert, std::size_t begin,
                std::size_t end);
// Changes `packed`, the bytes of `w`, to the patch's mask, or (`revert`) back. Both are exact.
void patch_apply(const Weights& w, const Patch& patch, bool revert, std::byte* packed,
                 std::size_t begin, std::size_t end);

}  // namespace twofour::lowbit
