// The operations of ops.h, compiled once per instruction set by the ops_*.cpp that include it.
// `Lanes` is a type of the including file that provides
//   fused(a, b, c)            a * b + c, rounded once where the instruction set can
//   attention_rows            most rows of attention at once, and how many vectors of each: their
//   attention_vectors         sums stay in registers, with room for the operands
//   Sums, Pairs, Pair         16 sums; 16 pairs of bf16; a pair of bf16 that all lanes share
//   load, store(to, sums)     Sums
//   scaled(sums, factor)
//   pairs(from), pair(from)
//   dot(sums, pairs, pair)    sums + pairs . pair, the first products before the second
// WideLanes has all but the first two lines' and `dot` for compilers' own vectors.
// common/lanes.h says why everything is in an anonymous namespace.
#pragma once

#include "common/bf16.h"
#include "decoder/ops.h"
#include "kernels/numeric.h"

namespace twofour {
namespace {

constexpr std::size_t chunk_positions = 64;
constexpr std::size_t chunk_tiles = chunk_positions / lanes;

struct WideLanes {
  using Sums = Floats;
  using Pairs = Words;
  using Pair = Words;
  static Sums load(const float* from) { return twofour::load(from); }
  static void store(float* to, Sums sums) { twofour::store(to, sums); }
  static Sums scaled(Sums sums, float factor) { return sums * factor; }
  static Pairs pairs(const void* from) {
    Words x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
  }
  static Pair pair(const std::uint16_t* from) {
    std::uint32_t word;
    __builtin_memcpy(&word, from, sizeof word);
    return splat(word);
  }
};

// `dot` where there is no instruction for it, in the order of the instruction that there is.
template <class Lanes>
Floats dot_in_two(Floats sums, Words pairs, Words pair) {
  sums = Lanes::fused(first_of_pairs(pairs), first_of_pairs(pair), sums);
  return Lanes::fused(second_of_pairs(pairs), second_of_pairs(pair), sums);
}

// By halves, 8 + 8 lanes, then 4 + 4 ...: an order that is the same whatever registers there are.
float sum_lanes(Floats v) {
  float total[lanes];
  store(total, v);
  for (std::size_t half = lanes / 2; half > 0; half /= 2) {
    for (std::size_t i = 0; i < half; ++i) total[i] += total[i + half];
  }
  return total[0];
}

template <class Lanes>
void rms_norm(const float* x, const float* gain, std::size_t n, float eps, float* out) {
  // Two chains of sums, so that one's latency hides behind the other.
  Floats even{}, odd{};
  std::size_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    const Floats a = load(x + i), b = load(x + i + lanes);
    even = Lanes::fused(a, a, even);
    odd = Lanes::fused(b, b, odd);
  }
  float squares = sum_lanes(even + odd);
  for (; i < n; ++i) squares += x[i] * x[i];
  const float factor = 1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps);
  for (i = 0; i < n; ++i) out[i] = x[i] * factor * gain[i];
}

void layer_norm(const float* x, const float* gain, const float* bias, std::size_t n, float eps,
                float* out) {
  float sum = 0.0f, squares = 0.0f;
  for (std::size_t i = 0; i < n; ++i) sum += x[i];
  const float mean = sum / static_cast<float>(n);
  for (std::size_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const float factor = 1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps);
  for (std::size_t i = 0; i < n; ++i) {
    out[i] = (x[i] - mean) * factor * gain[i] + (bias ? bias[i] : 0.0f);
  }
}

template <class Lanes>
float dot(const float* x, const float* y, std::size_t n) {
  Floats even{}, odd{};
  std::size_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    even = Lanes::fused(load(x + i), load(y + i), even);
    odd = Lanes::fused(load(x + i + lanes), load(y + i + lanes), odd);
  }
  float sum = sum_lanes(even + odd);
  for (; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

// c tanh(x / c): tanh(y) = 1 - 2 / (e^2y + 1).
float capped(float x, float cap) { return cap - 2.0f * cap / (exp_clamped(2.0f * x / cap) + 1.0f); }

void soft_cap(float* x, std::size_t n, float scale, float cap) {
  for (std::size_t i = 0; i < n; ++i) x[i] *= scale;
  if (cap == 0.0f) return;
  for (std::size_t i = 0; i < n; ++i) x[i] = capped(x[i], cap);
}

void widen(const std::uint16_t* x, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; ++i) out[i] = bf16_to_float(x[i]);
}

