#include "decoder/run.h"

#include <algorithm>
#include <cmath>

#include "common/bf16.h"

namespace twofour {

namespace {

float* floats(const std::unique_ptr<LazyBuffer>& buffer) {
  return reinterpret_cast<float*>(buffer->data());
}

}  // namespace

Decoder::Scratch::Scratch(const Model& model, std::size_t width, std::size_t prepared_bytes)
    : row(std::max(width, model.hidden)), prepared(prepared_bytes) {
  const std::size_t dim = padded_dim(model.head_dim), rows = item_tokens * model.group();
  queries.resize(model.group() * dim);
  key.resize(dim);
  query_rows.resize(rows);
  positions.resize(rows);
  part.resize(rows * (dim + 2));
  total.resize(rows * (dim + 2));
}

Decoder::Run::Run(Decoder& decoder, const StepInput& input, const StepPlan& plan,
                  std::uint32_t threads)
    : d_(decoder),
      m_(decoder.model_),
      in_(input),
      plan_(plan),
      residual_(floats(decoder.residual_)),
      qkv_(floats(decoder.qkv_)),
      attention_(floats(decoder.attention_)),
      qkv_width_(m_.q_width() + 2 * m_.kv_width()),
      replicate_(plan.tokens <= few_tokens),
      barrier_(threads) {}

// Threads share each phase's rows or tokens and wait for one another before the next phase reads
// what they wrote. A wait costs microseconds, as much as a small layer's product, so what is cheap
// enough is done by every thread for itself instead (see few_tokens).
void Decoder::Run::work(std::size_t thread, std::size_t count) {
  embed(thread, count);
  barrier_.wait();
  for (std::size_t layer = 0; layer < m_.layers.size(); ++layer) {
    attention_layer(layer, thread, count);
    mlp_layer(layer, thread, count);
  }
  if (in_.logit_count > 0) head(thread, count);
}

void Decoder::Run::embed(std::size_t thread, std::size_t count) {
  const std::size_t half = m_.head_dim / 2;
  const Range tokens = share(plan_.tokens, thread, count);
  for (std::size_t t = tokens.begin; t < tokens.end; ++t) {
    const auto id = static_cast<std::size_t>(in_.tokens[t]);
    float* row = residual_ + t * m_.hidden;
    if (m_.embedding) {
      d_.ops_.widen(m_.embedding + id * m_.hidden, m_.hidden, row);
    } else {
      // Tied: the packed head is the only copy of the embedding.
      for (std::size_t i = 0; i < m_.hidden; i += 2) {
        std::uint16_t pair[2];
        __builtin_memcpy(pair, m_.head.data + dense_place(m_.hidden, id, i), sizeof pair);
        row[i] = bf16_to_float(pair[0]);
        if (i + 1 < m_.hidden) row[i + 1] = bf16_to_float(pair[1]);
      }
    }
    float* angles = floats(d_.rotary_) + t * m_.head_dim;
    const auto position = static_cast<float>(plan_.places[t].position);
    for (std::size_t i = 0; i < half; ++i) {
      const float angle = position * m_.inverse_frequency[i];
      angles[i] = std::cos(angle) * m_.rope_factor;
      angles[half + i] = std::sin(angle) * m_.rope_factor;
    }
  }
}

void Decoder::Run::attention_layer(std::size_t layer, std::size_t thread, std::size_t count) {
  const Layer& weights = m_.layers[layer];
  const std::byte* normed = prepare_normed(weights.input_norm, thread, count);
  const std::size_t q = m_.q_width(), kv = m_.kv_width();
  multiply(layer, normed,
           {{q_proj, OutputKind::f32, qkv_, qkv_width_},
            {k_proj, OutputKind::f32, qkv_ + q, qkv_width_},
            {v_proj, OutputKind::f32, qkv_ + q + kv, qkv_width_}},
           thread, count);
  barrier_.wait();
  if (!plan_.single_tokens) {
    rotate_tokens(layer, thread, count);
    barrier_.wait();
  }
  Scratch& scratch = *d_.scratch_[thread];
  // Items take different times (a sequence of 16 positions, one of 16,000), so whoever is free
  // takes the next. Each layer counts for itself: resetting one counter would need another wait.
  for (;;) {
    const std::size_t next = d_.next_item_[layer].fetch_add(1, std::memory_order_relaxed);
    if (next >= plan_.items.size()) break;
    const AttentionItem& item = plan_.items[next];
    if (plan_.places[item.token].partial_count > 0) {
      attend_single(layer, item, scratch);
    } else {
      attend(layer, item, scratch);
    }
  }
  barrier_.wait();
  const std::byte* context = prepare_attention(thread, count);
  multiply(layer, context, {{o_proj, OutputKind::f32_add, residual_, m_.hidden}}, thread, count);
  barrier_.wait();
}

void Decoder::Run::mlp_layer(std::size_t layer, std::size_t thread, std::size_t count) {
  const std::byte* normed = prepare_normed(m_.layers[layer].post_norm, thread, count);
  gated(layer, normed, thread, count);
  barrier_.wait();
  multiply(layer, d_.intermediate_->data(),
           {{down_proj, OutputKind::f32_add, residual_, m_.hidden}}, thread, count);
  barrier_.wait();
}

void Decoder::Run::head(std::size_t thread, std::size_t count) {
  const std::size_t rows = in_.logit_count;
  const bool alone = rows <= few_tokens;
  Scratch& scratch = *d_.scratch_[thread];
  std::byte* to = alone ? scratch.prepared.data() : d_.prepared_->data();
  const Range mine = alone ? Range{0, rows} : share(rows, thread, count);
  for (std::size_t r = mine.begin; r < mine.end; ++r) {
    const float* x = residual_ + static_cast<std::size_t>(in_.logit_rows[r]) * m_.hidden;
    d_.ops_.rms_norm(x, m_.final_norm, m_.hidden, m_.eps, scratch.row.data());
    d_.kernels_.prepare_f32(scratch.row.data(), 0, rows, m_.hidden, to, r, r + 1);
  }
  if (!alone) barrier_.wait();
  const Range blocks = share(row_blocks(m_.vocab), thread, count);
  d_.kernels_.linear(m_.head, to, rows, {OutputKind::f32, in_.logits, m_.vocab}, blocks.begin,
                     blocks.end);
}

template <class Fill>
const std::byte* Decoder::Run::prepare(std::size_t k, std::size_t thread, std::size_t count,
                                       Fill fill) {
  Scratch& scratch = *d_.scratch_[thread];
  std::byte* to = replicate_ ? scratch.prepared.data() : d_.prepared_->data();
  const Range mine = replicate_ ? Range{0, plan_.tokens} : share(plan_.tokens, thread, count);
  for (std::size_t t = mine.begin; t < mine.end; ++t) {
    const std::size_t number = plan_.places[t].unit;
    const Unit& unit = plan_.units[number];
    const float* row = fill(t, scratch.row.data());
    const std::size_t in_unit = t - unit.begin;
    d_.kernels_.prepare_f32(row, 0, unit.size(), k, to + unit_offset(number, k), in_unit,
                            in_unit + 1);
  }
  if (!replicate_) barrier_.wait();
  return to;
}

const std::byte* Decoder::Run::prepare_normed(const float* weight, std::size_t thread,
                                              std::size_t count) {
  return prepare(m_.hidden, thread, count, [&](std::size_t t, float* row) {
    d_.ops_.rms_norm(residual_ + t * m_.hidden, weight, m_.hidden, m_.eps, row);
    return row;
  });
}

const std::byte* Decoder::Run::prepare_attention(std::size_t thread, std::size_t count) {
  return prepare(m_.q_width(), thread, count, [&](std::size_t t, float* row) -> const float* {
    if (plan_.places[t].partial_count == 0) return attention_ + t * m_.q_width();
    collect(t, row, *d_.scratch_[thread]);
    return row;
  });
}

void Decoder::Run::multiply(std::size_t layer, const std::byte* prepared,
                            std::initializer_list<Job> jobs, std::size_t thread,
                            std::size_t count) {
  for (std::size_t number = 0; number < plan_.units.size(); ++number) {
    const Unit& unit = plan_.units[number];
    const Linears& linears = d_.sets_[unit.weights][layer];
    // The row blocks of all jobs are shared as if they were one matrix: three small ones (query,
    // key and value) would not divide evenly, each by itself.
    std::size_t blocks = 0;
    for (const Job& job : jobs) blocks += row_blocks(linears[job.id].n);
    const Range mine = share(blocks, thread, count);
    std::size_t first = 0;  // of this job, among the blocks of all
    for (const Job& job : jobs) {
      const Weights& weights = linears[job.id];
      const std::size_t own = row_blocks(weights.n);
      const std::size_t begin = std::clamp(mine.begin, first, first + own) - first;
      const std::size_t end = std::clamp(mine.end, first, first + own) - first;
      first += own;
      if (begin == end) continue;
      const std::byte* x = prepared + unit_offset(number, weights.k);
      const Output out{job.kind, job.data + unit.begin * job.stride, job.stride,
                       m_.layers[layer].bias[job.id]};
      d_.kernels_.linear(weights, x, unit.size(), out, begin, end);
      for (const PatchRun& run : plan_.patch_runs) {
        if (run.unit == number) patch(run, layer, job, x, begin, end);
      }
    }
  }
}

void Decoder::Run::patch(const PatchRun& run, std::size_t layer, const Job& job,
                         const std::byte* prepared, std::size_t begin, std::size_t end) {
  const Patch* difference = d_.masks_[run.mask].patches[layer][job.id];
  if (!difference) return;
  const Unit& unit = plan_.units[run.unit];
  d_.kernels_.patch_add(*difference, prepared, unit.size(), run.which.data(), run.which.size(),
                        job.data + unit.begin * job.stride, job.stride, begin, end);
}

bool Decoder::Run::patched(std::size_t unit, std::size_t layer, LinearId id) const {
  return std::any_of(plan_.patch_runs.begin(), plan_.patch_runs.end(), [&](const PatchRun& run) {
    return run.unit == unit && d_.masks_[run.mask].patches[layer][id] != nullptr;
  });
}

void Decoder::Run::gated(std::size_t layer, const std::byte* prepared, std::size_t thread,
                         std::size_t count) {
  const std::size_t width = m_.intermediate;
  for (std::size_t number = 0; number < plan_.units.size(); ++number) {
    const Unit& unit = plan_.units[number];
    const Weights& gate = d_.sets_[unit.weights][layer][gate_proj];
    const Weights& up = d_.sets_[unit.weights][layer][up_proj];
    const std::byte* x = prepared + unit_offset(number, gate.k);
    const Output out{OutputKind::prepared, d_.intermediate_->data() + unit_offset(number, width),
                     0};
    const Range mine = share(row_blocks(width), thread, count);
    if (mine.begin == mine.end) continue;
    // A bias, a patch or another layout of one of the two must reach its product before they meet.
    const bool apart = gate.layout != up.layout || m_.layers[layer].bias[gate_proj] ||
                       m_.layers[layer].bias[up_proj] || patched(number, layer, gate_proj) ||
                       patched(number, layer, up_proj);
    if (!apart) {
      d_.kernels_.gated(gate, up, x, unit.size(), out, mine.begin, mine.end);
      continue;
    }
    const Job jobs[] = {{gate_proj, OutputKind::f32, floats(d_.gate_), width},
                        {up_proj, OutputKind::f32, floats(d_.up_), width}};
    for (const Job& job : jobs) {
      const Output to{job.kind, job.data + unit.begin * width, width,
                      m_.layers[layer].bias[job.id]};
      d_.kernels_.linear(job.id == gate_proj ? gate : up, x, unit.size(), to, mine.begin, mine.end);
      for (const PatchRun& run : plan_.patch_runs) {
        if (run.unit == number) patch(run, layer, job, x, mine.begin, mine.end);
      }
    }
    d_.kernels_.silu_mul(jobs[0].data + unit.begin * width, jobs[1].data + unit.begin * width,
                         width, width, unit.size(), out, mine.begin, mine.end);
  }
}

std::size_t Decoder::Run::unit_offset(std::size_t unit, std::size_t k) const {
  // As if each token before took one vector more than it does, rounded down to whole vectors: a
  // unit then ends before the next begins, and begins aligned, without a sum over the units.
  return plan_.units[unit].begin * (d_.kernels_.prepared_bytes(1, k) + vector_bytes) /
         vector_bytes * vector_bytes;
}

}  // namespace twofour
