// A layer with experts: every token goes to some of them, and each expert multiplies just the rows
// of the tokens that chose it. A row's products do not depend on the rows beside it, and a token's
// experts are added in the order of their weights: batch mates change nothing.
#include <algorithm>
#include <cmath>

#include "decoder/run.h"

namespace twofour {

void Decoder::Run::expert_layer(std::size_t layer, std::size_t thread, std::size_t count) {
  Scratch& scratch = *d_.scratch_[thread];
  const Choices choices = route_tokens(layer, thread, count);
  // Every thread lists the rows for itself, cheaper than waiting for a list.
  gather_rows(m_.layers[layer], choices, scratch);
  const Rows& rows = scratch.routed;
  const Inputs inputs = prepare(rows, m_.hidden, thread, count, [&](std::size_t r, float*) {
    return choices.normed + scratch.token_of[r] * m_.hidden;
  });
  gated(layer, rows, inputs, thread, count);
  barrier_.wait();
  const Inputs product = gated_inputs(layer, rows, thread, count);
  multiply(layer, rows, product, {{down_proj, OutputKind::f32, floats(d_.expert_out_), m_.hidden}},
           thread, count);
  barrier_.wait();
  add_experts(choices, thread, count);
  barrier_.wait();
  if (d_.adds_apart_) add_apart(m_.layers[layer].mlp_output, thread, count);
}

Decoder::Run::Choices Decoder::Run::route_tokens(std::size_t layer, std::size_t thread,
                                                 std::size_t count) {
  Scratch& scratch = *d_.scratch_[thread];
  float* normed = replicate_ ? scratch.normed.data() : floats(d_.normed_);
  float* weights = replicate_ ? scratch.chosen_weights.data() : floats(d_.chosen_weights_);
  std::uint32_t* chosen =
      replicate_ ? scratch.chosen.data() : reinterpret_cast<std::uint32_t*>(d_.chosen_->data());
  const Layer& of = m_.layers[layer];
  const Range mine = replicate_ ? Range{0, plan_.tokens} : share(plan_.tokens, thread, count);
  for (std::size_t t = mine.begin; t < mine.end; ++t) {
    float* row = normed + t * m_.hidden;
    normalise(residual_ + t * m_.hidden, of.mlp_input, row);
    const std::size_t first = t * m_.mixture.chosen;
    route(of, row, chosen + first, weights + first, scratch.router_scores);
  }
  if (!replicate_) barrier_.wait();
  return {normed, chosen, weights};
}

// In float32 throughout: where two experts are nearly level, rounding would choose another one.
void Decoder::Run::route(const Layer& layer, const float* normed, std::uint32_t* chosen,
                         float* weights, std::vector<float>& scores) const {
  scores.resize(layer.experts);
  for (std::size_t e = 0; e < layer.experts; ++e) {
    scores[e] = d_.ops_.dot(normed, layer.router + e * m_.hidden, m_.hidden);
  }
  const float top = *std::max_element(scores.begin(), scores.end());
  float sum = 0.0f;
  for (float& score : scores) {
    score = std::exp(score - top);
    sum += score;
  }
  float total = 0.0f;
  for (std::size_t c = 0; c < m_.mixture.chosen; ++c) {
    const auto best = std::max_element(scores.begin(), scores.end());  // the first of equal ones
    chosen[c] = static_cast<std::uint32_t>(best - scores.begin());
    weights[c] = *best / sum;
    total += weights[c];
    *best = -1.0f;
  }
  if (!m_.mixture.normalised) return;
  for (std::size_t c = 0; c < m_.mixture.chosen; ++c) weights[c] /= total;
}

// Lists each expert's rows, by unit, by expert, by token.
void Decoder::Run::gather_rows(const Layer& layer, const Choices& choices, Scratch& s) const {
  const std::size_t each = m_.mixture.chosen;
  s.routed.units.clear();
  s.routed.patch_runs.clear();
  s.token_of.resize(plan_.tokens * each);
  s.row_of.resize(plan_.tokens * each);
  for (std::size_t number = 0; number < plan_.rows.units.size(); ++number) {
    const Unit& unit = plan_.rows.units[number];
    const std::size_t first = unit.begin * each, last = unit.end * each;
    s.expert_begin.assign(layer.experts + 1, 0);
    for (std::size_t c = first; c < last; ++c) ++s.expert_begin[choices.chosen[c] + 1];
    s.expert_begin[0] = first;
    const std::size_t first_unit = s.routed.units.size();
    for (std::size_t e = 0; e < layer.experts; ++e) {
      const std::size_t begin = s.expert_begin[e], end = begin + s.expert_begin[e + 1];
      if (begin < end) s.routed.units.push_back({unit.weights, begin, end, e});
      s.expert_begin[e + 1] = end;
    }
    for (std::size_t c = first; c < last; ++c) {
      const std::size_t row = s.expert_begin[choices.chosen[c]]++;
      s.token_of[row] = static_cast<std::uint32_t>(c / each);
      s.row_of[c] = static_cast<std::uint32_t>(row);
    }
    gather_patches(number, first_unit, s);
  }
}

// The rows of the units from `first`, all of the plan's unit `unit`, that add a patch.
void Decoder::Run::gather_patches(std::size_t unit, std::size_t first, Scratch& s) const {
  for (const PatchRun& run : plan_.rows.patch_runs) {
    if (run.unit != unit) continue;
    for (std::size_t number = first; number < s.routed.units.size(); ++number) {
      const Unit& routed = s.routed.units[number];
      PatchRun own{number, run.mask, {}};
      for (std::size_t r = routed.begin; r < routed.end; ++r) {
        const std::size_t sequence = plan_.places[s.token_of[r]].sequence;
        if (static_cast<std::size_t>(in_.masks[sequence]) == run.mask) {
          own.which.push_back(static_cast<std::uint32_t>(r - routed.begin));
        }
      }
      if (!own.which.empty()) s.routed.patch_runs.push_back(std::move(own));
    }
  }
}

void Decoder::Run::add_experts(const Choices& choices, std::size_t thread, std::size_t count) {
  Scratch& scratch = *d_.scratch_[thread];
  const std::size_t each = m_.mixture.chosen;
  const bool apart = d_.adds_apart_ && !m_.blocks.parallel;
  const Range mine = share(plan_.tokens, thread, count);
  for (std::size_t t = mine.begin; t < mine.end; ++t) {
    float* sum = scratch.row.data();
    std::fill_n(sum, m_.hidden, 0.0f);
    for (std::size_t c = t * each; c < (t + 1) * each; ++c) {
      const float* answer = floats(d_.expert_out_) + scratch.row_of[c] * m_.hidden;
      for (std::size_t i = 0; i < m_.hidden; ++i) sum[i] += choices.weights[c] * answer[i];
    }
    float* to = apart ? floats(d_.addend_) + t * m_.hidden : residual_ + t * m_.hidden;
    for (std::size_t i = 0; i < m_.hidden; ++i) to[i] = apart ? sum[i] : to[i] + sum[i];
  }
}

}  // namespace twofour
