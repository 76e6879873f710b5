// Between dense weights with a mask and the packed layouts. All functions take row blocks
// [begin, end), so that threads can share a layer; team.h runs them on all threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"

namespace twofour {

// dense: n x k bf16, `stride` elements between rows; codes: n x k/4, each below 6 (else the result
// is false and the output is unspecified). -0.0 becomes 0.0.
bool pack_sparse(const std::uint16_t* dense, std::size_t stride, const std::uint8_t* codes,
                 std::size_t n, std::size_t k, std::byte* packed, std::size_t begin,
                 std::size_t end);
void pack_dense(const std::uint16_t* dense, std::size_t stride, std::size_t n, std::size_t k,
                std::byte* packed, std::size_t begin, std::size_t end);

// The inverse; dropped weights become 0. `codes` may be null; it is not written for the dense
// layout.
void unpack(const Weights& packed, std::uint16_t* dense, std::size_t stride, std::uint8_t* codes,
            std::size_t begin, std::size_t end);

// What a kernel relies on: codes below 6, and zeros beyond n and k.
enum class Fault : int { none, code, padding };
struct Finding {
  Fault fault;
  std::size_t row, group;  // of a bad code
  unsigned value;
};
Finding check(const Weights& packed, std::size_t begin, std::size_t end);

// Whether every listed group holds the code that the patch changes from.
bool patch_fits(const Patch& patch, const std::byte* packed, bool revert, std::size_t begin,
                std::size_t end);
// Changes the packed base weights to the patch's mask, or (`revert`) back. Both are exact.
void patch_apply(const Patch& patch, std::byte* packed, bool revert, std::size_t begin,
                 std::size_t end);

}  // namespace twofour
