// A patch of int8 or int4 values as Python holds it.
#pragma once

#include "bindings/arrays.h"
#include "decoder/lowbit_patch.h"

namespace twofour::python {

// Everything that the products and `apply_patch` rely on is checked here, once.
struct LowbitPatchArrays {
  LowbitPatchArrays(std::size_t n, std::size_t k, Array<const std::uint32_t, 1> row_start,
                    Array<const std::uint32_t, 1> place, Array<const std::int8_t, 1> value);

  Array<const std::uint32_t, 1> row_start, place;
  Array<const std::int8_t, 1> value;
  LowbitPatch patch;
};

}  // namespace twofour::python
