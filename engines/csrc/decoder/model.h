// What a decoder step reads: the model's weights under each mask. Nothing here owns its data.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "decoder/lowbit_patch.h"
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
// What a mask adds to one layer's products: at most one of the two, by the type of its values.
struct LayerPatch {
  const Patch* bf16 = nullptr;
  const LowbitPatch* lowbit = nullptr;
  explicit operator bool() const { return bf16 || lowbit; }
};
using Patches = std::array<LayerPatch, linear_count>;

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
  const std::uint16_t* embedding;  // vocab x hidden, bf16; null: `table` has its rows
  Weights table;                   // a packed embedding: the head's own weights where it is tied
  Weights head;
  std::size_t block;  // inputs that share a scale in all linear layers; 0: they are bf16
  const float* final_norm;
  std::vector<Layer> layers;

  std::size_t q_width() const { return heads * head_dim; }
  std::size_t kv_width() const { return kv_heads * head_dim; }
  std::size_t group() const { return heads / kv_heads; }
};

}  // namespace twofour
