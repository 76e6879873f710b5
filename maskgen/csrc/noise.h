// Counter-based noise: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC'11), one call per group of four weights. The counter is (group, micro-batch, step, layer) and
// the key is the seed, so any pass can draw the same noise again without storing it.
// maskgen/learning/noise.py is the same function in torch.
#pragma once

#include "common/exp_log.h"
#include "kernels.h"

namespace twofour::learning {
namespace {

struct Draw {
  Words w[4];
};

inline Words multiply_high(Words a, std::uint32_t m) {
  std::uint32_t in[lanes], out[lanes];
  __builtin_memcpy(in, &a, sizeof in);
  for (int lane = 0; lane < lanes; ++lane) {
    out[lane] = static_cast<std::uint32_t>((static_cast<std::uint64_t>(in[lane]) * m) >> 32);
  }
  Words high;
  __builtin_memcpy(&high, out, sizeof high);
  return high;
}

inline Draw philox(const NoiseKey& key, std::uint32_t first_group) {
  Words c0 = lane_numbers() + first_group;
  Words c1 = splat(key.micro_batch);
  Words c2 = splat(key.step);
  Words c3 = splat(key.layer);
  std::uint32_t k0 = static_cast<std::uint32_t>(key.seed);
  std::uint32_t k1 = static_cast<std::uint32_t>(key.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const Words high0 = multiply_high(c0, 0xD2511F53u);
    const Words high1 = multiply_high(c2, 0xCD9E8D57u);
    const Words low0 = c0 * 0xD2511F53u;
    const Words low1 = c2 * 0xCD9E8D57u;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Gumbel = -log(exponential), exponential = -log(uniform). What the samplers use is
// log(exponential).
inline Floats log_exponential(Floats uniform) { return log(-log(uniform)); }

// Six draws of 21 bits from the 128 bits of one call.
inline void six_log_exponentials(const Draw& draw, Floats out[6]) {
  const Words* w = draw.w;
  const Words bits[6] = {w[0] >> 11,
                         w[1] >> 11,
                         w[2] >> 11,
                         w[3] >> 11,
                         ((w[0] & 0x7ffu) << 10) | ((w[1] & 0x7ffu) >> 1),
                         ((w[2] & 0x7ffu) << 10) | ((w[3] & 0x7ffu) >> 1)};
  for (int i = 0; i < 6; ++i) {
    out[i] = log_exponential((to_float(bits[i]) + 0.5f) * (1.0f / 2097152.0f));
  }
}

// Four draws of 23 bits.
inline void four_log_exponentials(const Draw& draw, Floats out[4]) {
  for (int i = 0; i < 4; ++i) {
    out[i] = log_exponential((to_float(draw.w[i] >> 9) + 0.5f) * (1.0f / 8388608.0f));
  }
}

}  // namespace
}  // namespace twofour::learning
