// The loops around an instruction set's inner kernels, written once; as kernels/driver.h.
//
// `Ops` is a type of the including file's anonymous namespace. It provides
//   max_tokens            most tokens of one panel
//   offset                added to a prepared activation: 0 (int8) or 128 (bytes without sign)
//   spread<L>(from, minima, to)   a tile of a bitmap layout becomes one of dense int8
//   widens, widen<L>(from, minima, to)   whether, and how, a tile of int4 becomes one of int8 where
//                         several panels share the weights
//   multiplies_bitmaps, bitmap_block<L, R>(part, acc)   whether, and how, one token is multiplied
//                         without spreading tiles first
//   block<F, R, T>(part, acc)   R row blocks x T tokens over the chunk's blocks of inputs, in Form
//                         F: acc[R][T][16] += ...
//   names                 of its kernels
//
// Prepared activations are panels of up to max_tokens tokens: bytes [panel][tile][token][32], and
// behind all of them fp32 scales [panel][block][token].
#pragma once

#include "kernels/lowbit/activations.h"
#include "kernels/lowbit/kernels.h"
#include "kernels/numeric.h"
#include "kernels/panels.h"

namespace twofour::lowbit {
namespace {

// What an inner kernel reads: bitmap layouts come spread, as dense int8.
enum class Form { dense_int8, dense_int4, pairs_int8, pairs_int4 };
constexpr bool int4_form(Form form) { return form == Form::dense_int4 || form == Form::pairs_int4; }
constexpr bool pairs_form(Form form) {
  return form == Form::pairs_int8 || form == Form::pairs_int4;
}
constexpr std::size_t form_tile_bytes(Form form) {
  return (pairs_form(form) ? vector_bytes + 16 * tile_rows : 32 * tile_rows) -
         (int4_form(form) ? (pairs_form(form) ? 8 * tile_rows : 16 * tile_rows) : 0);
}
template <Layout L>
constexpr Form form_of() {
  if constexpr (L == Layout::dense_int4) return Form::dense_int4;
  if constexpr (L == Layout::sparse24_int8) return Form::pairs_int8;
  if constexpr (L == Layout::sparse24_int4) return Form::pairs_int4;
  return Form::dense_int8;
}
constexpr Form widened(Form form) { return pairs_form(form) ? Form::pairs_int8 : Form::dense_int8; }

// Weights and activations of one inner call. Whole blocks of inputs, but for a row's last.
template <int R>
struct Part {
  const std::byte* tiles[R];
  const std::byte* scales[R];
  const std::byte* minima[R];  // null: symmetric
  const std::uint8_t* x;       // the panel's first tile of the chunk
  const float* x_scales;       // and first block: [block][token]
  std::size_t tile_count, block_tiles;
  // With `fetch`, what will be read next: tiles until the row ends, and bytes from there to the
  // same row of the next call. Else the weights are in the first-level cache already.
  bool fetch;
  std::size_t tiles_left, skip;
};

// Covers memory's latency at the bandwidth of one core; as in kernels/prefetch.h.
inline constexpr std::size_t prefetch_bytes = 8192;

template <std::size_t TileBytes>
inline __attribute__((always_inline)) void prefetch_tile(const std::byte* tile, std::size_t index,
                                                         std::size_t tiles_left, std::size_t skip) {
  constexpr std::size_t ahead = (prefetch_bytes + TileBytes - 1) / TileBytes;
  const std::byte* next = tile + ahead * TileBytes + (index + ahead < tiles_left ? 0 : skip);
  for (std::size_t line = 0; line < TileBytes; line += vector_bytes) {
    __builtin_prefetch(next + line, 0, 3);
  }
}

// What the kernels of the layouts are called, by the layouts' numbers from dense_int8.
struct KernelNames {
  const char* entry[6];
};

template <class Ops>
struct Driver {
  template <int R>
  using Block = void (*)(const Part<R>& part, float* acc);
  static constexpr std::size_t max_tokens = Ops::max_tokens;
  // As in kernels/driver.h: the activations of a pass stay in the second-level cache, the weights
  // of a chunk in the first.
  static constexpr std::size_t pass_tokens = 12 * max_tokens;
  static constexpr std::size_t pass_bytes = 512 * 1024;
  static constexpr std::size_t chunk_tiles = 16;

  static Panels panels(std::size_t tokens) { return panels_of(tokens, max_tokens); }

