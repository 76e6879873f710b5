#include "decoder/run.h"

#include <algorithm>
#include <cmath>

#include "decoder/table_row.h"

namespace twofour {

Decoder::Scratch::Scratch(const Model& model, std::size_t width, std::size_t prepared_bytes,
                          std::size_t blocks)
    : row(std::max(width, model.hidden)),
      prepared(prepared_bytes),
      quantised(blocks > 0 ? few_tokens * model.rows_per_token() * width : 0),
      quantised_scales(few_tokens * model.rows_per_token() * blocks) {
  if (model.mixture.chosen > 0) {
    normed.resize(few_tokens * model.hidden);
    chosen_weights.resize(few_tokens * model.mixture.chosen);
    chosen.resize(few_tokens * model.mixture.chosen);
  }
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
    if (m_.layers[layer].router) {
      expert_layer(layer, thread, count);
    } else {
      mlp_layer(layer, thread, count);
    }
  }
  if (in_.logit_count > 0) head(thread, count);
}

void Decoder::Run::embed(std::size_t thread, std::size_t count) {
  const std::size_t half = m_.rotary_dim / 2, ropes = m_.ropes.size();
  const Range tokens = share(plan_.tokens, thread, count);
  for (std::size_t t = tokens.begin; t < tokens.end; ++t) {
    const auto id = static_cast<std::size_t>(in_.tokens[t]);
    float* row = residual_ + t * m_.hidden;
    if (m_.embedding) {
      d_.ops_.widen(m_.embedding + id * m_.hidden, m_.hidden, row);
    } else {
      read_row(m_.table, id, row);
    }
    if (m_.blocks.embedding_scale != 1.0f) {
      for (std::size_t i = 0; i < m_.hidden; ++i) row[i] *= m_.blocks.embedding_scale;
    }
    float* angles = floats(d_.rotary_) + t * ropes * m_.rotary_dim;
    const auto position = static_cast<float>(plan_.places[t].position);
    for (std::size_t r = 0; r < ropes; ++r, angles += m_.rotary_dim) {
      const Rope& rope = m_.ropes[r];
      for (std::size_t i = 0; i < half; ++i) {
        const float angle = position * rope.inverse_frequency[i];
        angles[i] = std::cos(angle) * rope.factor;
        angles[half + i] = std::sin(angle) * rope.factor;
      }
    }
  }
}

void Decoder::Run::attention_layer(std::size_t layer, std::size_t thread, std::size_t count) {
  const Layer& weights = m_.layers[layer];
  const Inputs normed = prepare_normed(weights.attention_input, thread, count);
  const std::size_t q = m_.q_width(), kv = m_.kv_width();
  multiply(layer, plan_.rows, normed,
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
  const Inputs context = prepare_attention(thread, count);
  multiply(layer, plan_.rows, context, {output_job(o_proj, d_.adds_apart_)}, thread, count);
  barrier_.wait();
  // In parallel blocks the MLP reads the stream as it was before attention.
  if (d_.adds_apart_ && !m_.blocks.parallel) add_apart(weights.attention_output, thread, count);
}

void Decoder::Run::mlp_layer(std::size_t layer, std::size_t thread, std::size_t count) {
  const Inputs normed = prepare_normed(m_.layers[layer].mlp_input, thread, count);
  gated(layer, plan_.rows, normed, thread, count);
  barrier_.wait();
  const Inputs product = gated_inputs(layer, plan_.rows, thread, count);
  const bool apart = d_.adds_apart_ && !m_.blocks.parallel;
  multiply(layer, plan_.rows, product, {output_job(down_proj, apart)}, thread, count);
  barrier_.wait();
  if (d_.adds_apart_) add_apart(m_.layers[layer].mlp_output, thread, count);
}

Decoder::Run::Job Decoder::Run::output_job(LinearId id, bool apart) const {
  if (apart) return {id, OutputKind::f32, floats(d_.addend_), m_.hidden};
  return {id, OutputKind::f32_add, residual_, m_.hidden};
}

void Decoder::Run::add_apart(const Norm& norm, std::size_t thread, std::size_t count) {
  float* row = d_.scratch_[thread]->row.data();
  const Range mine = share(plan_.tokens, thread, count);
  for (std::size_t t = mine.begin; t < mine.end; ++t) {
    const float* addend = floats(d_.addend_) + t * m_.hidden;
    if (norm) {
      normalise(addend, norm, row);
      addend = row;
    }
    float* to = residual_ + t * m_.hidden;
    for (std::size_t i = 0; i < m_.hidden; ++i) to[i] += m_.blocks.residual_scale * addend[i];
  }
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
    normalise(x, m_.final_norm, scratch.row.data());
    d_.head_products_.prepare(scratch.row.data(), rows, m_.hidden, to, r);
  }
  if (!alone) barrier_.wait();
  const Range blocks = share(row_blocks(m_.vocab), thread, count);
  d_.head_products_.linear(m_.head, to, rows, {OutputKind::f32, in_.logits, m_.vocab}, blocks);
  if (m_.blocks.logit_scale == 1.0f && m_.blocks.logit_cap == 0.0f) return;
  const std::size_t begin = std::min(blocks.begin * tile_rows, m_.vocab);
  const std::size_t end = std::min(blocks.end * tile_rows, m_.vocab);
  for (std::size_t r = 0; r < rows; ++r) {
    d_.ops_.soft_cap(in_.logits + r * m_.vocab + begin, end - begin, m_.blocks.logit_scale,
                     m_.blocks.logit_cap);
  }
}