// Dimension i turns with dimension half + i in most checkpoints of Hugging Face, and with its
// neighbour in some (as in RoFormer, arXiv 2104.09864).
void rotate(const float* x, const Rotary& r, std::uint16_t* out) {
  float factor = 1.0f;
  if (r.norm) {
    float squares = 0.0f;
    for (std::size_t i = 0; i < r.width; ++i) squares += r.over[i] * r.over[i];
    factor = 1.0f / __builtin_sqrtf(squares / static_cast<float>(r.width) + r.eps);
  }
  const auto normed = [&](std::size_t i) { return r.norm ? x[i] * factor * r.norm[i] : x[i]; };
  const std::size_t turning = r.cos ? r.dim : 0, half = turning / 2;
  for (std::size_t i = 0; i < half; ++i) {
    const std::size_t first = r.interleaved ? 2 * i : i,
                      second = r.interleaved ? 2 * i + 1 : half + i;
    const float a = normed(first), b = normed(second);
    out[first] = float_to_bf16(a * r.cos[i] - b * r.sin[i]);
    out[second] = float_to_bf16(b * r.cos[i] + a * r.sin[i]);
  }
  for (std::size_t i = turning; i < r.head_dim; ++i) out[i] = float_to_bf16(normed(i));
  for (std::size_t i = r.head_dim; i < padded_dim(r.head_dim); ++i) out[i] = 0;
}

void store_position(const std::uint16_t* key, const float* value, std::size_t head_dim,
                    std::byte* page, std::size_t slot, bool last) {
  const std::size_t dim = padded_dim(head_dim);
  for (std::size_t pair = 0; pair < dim / 2; ++pair) {
    __builtin_memcpy(page + (pair * page_positions + slot) * 4, key + 2 * pair, 4);
  }
  // Of the page's second half: row `slot / 2`, and in each word of it this position's half.
  std::byte* values = page + head_page_bytes(dim) / 2 + (slot / 2) * dim * 4 + (slot % 2) * 2;
  for (std::size_t i = 0; i < dim; ++i) {
    const std::uint16_t v = i < head_dim ? float_to_bf16(value[i]) : std::uint16_t{0};
    __builtin_memcpy(values + 4 * i, &v, 2);
  }
  if (last && slot % 2 == 0) {
    // Its partner is read with weight zero, and zero times what a former owner of the page left
    // there must be zero: an infinity would make it NaN.
    const std::uint16_t zero = 0;
    for (std::size_t i = 0; i < dim; ++i) __builtin_memcpy(values + 4 * i + 2, &zero, 2);
  }
}

// scores[r][64] = scale * q[r] . keys of the chunk's four tiles. Positions are in the lanes, so
// each sum runs over the dimensions and no lanes are ever added up.
template <class Lanes, int R>
void scores_of(const std::uint16_t* const* q, const std::byte* const* tiles, std::size_t dim,
               float scale, float (*scores)[chunk_positions]) {
  constexpr std::size_t held = Lanes::attention_vectors;
  static_assert(chunk_tiles % held == 0);
  for (std::size_t first = 0; first < chunk_tiles; first += held) {
    typename Lanes::Sums acc[R][held]{};
    for (std::size_t pair = 0; pair < dim / 2; ++pair) {
      typename Lanes::Pairs keys[held];
      for (std::size_t t = 0; t < held; ++t) keys[t] = Lanes::pairs(tiles[first + t] + pair * 64);
      for (int r = 0; r < R; ++r) {
        const auto query = Lanes::pair(q[r] + 2 * pair);
        for (std::size_t t = 0; t < held; ++t) acc[r][t] = Lanes::dot(acc[r][t], keys[t], query);
      }
    }
    for (int r = 0; r < R; ++r) {
      for (std::size_t t = 0; t < held; ++t) {
        Lanes::store(scores[r] + (first + t) * lanes, Lanes::scaled(acc[r][t], scale));
      }
    }
  }
}

// acc[r][v] = acc[r][v] * rescale[r] + weights[r] . values, for V vectors from dimension `first`
// on. Dimensions are in the lanes here, and each sum runs over the positions.
template <class Lanes, int R, int V>
void add_values(const std::uint16_t (*weights)[chunk_positions], const float* rescale,
                const std::byte* const* tiles, std::size_t pairs, std::size_t dim,
                std::size_t first, float* acc) {
  typename Lanes::Sums sum[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      const float* from = acc + static_cast<std::size_t>(r) * dim + first + v * lanes;
      sum[r][v] = Lanes::scaled(Lanes::load(from), rescale[r]);
    }
  }
  for (std::size_t pair = 0; pair < pairs; ++pair) {
    const std::byte* row =
        tiles[pair / 8] + head_page_bytes(dim) / 2 + ((pair % 8) * dim + first) * 4;
    typename Lanes::Pairs values[V];
    for (int v = 0; v < V; ++v) values[v] = Lanes::pairs(row + v * 64);
    for (int r = 0; r < R; ++r) {
      const auto weight = Lanes::pair(weights[r] + 2 * pair);
      for (int v = 0; v < V; ++v) sum[r][v] = Lanes::dot(sum[r][v], values[v], weight);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      Lanes::store(acc + static_cast<std::size_t>(r) * dim + first + v * lanes, sum[r][v]);
    }
  }
}

