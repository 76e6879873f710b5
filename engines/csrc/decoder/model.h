// What a decoder step reads: the model's weights under each mask. Nothing here owns its data.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"

namespace twofour {

enum LinearId : std::size_t {
  q_proj,
  k_proj,
  v_proj,
  o_proj,
  gate_proj,
  up_proj,
  down_proj,
  linear_count
};

using Linears = std::array<Weights, linear_count>;
using Patches = std::array<const Patch*, linear_count>;  // null: the layer does not differ

struct Layer {
  std::array<const float*, linear_count> bias{};  // null: none
  const float* input_norm;
  const float* post_norm;
  const float* q_norm = nullptr;  // over one head; null: none
  const float* k_norm = nullptr;
  std::int32_t window = 0;  // positions that attention sees; 0: all
};

struct Model {
  std::size_t hidden, heads, kv_heads, head_dim, intermediate, vocab;
  float eps;
  float rope_factor;               // attention scaling of the rotary embedding; 1 for most
  const float* inverse_frequency;  // head_dim / 2
  const std::uint16_t* embedding;  // vocab x hidden, bf16
  Weights head;                    // packed, unless the head is the embedding itself
  const float* final_norm;
  std::vector<Layer> layers;

  std::size_t q_width() const { return heads * head_dim; }
  std::size_t kv_width() const { return kv_heads * head_dim; }
  std::size_t group() const { return heads / kv_heads; }
};

}  // namespace twofour
