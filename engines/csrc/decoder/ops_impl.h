// The operations of ops.h in GCC/Clang vector code, compiled once per instruction set by the
// ops_*.cpp that include it. They define TWOFOUR_OPS_NAMESPACE and `dot_pairs`, `fused` before.
// Everything is in an anonymous namespace, and nothing of the standard library is called: see
// kernels/numeric.h.
#pragma once

#include "../kernels/numeric.h"
#include "ops.h"

namespace twofour::TWOFOUR_OPS_NAMESPACE {
namespace {

constexpr std::size_t lanes = 16;
constexpr std::size_t chunk_positions = 64;  // scores held in registers: 4 vectors a row
constexpr std::size_t chunk_tiles = chunk_positions / lanes;
constexpr int max_rows = 6;  // 6 rows x 4 vectors leave registers for the operands

Floats load(const float* from) {
  Floats v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
void save(float* to, Floats v) { __builtin_memcpy(to, &v, sizeof v); }
Words load_words(const void* from) {
  Words v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}
Words splat_word(const void* from) {
  std::uint32_t word;
  __builtin_memcpy(&word, from, sizeof word);
  return Words{} + word;
}

float sum_lanes(Floats v) {
  float total[lanes];
  save(total, v);
  for (std::size_t half = lanes / 2; half > 0; half /= 2) {
    for (std::size_t i = 0; i < half; ++i) total[i] += total[i + half];
  }
  return total[0];
}

void rms_norm(const float* x, const float* weight, std::size_t n, float eps, float* out) {
  Floats even{}, odd{};
  std::size_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    const Floats a = load(x + i), b = load(x + i + lanes);
    even = fused(a, a, even);
    odd = fused(b, b, odd);
  }
  float squares = sum_lanes(even + odd);
  for (; i < n; ++i) squares += x[i] * x[i];
  const float factor = 1.0f / __builtin_sqrtf(squares / static_cast<float>(n) + eps);
  for (i = 0; i < n; ++i) out[i] = x[i] * factor * weight[i];
}

void widen(const std::uint16_t* x, std::size_t n, float* out) {
  for (std::size_t i = 0; i < n; ++i) out[i] = bf16_to_float(x[i]);
}

void rotate(const float* x, const Rotary& r, std::uint16_t* out) {
  const std::size_t half = r.head_dim / 2;
  float factor = 1.0f;
  if (r.norm) {
    float squares = 0.0f;
    for (std::size_t i = 0; i < r.head_dim; ++i) squares += x[i] * x[i];
    factor = 1.0f / __builtin_sqrtf(squares / static_cast<float>(r.head_dim) + r.eps);
  }
  for (std::size_t i = 0; i < half; ++i) {
    const float a = r.norm ? x[i] * factor * r.norm[i] : x[i];
    const float b = r.norm ? x[half + i] * factor * r.norm[half + i] : x[half + i];
    out[i] = float_to_bf16(a * r.cos[i] - b * r.sin[i]);
    out[half + i] = float_to_bf16(b * r.cos[i] + a * r.sin[i]);
  }
  for (std::size_t i = r.head_dim; i < padded_dim(r.head_dim); ++i) out[i] = 0;
}

void store(const std::uint16_t* key, const float* value, std::size_t head_dim, std::byte* page,
           std::size_t slot, bool last) {
  const std::size_t dim = padded_dim(head_dim);
  for (std::size_t pair = 0; pair < dim / 2; ++pair) {
    __builtin_memcpy(page + (pair * page_positions + slot) * 4, key + 2 * pair, 4);
  }
  std::byte* values = page + head_page_bytes(dim) / 2 + (slot / 2) * dim * 4 + (slot % 2) * 2;
  for (std::size_t i = 0; i < dim; ++i) {
    const std::uint16_t v = i < head_dim ? float_to_bf16(value[i]) : std::uint16_t{0};
    __builtin_memcpy(values + 4 * i, &v, 2);
  }
  if (last && slot % 2 == 0) {
    // Its partner is read with weight zero: whatever a former owner left there must be finite.
    const std::uint16_t zero = 0;
    for (std::size_t i = 0; i < dim; ++i) __builtin_memcpy(values + 4 * i + 2, &zero, 2);
  }
}

// scores[r][64] = scale * q[r] . keys of the chunk's four tiles.
template <int R>
void scores_of(const std::uint16_t* const* q, const std::byte* const* tiles, std::size_t dim,
               float scale, float (*scores)[chunk_positions]) {
  Floats acc[R][chunk_tiles];
  for (int r = 0; r < R; ++r) {
    for (std::size_t t = 0; t < chunk_tiles; ++t) acc[r][t] = Floats{};
  }
  for (std::size_t pair = 0; pair < dim / 2; ++pair) {
    Words keys[chunk_tiles];
    for (std::size_t t = 0; t < chunk_tiles; ++t) keys[t] = load_words(tiles[t] + pair * 64);
    for (int r = 0; r < R; ++r) {
      const Words query = splat_word(q[r] + 2 * pair);
      for (std::size_t t = 0; t < chunk_tiles; ++t) {
        acc[r][t] = dot_pairs(acc[r][t], keys[t], query);
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    for (std::size_t t = 0; t < chunk_tiles; ++t) save(scores[r] + t * lanes, acc[r][t] * scale);
  }
}

// acc[r][v] = acc[r][v] * rescale[r] + weights[r] . values, for V vectors from dimension `first`
// on.
template <int R, int V>
void add_values(const std::uint16_t (*weights)[chunk_positions], const float* rescale,
                const std::byte* const* tiles, std::size_t pairs, std::size_t dim,
                std::size_t first, float* acc) {
  Floats sum[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      sum[r][v] = load(acc + static_cast<std::size_t>(r) * dim + first + v * lanes) * rescale[r];
    }
  }
  for (std::size_t pair = 0; pair < pairs; ++pair) {
    const std::byte* row =
        tiles[pair / 8] + head_page_bytes(dim) / 2 + ((pair % 8) * dim + first) * 4;
    Words values[V];
    for (int v = 0; v < V; ++v) values[v] = load_words(row + v * 64);
    for (int r = 0; r < R; ++r) {
      const Words weight = splat_word(weights[r] + 2 * pair);
      for (int v = 0; v < V; ++v) sum[r][v] = dot_pairs(sum[r][v], values[v], weight);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) {
      save(acc + static_cast<std::size_t>(r) * dim + first + v * lanes, sum[r][v]);
    }
  }
}

Floats exp_lanes(Floats x) {
  const Floats shifted = x * 1.44269504f + 12582912.0f;
  const Floats n = shifted - 12582912.0f;
  const Floats r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  Floats p = Floats{} + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  Words bits;
  Words shift;
  __builtin_memcpy(&bits, &p, sizeof bits);
  __builtin_memcpy(&shift, &shifted, sizeof shift);
  bits += shift << 23;
  __builtin_memcpy(&p, &bits, sizeof bits);
  return p;
}

// Turns one row's scores of positions [lo, hi) of the chunk into bf16 weights, zero elsewhere.
// Returns the factor for what the row has accumulated so far.
float soften(const float* scores, std::size_t lo, std::size_t hi, float* max, float* sum,
             std::uint16_t* weights) {
  const Words index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const float lowest = -3.0e38f;
  Floats shown[chunk_tiles];
  Floats best = Floats{} + lowest;
  for (std::size_t t = 0; t < chunk_tiles; ++t) {
    const Words place = index + static_cast<std::uint32_t>(t * lanes);
    const auto inside =
        (place >= static_cast<std::uint32_t>(lo)) & (place < static_cast<std::uint32_t>(hi));
    shown[t] = inside ? load(scores + t * lanes) : Floats{} + lowest;
    best = shown[t] > best ? shown[t] : best;
  }
  float lane[lanes];
  save(lane, best);
  float top = *sum > 0.0f ? *max : lowest;
  for (std::size_t i = 0; i < lanes; ++i) top = lane[i] > top ? lane[i] : top;
  Floats total{};
  for (std::size_t t = 0; t < chunk_tiles; ++t) {
    const Words place = index + static_cast<std::uint32_t>(t * lanes);
    const auto inside =
        (place >= static_cast<std::uint32_t>(lo)) & (place < static_cast<std::uint32_t>(hi));
    Floats x = shown[t] - top;
    x = x < -87.0f ? Floats{} - 87.0f : x;
    const Floats weight = inside ? exp_lanes(x) : Floats{};
    total += weight;
    float out[lanes];
    save(out, weight);
    for (std::size_t i = 0; i < lanes; ++i) weights[t * lanes + i] = float_to_bf16(out[i]);
  }
  const float before = *sum > 0.0f ? exp_clamped(*max - top) : 0.0f;
  *sum = *sum * before + sum_lanes(total);
  *max = top;
  return before;
}

template <int R>
void chunk_of_rows(const Attend& a, std::size_t row, const std::byte* const* tiles,
                   std::size_t start, std::size_t stop, const Softmax& out) {
  float scores[R][chunk_positions];
  std::uint16_t weights[R][chunk_positions];
  float rescale[R];
  scores_of<R>(a.q + row, tiles, a.dim, a.scale, scores);
  std::size_t last = 0;
  for (int r = 0; r < R; ++r) {
    const std::size_t at = row + static_cast<std::size_t>(r);
    const std::size_t seen = static_cast<std::size_t>(a.position[at]) + 1;
    const std::size_t oldest = a.window > 0 && seen > static_cast<std::size_t>(a.window)
                                   ? seen - static_cast<std::size_t>(a.window)
                                   : 0;
    const std::size_t lo = oldest > start ? oldest - start : 0;
    const std::size_t hi = seen > start ? smaller(seen, stop) - start : 0;
    if (lo >= hi) {
      for (std::size_t i = 0; i < chunk_positions; ++i) weights[r][i] = 0;
      rescale[r] = 1.0f;
      continue;
    }
    rescale[r] = soften(scores[r], lo, hi, out.max + at, out.sum + at, weights[r]);
    last = hi > last ? hi : last;
  }
  const std::size_t pairs = (last + 1) / 2;
  float* acc = out.acc + row * a.dim;
  std::size_t first = 0;
  for (; first + 4 * lanes <= a.dim; first += 4 * lanes) {
    add_values<R, 4>(weights, rescale, tiles, pairs, a.dim, first, acc);
  }
  for (; first < a.dim; first += lanes) {
    add_values<R, 1>(weights, rescale, tiles, pairs, a.dim, first, acc);
  }
}

using ChunkOfRows = void (*)(const Attend&, std::size_t, const std::byte* const*, std::size_t,
                             std::size_t, const Softmax&);
constexpr ChunkOfRows chunk_of[max_rows] = {chunk_of_rows<1>, chunk_of_rows<2>, chunk_of_rows<3>,
                                            chunk_of_rows<4>, chunk_of_rows<5>, chunk_of_rows<6>};

void attend(const Attend& a, const Softmax& out) {
  for (std::size_t r = 0; r < a.rows; ++r) out.max[r] = out.sum[r] = 0.0f;
  for (std::size_t i = 0; i < a.rows * a.dim; ++i) out.acc[i] = 0.0f;
  const std::size_t last_page = (a.end - 1) / page_positions;
  for (std::size_t start = a.begin; start < a.end; start += chunk_positions) {
    const std::byte* tiles[chunk_tiles];
    for (std::size_t t = 0; t < chunk_tiles; ++t) {
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
    if (total.sum[r] == 0.0f) {
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

}  // namespace

const DecoderOps decoder_ops = {rms_norm, widen, rotate, store, attend, merge, finish};

}  // namespace twofour::TWOFOUR_OPS_NAMESPACE
