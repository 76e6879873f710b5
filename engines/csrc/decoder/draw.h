// Drawing a token from logits: temperature, min-p, top-k and top-p, in this order.
#pragma once

#include <cstddef>
#include <cstdint>

#include "decoder/ops.h"

namespace twofour {

struct Filters {
  float temperature;   // above 0
  std::int64_t top_k;  // at most so many tokens; all, if below 1
  double top_p;        // the likeliest ones that reach this share of what is left
  float min_p;         // at least this share of the likeliest one's probability
};

// The token at quantile `uniform` (in [0, 1)) of the filtered distribution; at least the likeliest
// one stays. Equally likely ones count in order of their number. The largest logit is finite.
std::size_t draw(const DecoderOps& ops, const float* logits, std::size_t n, const Filters& filters,
                 double uniform);

}  // namespace twofour
