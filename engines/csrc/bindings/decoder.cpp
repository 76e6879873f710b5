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

struct LayerArrays {
  Vector input_norm, post_norm;
  std::int32_t window;
  std::optional<Vector> q_norm, k_norm;
  std::vector<std::optional<Vector>> biases;
};

struct ModelArrays {
  std::size_t hidden, heads, kv_heads, head_dim, intermediate, vocab;
  float eps, rope_factor;
  Vector inverse_frequency, final_norm;
  PackedLayer head;
  std::optional<Embedding> embedding;
  std::vector<LayerArrays> layers;
  std::size_t block;
};

bool is_dense(const Weights& w) {
  return w.layout == Layout::dense_bf16 ||
         (is_lowbit(w.layout) && lowbit::places_of(w.layout) == lowbit::Places::all);
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
  layer.input_norm = sized(arrays.input_norm, "input_norm", model.hidden);
  layer.post_norm = sized(arrays.post_norm, "post_norm", model.hidden);
  layer.q_norm = sized(arrays.q_norm, "q_norm", model.head_dim);
  layer.k_norm = sized(arrays.k_norm, "k_norm", model.head_dim);
  layer.window = arrays.window;
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
  model.eps = arrays.eps;
  model.rope_factor = arrays.rope_factor;
  model.inverse_frequency =
      sized(arrays.inverse_frequency, "inverse_frequency", model.head_dim / 2);
  model.final_norm = sized(arrays.final_norm, "final_norm", model.hidden);
  model.head = arrays.head.weights;
  require(model.head.n == model.vocab && model.head.k == model.hidden,
          "the head has another shape");
  model.block = arrays.block;
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
      require(layer.size() == linear_count, "a layer has seven linear weights");
      Linears& to = linears.emplace_back();
      for (std::size_t id = 0; id < linear_count; ++id) to[id] = layer[id].weights;
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
      require(layer.size() == linear_count, "a layer has seven linear weights");
      Patches& to = patches.emplace_back();
      for (std::size_t id = 0; id < linear_count; ++id) {
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
  nb::class_<LayerArrays>(
      m, "Layer",
      "A layer's vectors: norms (hidden,), norms over a head (head_dim,) or\n"
      "None, the biases of its seven linear layers, each perhaps None, and how\n"
      "many positions attention sees (0: all).")
      .def(
          "__init__",
          [](LayerArrays* self, Vector input_norm, Vector post_norm, std::int32_t window,
             std::optional<Vector> q_norm, std::optional<Vector> k_norm,
             std::vector<std::optional<Vector>> biases) {
            new (self) LayerArrays{std::move(input_norm), std::move(post_norm), window,
                                   std::move(q_norm),     std::move(k_norm),    std::move(biases)};
          },
          nb::kw_only(), "input_norm"_a.noconvert(), "post_norm"_a.noconvert(), "window"_a,
          "q_norm"_a.none().noconvert(), "k_norm"_a.none().noconvert(), "biases"_a.noconvert());
  nb::class_<ModelArrays>(
      m, "Model",
      "All of a model but its linear layers.\n\n"
      "`inverse_frequency` is (head_dim / 2,), `embedding` (vocab, hidden) bf16\n"
      "bits, or packed dense, or None where the head, packed dense, is the embedding\n"
      "too. `block` is that of all linear layers: inputs that share a scale, 0 for\n"
      "bf16.")
      .def(
          "__init__",
          [](ModelArrays* self, std::size_t hidden, std::size_t heads, std::size_t kv_heads,
             std::size_t head_dim, std::size_t intermediate, std::size_t vocab, float eps,
             float rope_factor, Vector inverse_frequency, Vector final_norm,
             const PackedLayer& head, std::optional<Embedding> embedding,
             std::vector<LayerArrays> layers, std::size_t block) {
            new (self) ModelArrays{hidden,
                                   heads,
                                   kv_heads,
                                   head_dim,
                                   intermediate,
                                   vocab,
                                   eps,
                                   rope_factor,
                                   std::move(inverse_frequency),
                                   std::move(final_norm),
                                   head,
                                   std::move(embedding),
                                   std::move(layers),
                                   block};
          },
          nb::kw_only(), "hidden"_a, "heads"_a, "kv_heads"_a, "head_dim"_a, "intermediate"_a,
          "vocab"_a, "eps"_a, "rope_factor"_a, "inverse_frequency"_a.noconvert(),
          "final_norm"_a.noconvert(), "head"_a, "embedding"_a.none().noconvert(), "layers"_a,
          "block"_a = 0);
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
           "A set: by layer, its seven linear layers.")
      .def("remove_weights", &BoundDecoder::remove_weights, "set"_a)
      .def("add_mask", &BoundDecoder::add_mask, "set"_a, "patches"_a,
           "A mask: by layer, the seven patches, None where it agrees; no layers for none at all.")
      .def("remove_mask", &BoundDecoder::remove_mask, "mask"_a)
      .def("step", &BoundDecoder::step, "step"_a, "logits"_a.noconvert(),
           "Writes (rows, vocab) logits; how many rows. ValueError, and nothing computed, where a\n"
           "number is out of range.")
      .def_prop_ro("page_bytes", &BoundDecoder::page_bytes);
}

}  // namespace twofour::python
