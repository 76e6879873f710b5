#include "decoder/decoder.h"

#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <new>
#include <stdexcept>
#include <string>

#include "decoder/affinity.h"
#include "decoder/run.h"

namespace twofour {

LazyBuffer::LazyBuffer(std::size_t bytes)
    : data_(nullptr), bytes_(std::max<std::size_t>(bytes, 1)) {
  // Not reserved: memory that is never touched does not count against what the system may commit.
  void* found = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<std::byte*>(found);
}

LazyBuffer::~LazyBuffer() { munmap(data_, bytes_); }

Decoder::~Decoder() = default;

Decoder::Decoder(Model model, DecoderLimits limits, Isa isa)
    : model_(std::move(model)),
      limits_(limits),
      kernels_(kernels_for(isa)),
      layer_products_(isa, model_.block),
      head_products_(isa, model_.head.block),
      ops_(decoder_ops(isa)),
      adds_apart_(model_.adds_apart()) {
  if (model_.kv_heads == 0 || model_.heads % model_.kv_heads != 0) {
    throw std::invalid_argument("decoder: heads are no multiple of key-value heads");
  }
  if (model_.head_dim == 0 || model_.head_dim % 2 != 0) {
    throw std::invalid_argument("decoder: the head size must be even");
  }
  if (model_.rotary_dim % 2 != 0 || model_.rotary_dim > model_.head_dim) {
    throw std::invalid_argument("decoder: rotary dimensions must be even, and within the head");
  }
  for (const Layer& layer : model_.layers) {
    if (layer.rope < -1 || layer.rope >= static_cast<std::int32_t>(model_.ropes.size())) {
      throw std::invalid_argument("decoder: a layer names no rope of the model");
    }
    if (layer.router && (model_.mixture.chosen < 1 || model_.mixture.chosen > layer.experts)) {
      throw std::invalid_argument("decoder: a token goes to " +
                                  std::to_string(model_.mixture.chosen) + " of " +
                                  std::to_string(layer.experts) + " experts");
    }
    if (layer.router && (layer.bias[gate_proj] || layer.bias[up_proj] || layer.bias[down_proj])) {
      throw std::invalid_argument("decoder: experts have no biases");
    }
  }
  if (limits_.threads < 1 || limits_.max_tokens < 1 || limits_.pages < 1) {
    throw std::invalid_argument("decoder: a limit is below 1");
  }
  page_stride_ =
      model_.layers.size() * model_.kv_heads * head_page_bytes(padded_dim(model_.head_dim));
  cache_ = std::make_unique<LazyBuffer>(limits_.pages * page_stride_);
  const std::size_t tokens = limits_.max_tokens;
  const auto floats = [&](std::size_t per_token) {
    return std::make_unique<LazyBuffer>(tokens * per_token * sizeof(float));
  };
  residual_ = floats(model_.hidden);
  qkv_ = floats(model_.q_width() + 2 * model_.kv_width());
  attention_ = floats(model_.q_width());
  rotary_ = floats(model_.rotary_dim * model_.ropes.size());
  addend_ = floats(adds_apart_ ? model_.hidden : 0);
  const std::size_t rows = model_.rows_per_token();
  const std::size_t inner = std::max(model_.intermediate, rows * model_.mixture.intermediate);
  gate_ = floats(inner);
  up_ = floats(inner);
  normed_ = floats(model_.mixture.chosen > 0 ? model_.hidden : 0);
  chosen_ = std::make_unique<LazyBuffer>(tokens * model_.mixture.chosen * sizeof(std::uint32_t));
  chosen_weights_ = floats(model_.mixture.chosen);
  expert_out_ = floats(model_.mixture.chosen * model_.hidden);
  query_ = std::make_unique<LazyBuffer>(tokens * model_.heads * padded_dim(model_.head_dim) *
                                        sizeof(std::uint16_t));
  const std::size_t width =
      std::max({model_.hidden, model_.q_width(), model_.intermediate, model_.mixture.intermediate});
  // Every unit starts on a boundary of its own: see Run::unit_offset.
  const auto prepared = [&](std::size_t count, std::size_t k) {
    return count * (layer_products_.prepared_bytes(1, k) + vector_bytes);
  };
  const auto prepared_head = [&](std::size_t count) {
    return count * (head_products_.prepared_bytes(1, model_.hidden) + vector_bytes);
  };
  prepared_ = std::make_unique<LazyBuffer>(
      std::max(prepared(tokens * rows, width), prepared_head(limits_.max_logits)));
  intermediate_ = std::make_unique<LazyBuffer>(
      layer_products_.prepares_gated()
          ? std::max(prepared(tokens, model_.intermediate),
                     prepared(tokens * rows, model_.mixture.intermediate))
          : 0);
  const std::size_t blocks =
      layer_products_.quantises() ? lowbit::block_count(width, model_.block) : 0;
  quantised_ = std::make_unique<LazyBuffer>(blocks > 0 ? tokens * rows * width : 0);
  quantised_scales_ = floats(rows * blocks);
  next_item_ = std::make_unique<std::atomic<std::size_t>[]>(model_.layers.size());
  for (int i = 0; i < limits_.threads; ++i) {
    scratch_.push_back(std::make_unique<Scratch>(
        model_, width, std::max(prepared(few_tokens * rows, width), prepared_head(few_tokens)),
        blocks));
  }
}

std::size_t Decoder::add_weights(std::vector<Linears> layers) {
  if (layers.size() != model_.layers.size()) {
    throw std::invalid_argument("decoder: weights for another number of layers");
  }
  const std::size_t q = model_.q_width(), kv = model_.kv_width(), h = model_.hidden;
  for (std::size_t layer = 0; layer < layers.size(); ++layer) {
    const Linears& linears = layers[layer];
    if (linears.size() != model_.linears(model_.layers[layer])) {
      throw std::invalid_argument("decoder: a layer with another number of linear weights");
    }
    const std::size_t i = model_.inner(model_.layers[layer]);
    const std::size_t shapes[linear_count][2] = {{q, h}, {kv, h}, {kv, h}, {h, q},
                                                 {i, h}, {i, h},  {h, i}};
    for (std::size_t index = 0; index < linears.size(); ++index) {
      const auto& shape =
          shapes[index < linear_count ? index : gate_proj + (index - gate_proj) % 3];
      if (linears[index].n != shape[0] || linears[index].k != shape[1]) {
        throw std::invalid_argument("decoder: weights of another shape");
      }
      if (linears[index].block != model_.block) {
        throw std::invalid_argument("decoder: weights with a scale for " +
                                    std::to_string(linears[index].block) + " inputs, not " +
                                    std::to_string(model_.block) + " (0: bf16)");
      }
    }
  }
  for (std::size_t set = 0; set < sets_.size(); ++set) {
    if (sets_[set].empty()) {
      sets_[set] = std::move(layers);
      return set;
    }
  }
  sets_.push_back(std::move(layers));
  return sets_.size() - 1;
}

void Decoder::remove_weights(std::size_t set) {
  if (set >= sets_.size()) throw std::invalid_argument("decoder: no such weights");
  sets_[set].clear();
}

std::size_t Decoder::add_mask(std::size_t set, std::vector<Patches> patches) {
  if (set >= sets_.size() || sets_[set].empty()) {
    throw std::invalid_argument("decoder: no such weights");
  }
  if (!patches.empty() && patches.size() != model_.layers.size()) {
    throw std::invalid_argument("decoder: patches for another number of layers");
  }
  for (std::size_t layer = 0; layer < patches.size(); ++layer) {
    if (patches[layer].size() != sets_[set][layer].size()) {
      throw std::invalid_argument("decoder: patches for another number of linear weights");
    }
    for (std::size_t id = 0; id < patches[layer].size(); ++id) {
      const LayerPatch& patch = patches[layer][id];
      const Weights& weights = sets_[set][layer][id];
      if ((patch.bf16 && layer_products_.quantises()) ||
          (patch.lowbit && !layer_products_.quantises())) {
        throw std::invalid_argument("decoder: a patch for values of another type");
      }
      const auto other = [&](const auto* p) {
        return p && (p->n != weights.n || p->k != weights.k);
      };
      if (other(patch.bf16) || other(patch.lowbit)) {
        throw std::invalid_argument("decoder: a patch of another shape");
      }
    }
  }
  auto slot = std::find_if(masks_.begin(), masks_.end(), [](const Mask& m) { return !m.used; });
  if (slot == masks_.end()) slot = masks_.insert(slot, Mask{});
  *slot = Mask{true, set, std::move(patches)};
  return static_cast<std::size_t>(slot - masks_.begin());
}

void Decoder::remove_mask(std::size_t mask) {
  if (mask >= masks_.size() || !masks_[mask].used) {
    throw std::invalid_argument("decoder: no such mask");
  }
  masks_[mask] = Mask{};
}

void Decoder::step(const StepInput& input) {
  check(input);
  const StepPlan plan = this->plan(input);
  const std::size_t row = model_.group() * padded_dim(model_.head_dim);
  if (partial_.size() < plan.partials * (row + 2 * model_.group())) {
    partial_.resize(plan.partials * (row + 2 * model_.group()));
  }
  for (std::size_t layer = 0; layer < model_.layers.size(); ++layer) {
    next_item_[layer].store(0, std::memory_order_relaxed);
  }
  // The runtime may give fewer threads than asked for, so the team's size is known only inside.
  std::unique_ptr<Run> run;
#pragma omp parallel num_threads(limits_.threads)
  {
    const int threads = omp_get_num_threads();
#pragma omp single
    run = std::make_unique<Run>(*this, input, plan, static_cast<std::uint32_t>(threads));
    bind_thread(omp_get_thread_num(), threads);
    run->work(static_cast<std::size_t>(omp_get_thread_num()), static_cast<std::size_t>(threads));
  }
}

}  // namespace twofour
