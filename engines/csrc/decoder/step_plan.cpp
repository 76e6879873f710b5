#include "decoder/step_plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "decoder/decoder.h"

namespace twofour {

namespace {

[[noreturn]] void bad(const std::string& what) {
  throw std::invalid_argument("decoder step: " + what);
}

}  // namespace

void Decoder::check(const StepInput& in) const {
  if (in.sequences == 0) bad("no sequences");
  if (in.token_begin[0] != 0) bad("the first sequence does not start at token 0");
  for (std::size_t s = 0; s < in.sequences; ++s) {
    const std::int64_t count = in.token_begin[s + 1] - in.token_begin[s];
    if (count < 1) bad("sequence " + std::to_string(s) + " has no tokens");
    const std::int64_t last = in.start[s] + count;
    if (in.start[s] < 0 || last > static_cast<std::int64_t>(limits_.context)) {
      bad("position " + std::to_string(last) + " of sequence " + std::to_string(s) +
          " exceeds the context");
    }
    const std::size_t used = (static_cast<std::size_t>(last) + page_positions - 1) / page_positions;
    if (used > in.page_stride) bad("sequence " + std::to_string(s) + " lacks pages");
    for (std::size_t p = 0; p < used; ++p) {
      const std::int32_t page = in.pages[s * in.page_stride + p];
      if (page < 0 || static_cast<std::size_t>(page) >= limits_.pages) {
        bad("page " + std::to_string(page) + " does not exist");
      }
    }
    const std::int32_t mask = in.masks[s];
    if (mask < 0 || static_cast<std::size_t>(mask) >= masks_.size() ||
        !masks_[static_cast<std::size_t>(mask)].used) {
      bad("mask " + std::to_string(mask) + " does not exist");
    }
  }
  const std::size_t tokens = static_cast<std::size_t>(in.token_begin[in.sequences]);
  if (tokens > limits_.max_tokens) {
    bad(std::to_string(tokens) + " tokens, at most " + std::to_string(limits_.max_tokens));
  }
  for (std::size_t t = 0; t < tokens; ++t) {
    if (in.tokens[t] < 0 || static_cast<std::size_t>(in.tokens[t]) >= model_.vocab) {
      bad("token id " + std::to_string(in.tokens[t]) + " is outside the vocabulary");
    }
  }
  if (in.logit_count > limits_.max_logits) bad("too many rows of logits");
  for (std::size_t r = 0; r < in.logit_count; ++r) {
    if (in.logit_rows[r] < 0 || static_cast<std::size_t>(in.logit_rows[r]) >= tokens) {
      bad("a row of logits is no token");
    }
  }
}

StepPlan Decoder::plan(const StepInput& in) const {
  StepPlan plan;
  plan.tokens = static_cast<std::size_t>(in.token_begin[in.sequences]);
  plan.places.resize(plan.tokens);
  for (std::size_t s = 0; s < in.sequences; ++s) {
    const auto begin = static_cast<std::size_t>(in.token_begin[s]),
               end = static_cast<std::size_t>(in.token_begin[s + 1]);
    const auto start = static_cast<std::size_t>(in.start[s]);
    const auto number = static_cast<std::size_t>(in.masks[s]);
    const Mask& mask = masks_[number];
    // Only neighbours are joined: the caller sorts sequences by weights, and each set is read once.
    if (plan.rows.units.empty() || plan.rows.units.back().weights != mask.weights) {
      plan.rows.units.push_back({mask.weights, begin, begin});
    }
    plan.rows.units.back().end = end;
    const std::size_t unit = plan.rows.units.size() - 1;
    if (!mask.patches.empty()) {
      auto run =
          std::find_if(plan.rows.patch_runs.begin(), plan.rows.patch_runs.end(),
                       [&](const PatchRun& r) { return r.unit == unit && r.mask == number; });
      if (run == plan.rows.patch_runs.end()) {
        run = plan.rows.patch_runs.insert(run, PatchRun{unit, number, {}});
      }
      for (std::size_t t = begin; t < end; ++t) {
        run->which.push_back(static_cast<std::uint32_t>(t - plan.rows.units[unit].begin));
      }
    }
    const bool single = end - begin == 1;
    plan.single_tokens = plan.single_tokens && single;
    // A lone token is divided by positions, since it has nothing else to divide; longer sequences
    // are divided by tokens. Both merge spans that start at multiples of span_positions, in order:
    // the additions are the same, whichever way a token is computed.
    const std::size_t spans = start / span_positions + 1;
    for (std::size_t t = begin; t < end; ++t) {
      plan.places[t] = {s, static_cast<std::int32_t>(start + t - begin), plan.partials,
                        single ? spans : 0};
    }
    for (std::size_t head = 0; head < model_.kv_heads; ++head) {
      if (single) {
        for (std::size_t span = 0; span < spans; ++span) {
          const std::size_t first = span * span_positions;
          plan.items.push_back({s, head, begin, 1, first,
                                std::min(first + span_positions, start + 1), plan.partials++});
        }
      } else {
        for (std::size_t t = begin; t < end; t += item_tokens) {
          const std::size_t count = std::min(item_tokens, end - t);
          plan.items.push_back({s, head, t, count, 0, start + (t - begin) + count, 0});
        }
      }
    }
  }
  // The longest shares first, so that the threads end together.
  std::stable_sort(plan.items.begin(), plan.items.end(),
                   [](const AttentionItem& a, const AttentionItem& b) {
                     return a.count * (a.end - a.begin) > b.count * (b.end - b.begin);
                   });
  return plan;
}

}  // namespace twofour
