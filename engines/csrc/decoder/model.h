// What a decoder step reads: the model's weights under each mask. Nothing here owns its data.
#pragma once

#include <algorithm>
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

// Of a layer with experts, the last three are those of expert 0; three for each other one follow.
inline std::size_t linear_of(LinearId id, std::size_t expert) {
  return id < gate_proj ? id : id + 3 * expert;
}

using Linears = std::vector<Weights>;  // by `linear_of`
// What a mask adds to one layer's products: at most one of the two, by the type of its values.
struct LayerPatch {
  const Patch* bf16 = nullptr;
  const LowbitPatch* lowbit = nullptr;
  explicit operator bool() const { return bf16 || lowbit; }
};
using Patches = std::vector<LayerPatch>;  // by `linear_of`

struct Norm {
  const float* gain = nullptr;  // null: there is no norm here
  const float* bias = nullptr;  // null: none
  explicit operator bool() const { return gain; }
};

struct Layer {
  std::array<const float*, linear_count> bias{};  // null: none
  Norm attention_input, mlp_input;                // of what the block reads
  Norm attention_output, mlp_output;              // of what it adds to the residual stream
  const float* q_norm = nullptr;  // over one head, or over all (`wide_head_norms`); null: none
  const float* k_norm = nullptr;
  std::int32_t window = 0;  // positions that attention sees; 0: all
  std::int32_t rope = 0;    // which of the model's; -1: none
  // A mixture: experts x hidden weights that decide which experts a token goes to. Null: an MLP.
  const float* router = nullptr;
  std::size_t experts = 1;
};

// How a token's experts are chosen and weighed: by a softmax over all of a layer's.
struct Mixture {
  std::size_t chosen = 0;        // experts a token goes to; 0: no layer has any
  std::size_t intermediate = 0;  // of an expert
  bool normalised = false;       // the weights of the chosen ones add up to 1
};

// A rotary embedding of the first `rotary_dim` dimensions of a head.
struct Rope {
  const float* inverse_frequency;  // rotary_dim / 2
  float factor;                    // attention scaling; 1 for most
};

// How the blocks of a family are put together, where families differ.
struct Blocks {
  bool layer_norm = false;       // norms subtract the mean
  bool wide_head_norms = false;  // q_norm and k_norm are over all heads at once
  bool parallel = false;         // attention and MLP read the same residual stream
  bool interleaved = false;      // rotary pairs are neighbours, not half a head apart
  GateCurve curve;
  float embedding_scale = 1.0f;
  float residual_scale = 1.0f;  // of what a block adds
  float attention_scale;        // of scores
  float attention_cap = 0.0f;   // c: scores become c tanh(score / c); 0: they stay
  float logit_scale = 1.0f;
  float logit_cap = 0.0f;
};

struct Model {
  std::size_t hidden, heads, kv_heads, head_dim, intermediate, vocab;
  std::size_t rotary_dim;
  float eps;
  Blocks blocks;
  std::vector<Rope> ropes;
  const std::uint16_t* embedding;  // vocab x hidden, bf16; null: `table` has its rows
  Weights table;                   // a packed embedding: the head's own weights where it is tied
  Weights head;
  std::size_t block;  // inputs that share a scale in all linear layers; 0: they are bf16
  Norm final_norm;
  Mixture mixture;
  std::vector<Layer> layers;

  std::size_t q_width() const { return heads * head_dim; }
  std::size_t kv_width() const { return kv_heads * head_dim; }
  std::size_t group() const { return heads / kv_heads; }
  std::size_t inner(const Layer& layer) const {
    return layer.router ? mixture.intermediate : intermediate;
  }
  std::size_t linears(const Layer& layer) const { return linear_count + 3 * (layer.experts - 1); }
  // Rows that a token may take in a product.
  std::size_t rows_per_token() const { return std::max<std::size_t>(mixture.chosen, 1); }
  // Whether what a block adds is changed, or held back, before it is added.
  bool adds_apart() const {
    if (blocks.parallel || blocks.residual_scale != 1.0f) return true;
    return std::any_of(layers.begin(), layers.end(),
                       [](const Layer& l) { return l.attention_output || l.mlp_output; });
  }
};

}  // namespace twofour
