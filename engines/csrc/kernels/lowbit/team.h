// Forms that open the OpenMP region themselves; as kernels/team.h.
#pragma once

#include "kernels/lowbit/kernels.h"
#include "kernels/lowbit/pack.h"
#include "kernels/lowbit/patch.h"
#include "kernels/team.h"

namespace twofour::lowbit {

void linear_team(const Kernels& kernels, const Weights& w, const Input& x, const Output& y,
                 int threads);
void gated_team(const Kernels& kernels, const Weights& gate, const Weights& up, const Input& x,
                const Output& y, int threads);

// The first fault that a thread found, if any.
Finding pack_team(const Weights& w, const Source& from, std::byte* packed, int threads);
void unpack_team(const Weights& w, const Target& to, int threads);
Finding check_team(const Weights& w, int threads);

// False, and nothing changed, if the weights do not hold the mask that the patch changes from, or
// are not those that it was made for.
bool patch_apply_team(const Weights& w, const Patch& patch, std::byte* packed, bool revert,
                      int threads);
void patch_add_team(const Kernels& kernels, const Weights& w, const Patch& patch, const Input& x,
                    const std::uint32_t* which, std::size_t count, float* y, std::size_t stride,
                    int threads);

}  // namespace twofour::lowbit