void Decoder::Run::normalise(const float* x, const Norm& norm, float* out) const {
  if (!norm) {
    std::copy_n(x, m_.hidden, out);
  } else if (m_.blocks.layer_norm) {
    d_.ops_.layer_norm(x, norm.gain, norm.bias, m_.hidden, m_.eps, out);
  } else {
    d_.ops_.rms_norm(x, norm.gain, m_.hidden, m_.eps, out);
  }
}

Decoder::Run::Inputs Decoder::Run::prepare_normed(const Norm& norm, std::size_t thread,
                                                  std::size_t count) {
  return prepare(plan_.rows, m_.hidden, thread, count, [&](std::size_t t, float* row) {
    normalise(residual_ + t * m_.hidden, norm, row);
    return row;
  });
}

Decoder::Run::Inputs Decoder::Run::gated_inputs(std::size_t layer, const Rows& rows,
                                                std::size_t thread, std::size_t count) {
  if (d_.layer_products_.prepares_gated()) return {d_.intermediate_->data(), {}};
  const std::size_t width = m_.inner(m_.layers[layer]);
  return prepare(rows, width, thread, count,
                 [&](std::size_t r, float*) { return floats(d_.gate_) + r * width; });
}

Decoder::Run::Inputs Decoder::Run::prepare_attention(std::size_t thread, std::size_t count) {
  const auto fill = [&](std::size_t t, float* row) -> const float* {
    if (plan_.places[t].partial_count == 0) return attention_ + t * m_.q_width();
    collect(t, row, *d_.scratch_[thread]);
    return row;
  };
  return prepare(plan_.rows, m_.q_width(), thread, count, fill);
}

void Decoder::Run::multiply(std::size_t layer, const Rows& rows, const Inputs& inputs,
                            std::initializer_list<Job> jobs, std::size_t thread,
                            std::size_t count) {
  for (std::size_t number = 0; number < rows.units.size(); ++number) {
    const Unit& unit = rows.units[number];
    const Linears& linears = d_.sets_[unit.weights][layer];
    // The row blocks of all jobs are shared as if they were one matrix: three small ones (query,
    // key and value) would not divide evenly, each by itself.
    std::size_t blocks = 0;
    for (const Job& job : jobs) blocks += row_blocks(linears[linear_of(job.id, unit.expert)].n);
    const Range mine = share(blocks, thread, count);
    std::size_t first = 0;  // of this job, among the blocks of all
    for (const Job& job : jobs) {
      const Weights& weights = linears[linear_of(job.id, unit.expert)];
      const std::size_t own = row_blocks(weights.n);
      const std::size_t begin = std::clamp(mine.begin, first, first + own) - first;
      const std::size_t end = std::clamp(mine.end, first, first + own) - first;
      first += own;
      if (begin == end) continue;
      const std::byte* x = inputs.prepared + unit_offset(unit, weights.k);
      const Output out{job.kind, job.data + unit.begin * job.stride, job.stride,
                       m_.layers[layer].bias[job.id]};
      d_.layer_products_.linear(weights, x, unit.size(), out, {begin, end});
      for (const PatchRun& run : rows.patch_runs) {
        if (run.unit == number) patch(run, unit, layer, job, inputs, {begin, end});
      }
    }
  }
}

