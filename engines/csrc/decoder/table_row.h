// Rows of a packed dense matrix as fp32: the embedding of a token.
#pragma once

#include "kernels/kernels.h"

namespace twofour {

// `w` has one of the dense layouts; writes its k values.
void read_row(const Weights& w, std::size_t row, float* out);

}  // namespace twofour