  static std::size_t prepared_bytes(std::size_t tokens, std::size_t k, std::size_t block) {
    return tokens * (input_tiles(k) * tile_inputs + block_count(k, block) * sizeof(float));
  }
  static float* scales_of(void* prepared, std::size_t tokens, std::size_t k) {
    return reinterpret_cast<float*>(static_cast<std::uint8_t*>(prepared) +
                                    tokens * input_tiles(k) * tile_inputs);
  }
  static const float* scales_of(const void* prepared, std::size_t tokens, std::size_t k) {
    return scales_of(const_cast<void*>(prepared), tokens, k);
  }

  template <class Value>
  static void prepare(const Value* x, std::size_t stride, std::size_t tokens, std::size_t k,
                      std::size_t block, void* prepared, std::size_t begin, std::size_t end) {
    const Panels p = panels(tokens);
    const std::size_t tiles = input_tiles(k), blocks = block_count(k, block);
    float* scales = scales_of(prepared, tokens, k);
    for (std::size_t token = begin; token < end; ++token) {
      const std::size_t panel = p.of(token), first = p.first(panel), size = p.size(panel);
      std::uint8_t* to =
          static_cast<std::uint8_t*>(prepared) + (first * tiles + (token - first)) * tile_inputs;
      for (std::size_t b = 0; b < blocks; ++b) {
        const std::size_t start = b * block, inputs = smaller(block, k - start);
        const float scale =
            quantise(x + token * stride + start, inputs, to + start * size, size * tile_inputs);
        scales[first * blocks + b * size + (token - first)] = scale;
      }
    }
  }

  // `inputs` activations of one block, tile by tile; gives their scale.
  template <class Value>
  static float quantise(const Value* x, std::size_t inputs, std::uint8_t* to, std::size_t step) {
    std::uint32_t largest = 0;
    for (std::size_t i = 0; i < inputs; ++i) {
      const std::uint32_t bits = as_bits(as_activation(x[i])) & 0x7fffffffu;
      largest = bits > largest ? bits : largest;
    }
    const ActivationScale s = activation_scale(largest);
    const bool usable = s.inverse != 0.0f;
    for (std::size_t from = 0; from < inputs; from += tile_inputs, to += step) {
      const std::size_t count = smaller(tile_inputs, inputs - from);
      for (std::size_t i = count; i < tile_inputs; ++i) to[i] = Ops::offset;
      if (!usable) {
        for (std::size_t i = 0; i < count; ++i) to[i] = Ops::offset;
      } else if (count == tile_inputs) {
        for (std::size_t i = 0; i < tile_inputs; ++i) to[i] = byte_of(x[from + i], s.inverse);
      } else {
        for (std::size_t i = 0; i < count; ++i) to[i] = byte_of(x[from + i], s.inverse);
      }
    }
    return s.scale;
  }
  template <class Value>
  static std::uint8_t byte_of(Value x, float inverse) {
    return static_cast<std::uint8_t>(rounded(as_activation(x) * inverse) + Ops::offset);
  }

  // Writes 16 outputs of one token and row block; `values` may be changed.
  static void write(const Output& y, std::size_t n, std::size_t token, std::size_t row_block,
                    float* values) {
    const std::size_t first = row_block * tile_rows;
    const std::size_t valid = smaller(tile_rows, n - first);
    if (y.bias) {
      for (std::size_t i = 0; i < valid; ++i) values[i] += y.bias[first + i];
    }
    if (y.kind == OutputKind::bf16) {
      std::uint16_t* to = static_cast<std::uint16_t*>(y.data) + token * y.stride + first;
      for (std::size_t i = 0; i < valid; ++i) to[i] = float_to_bf16(values[i]);
      return;
    }
    float* to = static_cast<float*>(y.data) + token * y.stride + first;
    if (y.kind == OutputKind::f32_add) {
      for (std::size_t i = 0; i < valid; ++i) values[i] = to[i] + values[i];
    }
    for (std::size_t i = 0; i < valid; ++i) to[i] = values[i];
  }

  template <Form F, int R>
  static Block<R> block(std::size_t tokens) {
    static constexpr auto table = []<std::size_t... T>(Sequence<T...>) {
      return BlockTable<R>{{&Ops::template block<F, R, static_cast<int>(T) + 1>...}};
    }(MakeSequence<max_tokens>{});
    return table.entry[tokens - 1];
  }

