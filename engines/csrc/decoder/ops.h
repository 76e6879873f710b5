// The decoder's work beside the weight products, one table per instruction set: normalisation,
// rotary embedding, the key-value cache, attention, and the weights of tokens to draw from.
//
// Cache page (one layer, one page of 16 positions, one key-value head); dim is the head size
// rounded up to 16:
//
//   keys    [dim / 2][16 positions][2]   bf16: a load gets one pair of dimensions of 16 positions
//   values  [8 position pairs][dim][2]   bf16: a load gets one pair of positions of 16 dimensions
//
// Both are the order in which a bf16 dot-product instruction wants them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"

namespace twofour {

inline constexpr std::size_t page_positions = 16;
// Positions whose attention is computed from a fresh start and then merged into what came before,
// by absolute position, so that the order of additions depends on the position alone.
inline constexpr std::size_t span_positions = 128;

// Compiled anew in each file: see common/lanes.h.
namespace {

constexpr std::size_t padded_dim(std::size_t head_dim) { return (head_dim + 15) / 16 * 16; }
constexpr std::size_t head_page_bytes(std::size_t dim) {
  return 2 * page_positions * dim * sizeof(std::uint16_t);
}

}  // namespace

// Rotary embedding of one head, after an optional RMS norm over the head, or over all of them.
struct Rotary {
  const float* cos;  // dim / 2, or none: nothing turns
  const float* sin;
  std::size_t dim;    // how many of the head's dimensions turn, the first ones
  bool interleaved;   // neighbours turn together, not dimensions dim / 2 apart
  const float* norm;  // head_dim weights, or none
  const float* over;  // what the norm is over: `width` values
  std::size_t width;
  float eps;
  std::size_t head_dim;
};

// Attention of `rows` query heads that share one key-value head over positions [begin, end) of one
// sequence; begin is a multiple of span_positions and end - begin at most that. A row sees
// positions up to its own, and with window > 0 only the last `window` of them.
struct Attend {
  const std::uint16_t* const* q;  // rows pointers to dim bf16 values
  const std::int32_t* position;   // rows
  std::size_t rows;
  const std::int32_t* pages;  // page numbers of the sequence
  const std::byte* cache;     // the layer's pages, this head's part of page 0
  std::size_t page_stride;    // bytes
  std::size_t dim;            // padded
  float scale;
  float cap;  // c: scores become c tanh(score / c); 0: they stay
  std::int32_t window;
  std::size_t begin, end;
};

// Running softmax of one set of rows: maximum, sum of weights, weighted sum of values (rows x dim).
// A row that has seen nothing has sum 0.
struct Softmax {
  float* max;
  float* sum;
  float* acc;
};

struct DecoderOps {
  // out = x / rms(x) * gain, over n values.
  void (*rms_norm)(const float* x, const float* gain, std::size_t n, float eps, float* out);
  // out = (x - mean(x)) / deviation(x) * gain (+ bias).
  void (*layer_norm)(const float* x, const float* gain, const float* bias, std::size_t n, float eps,
                     float* out);
  // Sum of x[i] * y[i], in an order that depends on n alone.
  float (*dot)(const float* x, const float* y, std::size_t n);
  // x *= scale; with cap > 0 then x = cap tanh(x / cap).
  void (*soft_cap)(float* x, std::size_t n, float scale, float cap);
  void (*widen)(const std::uint16_t* x, std::size_t n, float* out);
  // One head (head_dim floats) -> padded_dim(head_dim) bf16 values, the padding zero.
  void (*rotate)(const float* x, const Rotary& rotary, std::uint16_t* out);
  // Writes one position of one head; `last` says that no later position of the page holds data.
  void (*store_position)(const std::uint16_t* key, const float* value, std::size_t head_dim,
                         std::byte* page, std::size_t slot, bool last);
  // Starts `out` afresh and runs over one span.
  void (*attend)(const Attend& a, const Softmax& out);
  // total = total merged with part, of rows x dim; a fresh total has sum 0.
  void (*merge)(std::size_t rows, std::size_t dim, const Softmax& part, const Softmax& total);
  // out = acc / sum, head_dim values of one row.
  void (*finish)(const float* acc, float sum, std::size_t head_dim, float* out);
  // out = e^((x - largest x) / temperature), and 0 where that is less than e^-87.
  void (*weigh)(const float* x, std::size_t n, float temperature, float* out);
};

// Throws std::invalid_argument unless the instruction set is supported.
const DecoderOps& decoder_ops(Isa isa);

// One per file; decoder_ops chooses.
const DecoderOps& portable_decoder_ops();
#ifdef TWOFOUR_X86
const DecoderOps& avx2_decoder_ops();
const DecoderOps& avx512_decoder_ops();
const DecoderOps& avx512_bf16_decoder_ops();
#endif

}  // namespace twofour