void Decoder::Run::patch(const PatchRun& run, const Unit& unit, std::size_t layer, const Job& job,
                         const Inputs& inputs, Range blocks) {
  const std::size_t linear = linear_of(job.id, unit.expert);
  const LayerPatch& difference = d_.masks_[run.mask].patches[layer][linear];
  if (!difference) return;
  const Weights& base = d_.sets_[unit.weights][layer][linear];
  float* y = job.data + unit.begin * job.stride;
  if (difference.bf16) {
    d_.kernels_.patch_add(*difference.bf16, inputs.prepared + unit_offset(unit, base.k),
                          unit.size(), run.which.data(), run.which.size(), y, job.stride,
                          blocks.begin, blocks.end);
    return;
  }
  const std::size_t scales = lowbit::block_count(base.k, base.block);
  const QuantisedInputs x{inputs.quantised.values + unit.begin * base.k,
                          inputs.quantised.scales + unit.begin * scales};
  add_patch(*difference.lowbit, base, x, run.which.data(), run.which.size(), y, job.stride,
            blocks.begin, blocks.end);
}

bool Decoder::Run::patched(const Rows& rows, std::size_t unit, std::size_t layer,
                           LinearId id) const {
  const std::size_t linear = linear_of(id, rows.units[unit].expert);
  return std::any_of(rows.patch_runs.begin(), rows.patch_runs.end(), [&](const PatchRun& run) {
    return run.unit == unit && d_.masks_[run.mask].patches[layer][linear];
  });
}

void Decoder::Run::gated(std::size_t layer, const Rows& rows, const Inputs& inputs,
                         std::size_t thread, std::size_t count) {
  const std::size_t width = m_.inner(m_.layers[layer]);
  for (std::size_t number = 0; number < rows.units.size(); ++number) {
    const Unit& unit = rows.units[number];
    const Linears& linears = d_.sets_[unit.weights][layer];
    const Weights& gate = linears[linear_of(gate_proj, unit.expert)];
    const Weights& up = linears[linear_of(up_proj, unit.expert)];
    const std::byte* x = inputs.prepared + unit_offset(unit, gate.k);
    const Output out =
        d_.layer_products_.prepares_gated()
            ? Output{OutputKind::prepared, d_.intermediate_->data() + unit_offset(unit, width), 0,
                     nullptr, m_.blocks.curve}
            : Output{OutputKind::f32, floats(d_.gate_) + unit.begin * width, width, nullptr,
                     m_.blocks.curve};
    const Range mine = share(row_blocks(width), thread, count);
    if (mine.begin == mine.end) continue;
    // A bias, a patch or another layout of one of the two must reach its product before they meet.
    const bool apart = gate.layout != up.layout || gate.minima != up.minima ||
                       m_.layers[layer].bias[gate_proj] || m_.layers[layer].bias[up_proj] ||
                       patched(rows, number, layer, gate_proj) ||
                       patched(rows, number, layer, up_proj);
    if (!apart) {
      d_.layer_products_.gated(gate, up, x, unit.size(), out, mine);
      continue;
    }
    const Job jobs[] = {{gate_proj, OutputKind::f32, floats(d_.gate_), width},
                        {up_proj, OutputKind::f32, floats(d_.up_), width}};
    for (const Job& job : jobs) {
      const Output to{job.kind, job.data + unit.begin * width, width,
                      m_.layers[layer].bias[job.id]};
      d_.layer_products_.linear(job.id == gate_proj ? gate : up, x, unit.size(), to, mine);
      for (const PatchRun& run : rows.patch_runs) {
        if (run.unit == number) patch(run, unit, layer, job, inputs, mine);
      }
    }
    d_.kernels_.gate_mul(jobs[0].data + unit.begin * width, jobs[1].data + unit.begin * width,
                         width, width, unit.size(), out, mine.begin, mine.end);
  }
}

std::size_t Decoder::Run::unit_offset(const Unit& unit, std::size_t k) const {
  // As if each row before took one vector more than it does, rounded down to whole vectors: a
  // unit then ends before the next begins, and begins aligned, without a sum over the units.
  return unit.begin * (d_.layer_products_.prepared_bytes(1, k) + vector_bytes) / vector_bytes *
         vector_bytes;
}

}  // namespace twofour