  // Panels of one pass over the weights, from `first`.
  static std::size_t pass_end(const Panels& p, std::size_t first, std::size_t tiles) {
    const std::size_t count = pass_bytes / ((p.base + 1) * tiles * tile_inputs);
    return smaller(p.count, first + (count < 1 ? 1 : smaller(count, pass_tokens / max_tokens)));
  }

  // acc[panel of the pass][R][T][16] = the products of R row blocks with the panels [first, last).
  // With `Made`, tiles are made from the layout's, chunk by chunk: spread or widened.
  template <Layout L, int R, bool Made>
  static void multiply(const Weights& w, const std::byte* const* rows, std::size_t skip,
                       const void* prepared, const Panels& p, std::size_t tokens, std::size_t first,
                       std::size_t last, float* acc) {
    constexpr Form form = Made ? widened(form_of<L>()) : form_of<L>();
    constexpr std::size_t made_bytes = Made ? chunk_tiles * form_tile_bytes(form) : 1;
    alignas(64) std::byte made[Made ? R : 1][made_bytes];
    const std::size_t tiles = input_tiles(w.k), blocks = block_count(w.k, w.block);
    const std::size_t header = header_bytes(w.k, w.block, w.minima);
    const std::size_t block_tiles = w.block / tile_inputs;
    const auto* x = static_cast<const std::uint8_t*>(prepared);
    const float* x_scales = scales_of(prepared, tokens, w.k);
    const std::size_t start = p.first(first);
    for (std::size_t i = 0; i < (p.first(last) - start) * R * tile_rows; ++i) acc[i] = 0.0f;
    for (std::size_t tile = 0; tile < tiles; tile += chunk_tiles) {
      const std::size_t b = tile / block_tiles;
      Part<R> part;
      part.tile_count = smaller(chunk_tiles, tiles - tile);
      part.block_tiles = block_tiles;
      part.tiles_left = tiles - tile;
      part.skip = skip;
      for (int r = 0; r < R; ++r) {
        part.tiles[r] = rows[r] + header + tile * tile_bytes(L);
        part.scales[r] = rows[r] + scale_place(b);
        part.minima[r] = w.minima ? rows[r] + minimum_place(blocks, b) : nullptr;
        if constexpr (Made) {
          make_chunk<L>(part, r, made[r]);
          part.tiles[r] = made[r];
        }
      }
      for (std::size_t panel = first; panel < last; ++panel) {
        const std::size_t size = p.size(panel), token = p.first(panel);
        part.fetch = !Made && panel == first;
        part.x = x + (token * tiles + tile * size) * tile_inputs;
        part.x_scales = x_scales + token * blocks + b * size;
        float* sums = acc + (token - start) * R * tile_rows;
        if constexpr (!Made && places_of(L) == Places::bitmap) {
          Ops::template bitmap_block<L, R>(part, sums);
        } else {
          block<form, R>(size)(part, sums);
        }
      }
    }
  }

  template <Layout L, int R>
  static void make_chunk(const Part<R>& part, int r, std::byte* to) {
    constexpr std::size_t bytes = form_tile_bytes(widened(form_of<L>()));
    for (std::size_t tile = 0; tile < part.tile_count; ++tile, to += bytes) {
      const std::byte* from = part.tiles[r] + tile * tile_bytes(L);
      const std::byte* minima =
          part.minima[r] ? part.minima[r] + 16 * (tile / part.block_tiles) : nullptr;
      prefetch_tile<tile_bytes(L)>(from, tile, part.tiles_left, part.skip);
      if constexpr (places_of(L) == Places::bitmap) {
        Ops::template spread<L>(from, minima, to);
      } else {
        Ops::template widen<L>(from, minima, to);
      }
    }
  }

  // Calls finish(token, values, next row block's values) for what R row blocks give.
  template <Layout L, int R, class Finish>
  static void pass(const Weights& w, const std::byte* const* rows, std::size_t skip,
                   const void* prepared, const Panels& p, std::size_t tokens, std::size_t first,
                   std::size_t last, float* acc, Finish finish) {
    constexpr bool bitmap = places_of(L) == Places::bitmap;
    constexpr bool widens = Ops::widens && is_int4(L);
    constexpr bool stored = !bitmap || Ops::multiplies_bitmaps;  // there are kernels without making
    const bool make = bitmap ? tokens > 1 || !stored : widens && last - first > 1;
    if (stored && !make) {
      multiply<L, R, !stored>(w, rows, skip, prepared, p, tokens, first, last, acc);
    } else {
      multiply<L, R, bitmap || widens>(w, rows, skip, prepared, p, tokens, first, last, acc);
    }
    const std::size_t start = p.first(first);
    for (std::size_t panel = first; panel < last; ++panel) {
      const std::size_t size = p.size(panel), token = p.first(panel);
      float* values = acc + (token - start) * R * tile_rows;
      for (std::size_t t = 0; t < size; ++t) {
        finish(token + t, values + t * tile_rows, values + (t + size) * tile_rows);
      }
    }
  }