// One step of the running softmax (arXiv 1805.02867): turns a row's scores of positions [lo, hi) of
// the chunk into bf16 weights relative to the highest score so far, zero elsewhere. Returns the
// factor that makes what the row has accumulated relative to it, too. Plain loops: compilers make
// vectors of any width of them, but single floats of comparisons of vectors wider than a register.
float soften(const float* scores, std::size_t lo, std::size_t hi, float* highest, float* sum,
             std::uint16_t* weights) {
  // Finite, unlike -infinity: the difference of two of them is a number.
  constexpr float lowest = -3.0e38f;
  constexpr int positions = chunk_positions;
  const int begin = static_cast<int>(lo), end = static_cast<int>(hi);
  float shown[chunk_positions], weight[chunk_positions];
  for (int i = 0; i < positions; ++i) {
    // Scores of unseen positions are of whatever the cache holds there, perhaps NaN: a selection
    // drops them, where adding a large negative number would not.
    shown[i] = i >= begin && i < end ? scores[i] : lowest;
  }
  float best[lanes], total[lanes];
  for (int i = 0; i < lanes; ++i) best[i] = lowest;
  for (std::size_t t = 0; t < chunk_tiles; ++t) {
    const float* tile = shown + t * lanes;
    for (int i = 0; i < lanes; ++i) best[i] = tile[i] > best[i] ? tile[i] : best[i];
  }
  float top = *sum > 0.0f ? *highest : lowest;
  for (int i = 0; i < lanes; ++i) top = best[i] > top ? best[i] : top;
  // A loop each: a selection beside the exponential would become a branch.
  for (int i = 0; i < positions; ++i) {
    const float x = shown[i] - top;
    shown[i] = x < -87.0f ? -87.0f : x;
  }
  for (int i = 0; i < positions; ++i) weight[i] = exp_within_range<Taylor>(shown[i]);
  for (int i = 0; i < positions; ++i) weight[i] = i >= begin && i < end ? weight[i] : 0.0f;
  for (int i = 0; i < positions; ++i) weights[i] = float_to_bf16(weight[i]);
  for (int i = 0; i < lanes; ++i) total[i] = 0.0f;
  for (std::size_t t = 0; t < chunk_tiles; ++t) {
    for (int i = 0; i < lanes; ++i) total[i] += weight[t * lanes + i];
  }
  const float before = *sum > 0.0f ? exp_clamped(*highest - top) : 0.0f;
  *sum = *sum * before + sum_lanes(twofour::load(total));
  *highest = top;
  return before;
}

template <class Lanes, int R>
void chunk_of_rows(const Attend& a, std::size_t row, const std::byte* const* tiles,
                   std::size_t start, std::size_t stop, const Softmax& out) {
  float scores[R][chunk_positions];
  std::uint16_t weights[R][chunk_positions];
  float rescale[R];
  scores_of<Lanes, R>(a.q + row, tiles, a.dim, a.scale, scores);
  if (a.cap > 0.0f) {
    for (int r = 0; r < R; ++r) {
      for (std::size_t i = 0; i < chunk_positions; ++i) scores[r][i] = capped(scores[r][i], a.cap);
    }
  }
  std::size_t last = 0;  // end of the positions that any of the rows sees
  for (int r = 0; r < R; ++r) {
    const std::size_t at = row + static_cast<std::size_t>(r);
    const std::size_t seen = static_cast<std::size_t>(a.position[at]) + 1;
    const std::size_t oldest = a.window > 0 && seen > static_cast<std::size_t>(a.window)
                                   ? seen - static_cast<std::size_t>(a.window)
                                   : 0;
    const std::size_t lo = oldest > start ? oldest - start : 0;
    const std::size_t hi = seen > start ? smaller(seen, stop) - start : 0;
    if (lo >= hi) {  // sees nothing of this chunk
      for (std::size_t i = 0; i < chunk_positions; ++i) weights[r][i] = 0;
      rescale[r] = 1.0f;
      continue;
    }
    rescale[r] = soften(scores[r], lo, hi, out.max + at, out.sum + at, weights[r]);
    last = hi > last ? hi : last;
  }
  const std::size_t pairs = (last + 1) / 2;
  float* acc = out.acc + row * a.dim;
  constexpr int held = Lanes::attention_vectors;
  std::size_t first = 0;
  for (; first + held * lanes <= a.dim; first += held * lanes) {
    add_values<Lanes, R, held>(weights, rescale, tiles, pairs, a.dim, first, acc);
  }
  for (; first < a.dim; first += lanes) {
    add_values<Lanes, R, 1>(weights, rescale, tiles, pairs, a.dim, first, acc);
  }
}

