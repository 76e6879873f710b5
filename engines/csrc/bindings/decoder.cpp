// Python's view of the decoder. Shapes of weights are checked by the decoder, sizes of arrays here.
#include "decoder/decoder.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

namespace nb = nanobind;
using namespace nb::literals;

namespace {

template <class T, int Dimensions>
using Array = nb::ndarray<T, nb::ndim<Dimensions>, nb::c_contig, nb::device::cpu>;
using Bytes = Array<const std::uint8_t, 1>;
using Floats = Array<const float, 1>;
using Integers = Array<const std::int32_t, 1>;

// (layout, n, k, data) of one packed layer.
using Packed = std::tuple<std::uint32_t, std::size_t, std::size_t, Bytes>;
// (row_start, group, codes, delta) of one patched layer.
using PatchArrays = std::tuple<Array<const std::uint32_t, 1>, Array<const std::uint32_t, 1>, Bytes,
                               Array<const std::uint16_t, 2>>;

void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

twofour::Weights weights_of(const Packed& packed) {
  const auto& [layout, n, k, data] = packed;
  require(layout == 1 || layout == 2,
          "layout " + std::to_string(layout) + " is unknown (known: 1, 2)");
  const auto id = static_cast<twofour::Layout>(layout);
  require(
      n > 0 && k > 0 && data.size() == twofour::packed_bytes(id, n, k),
      "packed weights of " + std::to_string(n) + " x " + std::to_string(k) + " have another size");
  return {id, n, k, reinterpret_cast<const std::byte*>(data.data())};
}

twofour::Patch patch_of(const PatchArrays& arrays, std::size_t k) {
  const auto& [row_start, group, codes, delta] = arrays;
  require(row_start.size() > 0, "a patch without rows");
  const std::size_t n = row_start.size() - 1, count = group.size();
  require(codes.size() == count && delta.shape(0) == count && delta.shape(1) == 4 &&
              row_start(0) == 0 && row_start(n) == count,
          "the patch's arrays do not fit together");
  // Checked by flags: a patch has millions of groups, and this runs between two steps.
  bool rising = true, inside = true;
  for (std::size_t row = 0; row < n; ++row) {
    rising = rising && row_start.data()[row] <= row_start.data()[row + 1];
  }
  for (std::size_t i = 0; i < count; ++i) {
    const unsigned code = codes.data()[i];
    inside = inside && group.data()[i] < k / 4 && (code & 15u) < 6 && (code >> 4) < 6;
  }
  require(rising, "the patch's rows do not rise");
  require(inside, "the patch names a group or a code out of range");
  return {n, k, row_start.data(), group.data(), codes.data(), delta.data()};
}

const float* vector_of(const nb::dict& from, const char* name, std::size_t size,
                       std::vector<nb::object>& kept) {
  if (!from.contains(name)) return nullptr;
  nb::object value = from[name];
  if (value.is_none()) return nullptr;
  const auto array = nb::cast<Floats>(value);
  require(array.size() == size, std::string(name) + " has " + std::to_string(array.size()) +
                                    " values, expected " + std::to_string(size));
  kept.push_back(value);
  return array.data();
}

const float* needed(const float* found, const char* name) {
  require(found != nullptr, std::string(name) + " is missing");
  return found;
}

class PyDecoder {
 public:
  PyDecoder(const nb::dict& sizes, const nb::list& layers, const nb::dict& shared,
            const Packed& head, const std::string& isa) {
    const auto size = [&](const char* name) { return nb::cast<std::size_t>(sizes[name]); };
    twofour::Model model{};
    model.hidden = size("hidden");
    model.heads = size("heads");
    model.kv_heads = size("kv_heads");
    model.head_dim = size("head_dim");
    model.intermediate = size("intermediate");
    model.vocab = size("vocab");
    model.eps = nb::cast<float>(sizes["eps"]);
    model.rope_factor = nb::cast<float>(sizes["rope_factor"]);
    model.inverse_frequency = needed(
        vector_of(shared, "inverse_frequency", model.head_dim / 2, kept_), "inverse_frequency");
    model.final_norm = needed(vector_of(shared, "final_norm", model.hidden, kept_), "final_norm");
    model.head = weights_of(head);
    require(model.head.n == model.vocab && model.head.k == model.hidden,
            "the head has another shape");
    kept_.push_back(nb::cast(std::get<3>(head)));
    if (shared.contains("embedding")) {
      const auto embedding = nb::cast<Array<const std::uint16_t, 2>>(shared["embedding"]);
      require(embedding.shape(0) == model.vocab && embedding.shape(1) == model.hidden,
              "the embedding has another shape");
      model.embedding = embedding.data();
      kept_.push_back(shared["embedding"]);
    } else {
      require(model.head.layout == twofour::Layout::dense_bf16, "a tied head must be dense");
    }
    const std::size_t q = model.q_width(), kv = model.kv_width();
    const std::pair<const char*, std::size_t> biases[] = {{"q_bias", q},
                                                          {"k_bias", kv},
                                                          {"v_bias", kv},
                                                          {"o_bias", model.hidden},
                                                          {"gate_bias", model.intermediate},
                                                          {"up_bias", model.intermediate},
                                                          {"down_bias", model.hidden}};
    for (nb::handle handle : layers) {
      const auto from = nb::cast<nb::dict>(handle);
      twofour::Layer layer{};
      for (std::size_t id = 0; id < twofour::linear_count; ++id) {
        layer.bias[id] = vector_of(from, biases[id].first, biases[id].second, kept_);
      }
      layer.input_norm = needed(vector_of(from, "input_norm", model.hidden, kept_), "input_norm");
      layer.post_norm = needed(vector_of(from, "post_norm", model.hidden, kept_), "post_norm");
      layer.q_norm = vector_of(from, "q_norm", model.head_dim, kept_);
      layer.k_norm = vector_of(from, "k_norm", model.head_dim, kept_);
      layer.window = nb::cast<std::int32_t>(from["window"]);
      model.layers.push_back(layer);
    }
    const twofour::DecoderLimits limits{size("max_tokens"), size("max_logits"), size("context"),
                                        size("pages"), nb::cast<int>(sizes["threads"])};
    vocab_ = model.vocab;
    decoder_ =
        std::make_unique<twofour::Decoder>(std::move(model), limits, twofour::isa_from_name(isa));
  }