  template <Layout L>
  static void linear_of(const Weights& w, const void* prepared, std::size_t tokens, const Output& y,
                        std::size_t begin, std::size_t end) {
    alignas(64) float acc[2 * pass_tokens * tile_rows];
    const Panels p = panels(tokens);
    const std::size_t bytes = row_block_bytes(L, w.k, w.block, w.minima);
    for (std::size_t first = 0, last = 0; first < p.count; first = last) {
      last = pass_end(p, first, input_tiles(w.k));
      std::size_t at = begin;
      for (; at + 2 <= end; at += 2) {
        const std::byte* rows[2] = {w.data + at * bytes, w.data + (at + 1) * bytes};
        pass<L, 2>(w, rows, bytes, prepared, p, tokens, first, last, acc,
                   [&](std::size_t token, float* values, float* next) {
                     write(y, w.n, token, at, values);
                     write(y, w.n, token, at + 1, next);
                   });
      }
      if (at < end) {
        const std::byte* rows[1] = {w.data + at * bytes};
        pass<L, 1>(
            w, rows, 0, prepared, p, tokens, first, last, acc,
            [&](std::size_t token, float* values, float*) { write(y, w.n, token, at, values); });
      }
    }
  }

  template <Layout L>
  static void gated_of(const Weights& gate, const Weights& up, const void* prepared,
                       std::size_t tokens, const Output& y, std::size_t begin, std::size_t end) {
    alignas(64) float acc[2 * pass_tokens * tile_rows];
    const Panels p = panels(tokens);
    const std::size_t bytes = row_block_bytes(L, gate.k, gate.block, gate.minima);
    for (std::size_t first = 0, last = 0; first < p.count; first = last) {
      last = pass_end(p, first, input_tiles(gate.k));
      for (std::size_t at = begin; at < end; ++at) {
        const std::byte* rows[2] = {gate.data + at * bytes, up.data + at * bytes};
        pass<L, 2>(gate, rows, 0, prepared, p, tokens, first, last, acc,
                   [&](std::size_t token, float* values, float* next) {
                     for (std::size_t i = 0; i < tile_rows; ++i) {
                       values[i] = gated_by(values[i], y.curve.linear, y.curve.cubic) * next[i];
                     }
                     write(y, gate.n, token, at, values);
                   });
      }
    }
  }

  static void linear(const Weights& w, const void* prepared, std::size_t tokens, const Output& y,
                     std::size_t begin, std::size_t end) {
    with_layout(w.layout, [&]<Layout L>() { linear_of<L>(w, prepared, tokens, y, begin, end); });
  }

  static void gated(const Weights& gate, const Weights& up, const void* prepared,
                    std::size_t tokens, const Output& y, std::size_t begin, std::size_t end) {
    with_layout(gate.layout,
                [&]<Layout L>() { gated_of<L>(gate, up, prepared, tokens, y, begin, end); });
  }

  template <class Body>
  static void with_layout(Layout layout, Body body) {
    switch (layout) {
      case Layout::dense_int8:
        return body.template operator()<Layout::dense_int8>();
      case Layout::dense_int4:
        return body.template operator()<Layout::dense_int4>();
      case Layout::sparse24_int8:
        return body.template operator()<Layout::sparse24_int8>();
      case Layout::sparse24_int4:
        return body.template operator()<Layout::sparse24_int4>();
      case Layout::bitmap32_int8:
        return body.template operator()<Layout::bitmap32_int8>();
      default:
        return body.template operator()<Layout::bitmap32_int4>();
    }
  }

  static const char* kernel_name(Layout layout) {
    return Ops::names.entry[static_cast<int>(layout) - static_cast<int>(Layout::dense_int8)];
  }

  static constexpr Kernels table() {
    return {prepared_bytes, prepare<float>, prepare<std::uint16_t>, linear, gated, kernel_name};
  }

 private:
  template <int R>
  struct BlockTable {
    Block<R> entry[max_tokens];
  };
};

}  // namespace
}  // namespace twofour::lowbit
