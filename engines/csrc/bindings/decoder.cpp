// Python's view of the decoder. Shapes of weights are checked by the decoder, sizes of arrays here.
#include "decoder/decoder.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/lowbit_patch.h"
#include "kernels/lowbit/layout.h"

namespace twofour::python {

using namespace nb::literals;

namespace {

using Integers = Array<const std::int32_t, 1>;
using Embedding = std::variant<Array<const std::uint16_t, 2>, PackedLayer>;
using AnyPatch = std::variant<PatchArrays, LowbitPatchArrays>;
using LayerPatches = std::vector<std::optional<AnyPatch>>;

const float* sized(const Vector& vector, const char* name, std::size_t size) {
  require(vector.size() == size, std::string(name) + " has " + std::to_string(vector.size()) +
                                     " values, expected " + std::to_string(size));
  return vector.data();
}

const float* sized(const std::optional<Vector>& vector, const char* name, std::size_t size) {
  return vector ? sized(*vector, name, size) : nullptr;
}

struct NormArrays {
  Vector gain;
  std::optional<Vector> bias;
};

struct LayerArrays {
  std::optional<NormArrays> attention_input, mlp_input, attention_output, mlp_output;
  std::int32_t window, rope;
  std::optional<Vector> q_norm, k_norm;
  std::vector<std::optional<Vector>> biases;
  std::optional<Array<const float, 2>> router;
};

struct RopeArrays {
  Vector inverse_frequency;
  float factor;
};

struct ModelArrays {
  std::size_t hidden, heads, kv_heads, head_dim, intermediate, vocab;
  std::size_t rotary_dim;
  float eps;
  Blocks blocks;
  std::vector<RopeArrays> ropes;
  NormArrays final_norm;
  PackedLayer head;
  std::optional<Embedding> embedding;
  std::vector<LayerArrays> layers;
  std::size_t block;
  std::optional<Mixture> mixture;
};

bool is_dense(const Weights& w) {
  return w.layout == Layout::dense_bf16 ||
         (is_lowbit(w.layout) && lowbit::places_of(w.layout) == lowbit::Places::all);
}

Norm norm_of(const NormArrays& arrays, const char* name, std::size_t size) {
  return {sized(arrays.gain, name, size), sized(arrays.bias, name, size)};
}

Norm norm_of(const std::optional<NormArrays>& arrays, const char* name, std::size_t size) {
  return arrays ? norm_of(*arrays, name, size) : Norm{};
}

Layer layer_of(const LayerArrays& arrays, const Model& model) {
  const std::size_t q = model.q_width(), kv = model.kv_width();
  const std::size_t outputs[linear_count] = {
      q, kv, kv, model.hidden, model.intermediate, model.intermediate, model.hidden};
  require(arrays.biases.size() == linear_count, "a layer has seven biases, each perhaps None");
  Layer layer{};
  for (std::size_t id = 0; id < linear_count; ++id) {
    layer.bias[id] = sized(arrays.biases[id], "a bias", outputs[id]);
  }
  layer.attention_input = norm_of(arrays.attention_input, "attention_input", model.hidden);
  layer.mlp_input = norm_of(arrays.mlp_input, "mlp_input", model.hidden);
  layer.attention_output = norm_of(arrays.attention_output, "attention_output", model.hidden);
  layer.mlp_output = norm_of(arrays.mlp_output, "mlp_output", model.hidden);
  const bool wide = model.blocks.wide_head_norms;
  layer.q_norm = sized(arrays.q_norm, "q_norm", wide ? q : model.head_dim);
  layer.k_norm = sized(arrays.k_norm, "k_norm", wide ? kv : model.head_dim);
  layer.window = arrays.window;
  layer.rope = arrays.rope;
  if (arrays.router) {
    require(arrays.router->shape(0) > 0 && arrays.router->shape(1) == model.hidden,
            "a router has another shape than experts x hidden");
    layer.router = arrays.router->data();
    layer.experts = arrays.router->shape(0);
  }
  return layer;
}

Model model_of(const ModelArrays& arrays) {
  Model model{};
  model.hidden = arrays.hidden;
  model.heads = arrays.heads;
  model.kv_heads = arrays.kv_heads;
  model.head_dim = arrays.head_dim;
  model.intermediate = arrays.intermediate;
  model.vocab = arrays.vocab;
  model.rotary_dim = arrays.rotary_dim;
  model.eps = arrays.eps;
  model.blocks = arrays.blocks;
  for (const RopeArrays& rope : arrays.ropes) {
    model.ropes.push_back(
        {sized(rope.inverse_frequency, "inverse_frequency", model.rotary_dim / 2), rope.factor});
  }
  model.final_norm = norm_of(arrays.final_norm, "final_norm", model.hidden);
  model.head = arrays.head.weights;
  require(model.head.n == model.vocab && model.head.k == model.hidden,
          "the head has another shape");
  model.block = arrays.block;
  if (arrays.mixture) model.mixture = *arrays.mixture;
  model.table = model.head;
  if (arrays.embedding) {
    if (const auto* plain = std::get_if<0>(&*arrays.embedding)) {
      require(plain->shape(0) == model.vocab && plain->shape(1) == model.hidden,
              "the embedding has another shape");
      model.embedding = plain->data();
    } else {
      model.table = std::get<1>(*arrays.embedding).weights;
      require(model.table.n == model.vocab && model.table.k == model.hidden,
              "the embedding has another shape");
    }
  }
  require(model.embedding || is_dense(model.table),
          "a packed embedding, or a head that is the embedding, is dense");
  for (const LayerArrays& layer : arrays.layers) model.layers.push_back(layer_of(layer, model));
  return model;
}

struct Step {
  Step(Integers token_ids, Integers begins, Integers starts, Array<const std::int32_t, 2> numbers,
       Integers mask_numbers, Integers rows)
      : tokens(std::move(token_ids)),
        token_begin(std::move(begins)),
        start(std::move(starts)),
        pages(std::move(numbers)),
        masks(std::move(mask_numbers)),
        logit_rows(std::move(rows)) {
    const std::size_t sequences = start.size();
    require(token_begin.size() == sequences + 1 && masks.size() == sequences &&
                pages.shape(0) == sequences,
            "the arrays of a step disagree on the number of sequences");
    require(sequences > 0 && static_cast<std::size_t>(token_begin(sequences)) == tokens.size(),
            "the tokens are more or fewer than announced");
  }