  std::size_t add_weights(const std::vector<std::vector<Packed>>& layers) {
    std::vector<twofour::Linears> linears;
    std::vector<nb::object> kept;
    for (const std::vector<Packed>& layer : layers) {
      require(layer.size() == twofour::linear_count, "a layer has seven linear weights");
      twofour::Linears& to = linears.emplace_back();
      for (std::size_t id = 0; id < twofour::linear_count; ++id) {
        to[id] = weights_of(layer[id]);
        kept.push_back(nb::cast(std::get<3>(layer[id])));
      }
    }
    shapes_ = linears;
    const std::size_t set = decoder_->add_weights(std::move(linears));
    weights_[set] = std::move(kept);
    return set;
  }

  void remove_weights(std::size_t set) {
    decoder_->remove_weights(set);
    weights_.erase(set);
  }

  std::size_t add_mask(std::size_t set,
                       const std::vector<std::vector<std::optional<PatchArrays>>>& layers) {
    auto owner = std::make_unique<MaskArrays>();
    std::vector<twofour::Patches> patches;
    for (std::size_t layer = 0; layer < layers.size(); ++layer) {
      require(layers[layer].size() == twofour::linear_count && layer < shapes_.size(),
              "a layer has seven linear weights");
      twofour::Patches& to = patches.emplace_back();
      for (std::size_t id = 0; id < twofour::linear_count; ++id) {
        to[id] = nullptr;
        if (!layers[layer][id]) continue;
        const PatchArrays& arrays = *layers[layer][id];
        owner->patches.push_back(
            std::make_unique<twofour::Patch>(patch_of(arrays, shapes_[layer][id].k)));
        to[id] = owner->patches.back().get();
        owner->kept.push_back(nb::cast(std::get<0>(arrays)));
        owner->kept.push_back(nb::cast(std::get<1>(arrays)));
        owner->kept.push_back(nb::cast(std::get<2>(arrays)));
        owner->kept.push_back(nb::cast(std::get<3>(arrays)));
      }
    }
    const std::size_t mask = decoder_->add_mask(set, std::move(patches));
    masks_[mask] = std::move(owner);
    return mask;
  }

  void remove_mask(std::size_t mask) {
    decoder_->remove_mask(mask);
    masks_.erase(mask);
  }

  void step(const Integers& tokens, const Integers& token_begin, const Integers& start,
            const Array<const std::int32_t, 2>& pages, const Integers& masks,
            const Integers& logit_rows, const Array<float, 2>& logits) {
    const std::size_t sequences = start.size();
    require(token_begin.size() == sequences + 1 && masks.size() == sequences &&
                pages.shape(0) == sequences,
            "the arrays of a step disagree on the number of sequences");
    require(sequences > 0 && static_cast<std::size_t>(token_begin(sequences)) == tokens.size(),
            "the tokens are more or fewer than announced");
    require(logits.shape(0) >= logit_rows.size() && logits.shape(1) == vocab_,
            "the logits have another shape");
    const twofour::StepInput input{
        tokens.data(), token_begin.data(), start.data(),      pages.data(),      pages.shape(1),
        masks.data(),  sequences,          logit_rows.data(), logit_rows.size(), logits.data()};
    nb::gil_scoped_release release;
    decoder_->step(input);
  }

  std::size_t page_bytes() const { return decoder_->page_bytes(); }

 private:
  struct MaskArrays {
    std::vector<std::unique_ptr<twofour::Patch>> patches;
    std::vector<nb::object> kept;
  };

  // What the decoder points to; declared before it, so that it goes last.
  std::vector<nb::object> kept_;
  std::map<std::size_t, std::vector<nb::object>> weights_;
  std::map<std::size_t, std::unique_ptr<MaskArrays>> masks_;
  std::vector<twofour::Linears> shapes_;
  std::size_t vocab_;
  std::unique_ptr<twofour::Decoder> decoder_;
};

}  // namespace

void bind_decoder(nb::module_ m) {
  m.attr("PAGE_POSITIONS") = twofour::page_positions;
  m.def("page_bytes", [](std::size_t layers, std::size_t kv_heads, std::size_t head_dim) {
    return layers * kv_heads * twofour::head_page_bytes(twofour::padded_dim(head_dim));
  });
  nb::class_<PyDecoder>(m, "Decoder")
      .def(nb::init<const nb::dict&, const nb::list&, const nb::dict&, const Packed&,
                    const std::string&>(),
           "sizes"_a, "layers"_a, "shared"_a, "head"_a, "isa"_a)
      .def("add_weights", &PyDecoder::add_weights, "layers"_a)
      .def("remove_weights", &PyDecoder::remove_weights, "set"_a)
      .def("add_mask", &PyDecoder::add_mask, "set"_a, "patches"_a)
      .def("remove_mask", &PyDecoder::remove_mask, "mask"_a)
      .def("step", &PyDecoder::step, "tokens"_a, "token_begin"_a, "start"_a, "pages"_a, "masks"_a,
           "logit_rows"_a, "logits"_a)
      .def_prop_ro("page_bytes", &PyDecoder::page_bytes);
}
