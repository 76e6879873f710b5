// What one step computes, laid out before its parallel region opens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace twofour {

// The caller's arrays. Sequence s has tokens [token_begin[s], token_begin[s + 1]), the first at
// position start[s], and keeps its keys and values in pages[s * page_stride + position / 16].
struct StepInput {
  const std::int32_t* tokens;
  const std::int32_t* token_begin;  // sequences + 1
  const std::int32_t* start;
  const std::int32_t* pages;
  std::size_t page_stride;
  const std::int32_t* masks;  // mask number of each sequence
  std::size_t sequences;
  const std::int32_t* logit_rows;  // tokens whose logits are wanted
  std::size_t logit_count;
  float* logits;  // logit_count x vocab
};

// Consecutive rows of activations that multiply the same packed weights.
struct Unit {
  std::size_t weights;  // which set
  std::size_t begin, end;
  std::size_t expert = 0;  // of a layer that has some
  std::size_t size() const { return end - begin; }
};

// Rows of one unit that add the same patch.
struct PatchRun {
  std::size_t unit;
  std::size_t mask;
  std::vector<std::uint32_t> which;  // relative to the unit
};

// The rows that products read: a step's tokens, or the rows that a layer's experts get.
struct Rows {
  std::vector<Unit> units;
  std::vector<PatchRun> patch_runs;
  std::size_t count() const { return units.empty() ? 0 : units.back().end; }
};

// Tokens of a longer sequence that one attention item has at most.
inline constexpr std::size_t item_tokens = 16;

// A share of the attention: either spans of a sequence with one token, whose results `partial`
// numbers, or consecutive tokens of a longer one from the first position they see.
struct AttentionItem {
  std::size_t sequence;
  std::size_t kv_head;
  std::size_t token, count;
  std::size_t begin, end;  // positions
  std::size_t partial;     // only for sequences with one token
};

struct TokenPlace {
  std::size_t sequence;
  std::int32_t position;
  std::size_t partial;        // first partial result of its first head, for single tokens
  std::size_t partial_count;  // spans per head; 0: attention writes the finished result
};

struct StepPlan {
  Rows rows;                         // all tokens, in their order
  std::vector<AttentionItem> items;  // of one layer without a window, or with the widest
  std::vector<TokenPlace> places;
  std::size_t tokens = 0;
  std::size_t partials = 0;
  bool single_tokens = true;  // every sequence has one token
};

}  // namespace twofour
