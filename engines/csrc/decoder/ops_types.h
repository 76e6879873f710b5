// Vectors of 16 lanes; the compiler splits them where the instruction set has narrower ones.
#pragma once

#include <cstddef>
#include <cstdint>

namespace twofour {
typedef float Floats __attribute__((vector_size(64)));
typedef std::uint32_t Words __attribute__((vector_size(64)));
}  // namespace twofour