  Integers tokens, token_begin, start;
  Array<const std::int32_t, 2> pages;
  Integers masks, logit_rows;
};

class BoundDecoder {
 public:
  BoundDecoder(const ModelArrays& model, const DecoderLimits& limits, const std::string& isa)
      : model_(model), decoder_(model_of(model_), limits, isa_from_name(isa)) {}

  std::size_t add_weights(const std::vector<std::vector<PackedLayer>>& layers) {
    std::vector<Linears> linears;
    for (const std::vector<PackedLayer>& layer : layers) {
      Linears& to = linears.emplace_back();
      for (const PackedLayer& linear : layer) to.push_back(linear.weights);
    }
    const std::size_t set = decoder_.add_weights(std::move(linears));
    weights_[set] = layers;
    return set;
  }

  void remove_weights(std::size_t set) {
    decoder_.remove_weights(set);
    weights_.erase(set);
  }

  std::size_t add_mask(std::size_t set, std::vector<LayerPatches> layers) {
    std::vector<Patches> patches;
    for (const auto& layer : layers) {
      Patches& to = patches.emplace_back(layer.size());
      for (std::size_t id = 0; id < layer.size(); ++id) {
        if (!layer[id]) continue;
        if (const auto* bf16 = std::get_if<PatchArrays>(&*layer[id])) to[id].bf16 = &bf16->patch;
        if (const auto* lowbit = std::get_if<LowbitPatchArrays>(&*layer[id])) {
          to[id].lowbit = &lowbit->patch;
        }
      }
    }
    const std::size_t mask = decoder_.add_mask(set, std::move(patches));
    masks_[mask] = std::move(layers);  // moving keeps its elements where they are
    return mask;
  }