template <class Lanes>
void attend(const Attend& a, const Softmax& out) {
  constexpr std::size_t max_rows = Lanes::attention_rows;
  static_assert(max_rows <= 6);
  // The number of rows is a constant of each, so that their sums stay in registers.
  static constexpr void (*chunk_of[])(const Attend&, std::size_t, const std::byte* const*,
                                      std::size_t, std::size_t, const Softmax&) = {
      chunk_of_rows<Lanes, 1>, chunk_of_rows<Lanes, 2>, chunk_of_rows<Lanes, 3>,
      chunk_of_rows<Lanes, 4>, chunk_of_rows<Lanes, 5>, chunk_of_rows<Lanes, 6>};
  for (std::size_t r = 0; r < a.rows; ++r) out.max[r] = out.sum[r] = 0.0f;
  for (std::size_t i = 0; i < a.rows * a.dim; ++i) out.acc[i] = 0.0f;
  const std::size_t last_page = (a.end - 1) / page_positions;
  for (std::size_t start = a.begin; start < a.end; start += chunk_positions) {
    const std::byte* tiles[chunk_tiles];
    for (std::size_t t = 0; t < chunk_tiles; ++t) {
      // A chunk that ends early reads its last page again instead of branching; no row sees that.
      const std::size_t page = smaller(start / page_positions + t, last_page);
      tiles[t] = a.cache + static_cast<std::size_t>(a.pages[page]) * a.page_stride;
    }
    const std::size_t stop = smaller(a.end, start + chunk_positions);
    for (std::size_t row = 0; row < a.rows; row += max_rows) {
      const std::size_t rows = smaller(max_rows, a.rows - row);
      chunk_of[rows - 1](a, row, tiles, start, stop, out);
    }
  }
}

void merge(std::size_t rows, std::size_t dim, const Softmax& part, const Softmax& total) {
  for (std::size_t r = 0; r < rows; ++r) {
    float* acc = total.acc + r * dim;
    const float* more = part.acc + r * dim;
    if (part.sum[r] == 0.0f) continue;
    if (total.sum[r] == 0.0f) {  // what its maximum and accumulator hold is of another step
      total.max[r] = part.max[r];
      total.sum[r] = part.sum[r];
      for (std::size_t i = 0; i < dim; ++i) acc[i] = more[i];
      continue;
    }
    const float top = total.max[r] > part.max[r] ? total.max[r] : part.max[r];
    const float old_factor = exp_clamped(total.max[r] - top),
                new_factor = exp_clamped(part.max[r] - top);
    total.max[r] = top;
    total.sum[r] = total.sum[r] * old_factor + part.sum[r] * new_factor;
    for (std::size_t i = 0; i < dim; ++i) acc[i] = acc[i] * old_factor + more[i] * new_factor;
  }
}

void finish(const float* acc, float sum, std::size_t head_dim, float* out) {
  const float factor = 1.0f / sum;
  for (std::size_t i = 0; i < head_dim; ++i) out[i] = acc[i] * factor;
}

void weigh(const float* x, std::size_t n, float temperature, float* out) {
  Floats tops = splat(x[0]);
  for (std::size_t i = 0; i < n; i += lanes) {
    // Lanes without a value repeat the first one.
    const int count = static_cast<int>(smaller(lanes, n - i));
    Floats some = splat(x[0]);
    __builtin_memcpy(&some, x + i, sizeof(float) * static_cast<std::size_t>(count));
    tops = max(tops, some);
  }
  float top = tops[0];
  for (std::size_t i = 1; i < lanes; ++i) top = tops[i] > top ? tops[i] : top;
  for (std::size_t i = 0; i < n; i += lanes) {
    const int count = static_cast<int>(smaller(lanes, n - i));
    const Floats power = (load(x + i, count) - top) / temperature;
    store(out + i, power < -87.0f ? Floats{} : exp_nonpositive<Taylor>(power), count);
  }
}

template <class Lanes>
constexpr DecoderOps decoder_ops_of() {
  return {rms_norm<Lanes>, layer_norm,    dot<Lanes>, soft_cap, widen, rotate,
          store_position,  attend<Lanes>, merge,      finish,   weigh};
}

}  // namespace
}  // namespace twofour
