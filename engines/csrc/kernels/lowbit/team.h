// Forms that open the OpenMP region themselves; as kernels/team.h.
#pragma once

#include "kernels/lowbit/kernels.h"
#include "kernels/lowbit/pack.h"
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

}  // namespace twofour::lowbit