  void remove_mask(std::size_t mask) {
    decoder_.remove_mask(mask);
    masks_.erase(mask);
  }

  std::size_t step(const Step& step, const Array<float, 2>& logits) {
    const std::size_t rows = step.logit_rows.size();
    require(logits.shape(0) >= rows && logits.shape(1) == model_.vocab,
            "the logits have another shape");
    const StepInput input{step.tokens.data(), step.token_begin.data(), step.start.data(),
                          step.pages.data(),  step.pages.shape(1),     step.masks.data(),
                          step.start.size(),  step.logit_rows.data(),  rows,
                          logits.data()};
    nb::gil_scoped_release release;
    decoder_.step(input);
    return rows;
  }

  std::size_t page_bytes() const { return decoder_.page_bytes(); }

 private:
  // What the decoder points to; declared before it, so that it goes last.
  ModelArrays model_;
  std::map<std::size_t, std::vector<std::vector<PackedLayer>>> weights_;
  std::map<std::size_t, std::vector<LayerPatches>> masks_;
  Decoder decoder_;
};

void bind_structs(nb::module_& m) {
  nb::class_<DecoderLimits>(m, "Limits",
                            "What one decoder is made for.\n\n"
                            "Attributes:\n"
                            "    max_tokens: most tokens of one step.\n"
                            "    max_logits: most rows of logits of one step.\n"
                            "    context: most positions of a sequence.\n"
                            "    pages: pages of the key-value cache.\n"
                            "    threads: OpenMP threads.")
      .def(
          "__init__",
          [](DecoderLimits* self, std::size_t max_tokens, std::size_t max_logits,
             std::size_t context, std::size_t pages, int threads) {
            new (self) DecoderLimits{max_tokens, max_logits, context, pages, threads};
          },
          "max_tokens"_a, "max_logits"_a, "context"_a, "pages"_a, "threads"_a)
      .def_ro("max_tokens", &DecoderLimits::max_tokens)
      .def_ro("max_logits", &DecoderLimits::max_logits)
      .def_ro("context", &DecoderLimits::context)
      .def_ro("pages", &DecoderLimits::pages)
      .def_ro("threads", &DecoderLimits::threads);
  nb::class_<NormArrays>(m, "Norm", "Gain and perhaps bias of a norm, (hidden,) each.")
      .def(
          "__init__",
          [](NormArrays* self, Vector gain, std::optional<Vector> bias) {
            new (self) NormArrays{std::move(gain), std::move(bias)};
          },
          "gain"_a.noconvert(), "bias"_a.none().noconvert() = nb::none());
  nb::class_<RopeArrays>(
      m, "Rope",
      "A rotary embedding: (rotary_dim / 2,) angles per position, and the factor\n"
      "of sines and cosines.")
      .def(
          "__init__",
          [](RopeArrays* self, Vector inverse_frequency, float factor) {
            new (self) RopeArrays{std::move(inverse_frequency), factor};
          },
          "inverse_frequency"_a.noconvert(), "factor"_a);
  nb::class_<Blocks>(m, "Blocks",
                     "How the blocks of a family are put together.\n\n"
                     "Args:\n"
                     "    layer_norm: norms subtract the mean.\n"
                     "    wide_head_norms: q_norm and k_norm are over all heads at once.\n"
                     "    parallel: attention and MLP read the same residual stream.\n"
                     "    interleaved: rotary pairs are neighbours, not half a head apart.\n"
                     "    gate_linear, gate_cubic: a, b of the gate x sigmoid(a x + b x^3).\n"
                     "    embedding_scale: of rows of the embedding.\n"
                     "    residual_scale: of what a block adds to the residual stream.\n"
                     "    attention_scale: of scores, before the softmax.\n"
                     "    attention_cap: c of c tanh(score / c); 0 for none.\n"
                     "    logit_scale, logit_cap: of logits, the scale first.")
      .def(
          "__init__",
          [](Blocks* self, bool layer_norm, bool wide_head_norms, bool parallel, bool interleaved,
             float gate_linear, float gate_cubic, float embedding_scale, float residual_scale,
             float attention_scale, float attention_cap, float logit_scale, float logit_cap) {
            new (self) Blocks{layer_norm,
                              wide_head_norms,
                              parallel,
                              interleaved,
                              {gate_linear, gate_cubic},
                              embedding_scale,
                              residual_scale,
                              attention_scale,
                              attention_cap,
                              logit_scale,
                              logit_cap};
          },
          nb::kw_only(), "layer_norm"_a = false, "wide_head_norms"_a = false, "parallel"_a = false,
          "interleaved"_a = false, "gate_linear"_a = 1.0f, "gate_cubic"_a = 0.0f,
          "embedding_scale"_a = 1.0f, "residual_scale"_a = 1.0f, "attention_scale"_a,
          "attention_cap"_a = 0.0f, "logit_scale"_a = 1.0f, "logit_cap"_a = 0.0f);
  nb::class_<Mixture>(m, "Mixture",
                      "How a token's experts are chosen: by a softmax over a layer's.\n\n"
                      "Args:\n"
                      "    chosen: experts that a token goes to; 0 where no layer has any.\n"
                      "    intermediate: of an expert.\n"
                      "    normalised: the weights of the chosen ones add up to 1.")
      .def(
          "__init__",
          [](Mixture* self, std::size_t chosen, std::size_t intermediate, bool normalised) {
            new (self) Mixture{chosen, intermediate, normalised};
          },
          nb::kw_only(), "chosen"_a = 0, "intermediate"_a = 0, "normalised"_a = false);
  nb::class_<LayerArrays>(
      m, "Layer",
      "A layer's vectors: norms of what its blocks read and of what they add, each\n"
      "perhaps None, norms over a head (head_dim,) or over all, or None, the biases of\n"
      "its seven linear layers, each perhaps None; how many positions attention sees\n"
      "(0: all), which of the model's ropes it has (-1: none), and where the MLP is a\n"
      "mixture its (experts, hidden) router.")
      .def(
          "__init__",
          [](LayerArrays* self, std::optional<NormArrays> attention_input,
             std::optional<NormArrays> mlp_input, std::optional<NormArrays> attention_output,
             std::optional<NormArrays> mlp_output, std::int32_t window, std::int32_t rope,
             std::optional<Vector> q_norm, std::optional<Vector> k_norm,
             std::vector<std::optional<Vector>> biases,
             std::optional<Array<const float, 2>> router) {
            new (self) LayerArrays{std::move(attention_input),
                                   std::move(mlp_input),
                                   std::move(attention_output),
                                   std::move(mlp_output),
                                   window,
                                   rope,
                                   std::move(q_norm),
                                   std::move(k_norm),
                                   std::move(biases),
                                   std::move(router)};
          },
          nb::kw_only(), "attention_input"_a.none(), "mlp_input"_a.none(),
          "attention_output"_a.none() = nb::none(), "mlp_output"_a.none() = nb::none(), "window"_a,
          "rope"_a = 0, "q_norm"_a.none().noconvert(), "k_norm"_a.none().noconvert(),
          "biases"_a.noconvert(), "router"_a.none().noconvert() = nb::none());
  nb::class_<ModelArrays>(
      m, "Model",
      "All of a model but its linear layers.\n\n"
      "The first `rotary_dim` dimensions of a head turn. `embedding` is (vocab, hidden)\n"
      "bf16 bits, or packed dense, or None where the head, packed dense, is the embedding\n"
      "too. `block` is that of all linear layers: inputs that share a scale, 0 for\n"
      "bf16.")
      .def(
          "__init__",
          [](ModelArrays* self, std::size_t hidden, std::size_t heads, std::size_t kv_heads,
             std::size_t head_dim, std::size_t intermediate, std::size_t vocab,
             std::size_t rotary_dim, float eps, const Blocks& blocks, std::vector<RopeArrays> ropes,
             NormArrays final_norm, const PackedLayer& head, std::optional<Embedding> embedding,
             std::vector<LayerArrays> layers, std::size_t block, std::optional<Mixture> mixture) {
            new (self) ModelArrays{hidden,
                                   heads,
                                   kv_heads,
                                   head_dim,
                                   intermediate,
                                   vocab,
                                   rotary_dim,
                                   eps,
                                   blocks,
                                   std::move(ropes),
                                   std::move(final_norm),
                                   head,
                                   std::move(embedding),
                                   std::move(layers),
                                   block,
                                   mixture};
          },
          nb::kw_only(), "hidden"_a, "heads"_a, "kv_heads"_a, "head_dim"_a, "intermediate"_a,
          "vocab"_a, "rotary_dim"_a, "eps"_a, "blocks"_a, "ropes"_a, "final_norm"_a, "head"_a,
          "embedding"_a.none().noconvert(), "layers"_a, "block"_a = 0,
          "mixture"_a.none() = nb::none());
  nb::class_<Step>(m, "Step",
                   "What one step computes.\n\n"
                   "Args:\n"
                   "    tokens: (tokens,) ids of all sequences, one after the other.\n"
                   "    token_begin: (sequences + 1,) where each sequence's tokens start.\n"
                   "    start: (sequences,) position of each sequence's first token.\n"
                   "    pages: (sequences, width) page numbers, the unused ones of any value.\n"
                   "    masks: (sequences,) mask numbers; equal weights are best kept together.\n"
                   "    logit_rows: (rows,) which tokens' logits are wanted.\n\n"
                   "Raises:\n"
                   "    ValueError: the arrays do not fit together.")
      .def(nb::init<Integers, Integers, Integers, Array<const std::int32_t, 2>, Integers,
                    Integers>(),
           nb::kw_only(), "tokens"_a.noconvert(), "token_begin"_a.noconvert(),
           "start"_a.noconvert(), "pages"_a.noconvert(), "masks"_a.noconvert(),
           "logit_rows"_a.noconvert())
      .def_ro("tokens", &Step::tokens)
      .def_ro("token_begin", &Step::token_begin)
      .def_ro("start", &Step::start)
      .def_ro("pages", &Step::pages)
      .def_ro("masks", &Step::masks)
      .def_ro("logit_rows", &Step::logit_rows);
}

}  // namespace

void bind_decoder(nb::module_& m) {
  m.attr("PAGE_POSITIONS") = page_positions;
  m.def(
      "page_bytes",
      [](std::size_t layers, std::size_t kv_heads, std::size_t head_dim) {
        return layers * kv_heads * head_page_bytes(padded_dim(head_dim));
      },
      "layers"_a, "kv_heads"_a, "head_dim"_a, "Bytes of one page of the key-value cache.");
  bind_structs(m);
  nb::class_<BoundDecoder>(
      m, "Decoder",
      "Sets of packed weights, masks over them, and a key-value cache.\n\n"
      "A mask is a set of weights and what is added to its products. Sets and\n"
      "masks have numbers, which are used again once they are removed.")
      .def(nb::init<const ModelArrays&, const DecoderLimits&, const std::string&>(), "model"_a,
           "limits"_a, "isa"_a)
      .def("add_weights", &BoundDecoder::add_weights, "layers"_a,
           "A set: by layer, its seven linear layers, and three for each expert but the first.")
      .def("remove_weights", &BoundDecoder::remove_weights, "set"_a)
      .def(
          "add_mask", &BoundDecoder::add_mask, "set"_a, "patches"_a,
          "A mask: by layer, its linear layers' patches, None where it agrees; no layers for none\n"
          "at all.")
      .def("remove_mask", &BoundDecoder::remove_mask, "mask"_a)
      .def("step", &BoundDecoder::step, "step"_a, "logits"_a.noconvert(),
           "Writes (rows, vocab) logits; how many rows. ValueError, and nothing computed, where a\n"
           "number is out of range.")
      .def_prop_ro("page_bytes", &BoundDecoder::page_bytes);
}

}  // namespace twofour::python
