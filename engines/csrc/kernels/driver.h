// The loops around an instruction set's inner kernels, written once.
//
// `Ops` is a type of the including file's anonymous namespace, so that each file gets its own copy
// of everything here (a shared copy would be compiled for whichever file the linker met first).
// It provides
//   Activation            element of prepared activations: std::uint16_t (bf16) or float
//   max_tokens            most tokens of one panel
//   shared_source         Source of a sparse layout's weights where several panels share them: if
//                         not `codes`, expand(w, tiles, to) makes it from the tiles, once for all
//   block<S, R, T>(part, x, tiles, acc)   R row blocks x T tokens over `tiles` input tiles:
//                         acc[R][T][16] += W x; x is the panel's first tile
//   read, patch_row       what patches of a sparse layout need (kernels/patch.h)
//   kernel_name           by layout
//
// Prepared activations are panels of up to max_tokens tokens; a panel is stored tile by tile, and
// in a tile token by token: [panel][tile][token][32 inputs]. One micro-kernel call then reads
// consecutive memory whatever k is, with no two tokens a power of two apart.
#pragma once

#include "common/bf16.h"
#include "kernels/kernels.h"
#include "kernels/panels.h"

namespace twofour {
namespace {

// What an inner kernel reads: tiles of the sparse layout with their codes, or with the places that
// those stand for beside them; or tiles of the dense layout.
enum class Source { codes, places, dense };
constexpr Layout layout_of(Source source) {
  return source == Source::dense ? Layout::dense_bf16 : Layout::sparse24_bf16;
}
// What `expand` makes of a tile.
constexpr std::size_t expanded_tile_bytes(Source source) {
  return source == Source::dense ? dense_tile_bytes : vector_bytes * tile_groups;
}

// The weights of one inner call. `skip`: bytes between the end of a row block here and the same row
// of the next call, so that prefetching looks past a row's end to what will be read.
template <int R>
struct Part {
  const std::byte* w[R];       // each row block's first tile
  const std::byte* places[R];  // with Source::places
  std::size_t skip;
  // When several panels share the weights: what to fetch for the next chunk, so many lines a tile.
  // Each panel fetches its part of it, since a burst would only wait for memory.
  const std::byte* next[R];
  std::size_t next_lines;
};

template <class Ops>
struct Driver {
  using Activation = typename Ops::Activation;
  template <int R>
  using Block = void (*)(const Part<R>& part, const Activation* x, std::size_t tiles, float* acc);
  static constexpr std::size_t max_tokens = Ops::max_tokens;
  static constexpr std::size_t max_rows = 2;  // row blocks per inner kernel
  // Tokens whose accumulators one pass over the weights keeps: the activations of a pass should
  // stay in the second-level cache (half of 1 MiB, the smallest that AVX-512 server cores have).
  static constexpr std::size_t pass_tokens = 12 * max_tokens;
  static constexpr std::size_t pass_bytes = 2048 * 1024;
  // Input tiles per inner call when several panels share the weights: 16 tiles of two row blocks
  // are 18 KiB (sparse), which stay in the first-level cache while the panels pass.
  static constexpr std::size_t chunk_tiles = 16;
  // Of tiles made dense: 16 KiB.
  static constexpr std::size_t dense_chunk_tiles = 8;

  static Panels panels(std::size_t tokens) { return panels_of(tokens, max_tokens); }

  // First element of (token, tile).
  static std::size_t place(const Panels& p, std::size_t tiles, std::size_t token,
                           std::size_t tile) {
    const std::size_t panel = p.of(token), first = p.first(panel);
    return (first * tiles + tile * p.size(panel) + (token - first)) * tile_inputs;
  }

  static std::size_t prepared_bytes(std::size_t tokens, std::size_t k) {
    return tokens * input_tiles(k) * tile_inputs * sizeof(Activation);
  }

  static Activation rounded(float value) {
    if constexpr (sizeof(Activation) == 2) {
      return float_to_bf16(value);
    } else {
      return bf16_to_float(float_to_bf16(value));
    }
  }
  static Activation rounded(std::uint16_t value) {
    if constexpr (sizeof(Activation) == 2) {
      return value;
    } else {
      return bf16_to_float(value);
    }
  }

  template <class Value>
  static void prepare(const Value* x, std::size_t stride, std::size_t tokens, std::size_t k,
                      void* prepared, std::size_t begin, std::size_t end) {
    const Panels p = panels(tokens);
    const std::size_t tiles = input_tiles(k);
    Activation* out = static_cast<Activation*>(prepared);
    for (std::size_t token = begin; token < end; ++token) {
      const Value* row = x + token * stride;
      const std::size_t step = p.size(p.of(token)) * tile_inputs;
      Activation* to = out + place(p, tiles, token, 0);
      for (std::size_t tile = 0; tile < tiles; ++tile, to += step) {
        const Value* from = row + tile * tile_inputs;
        const std::size_t valid = smaller(tile_inputs, k - tile * tile_inputs);
        if (valid == tile_inputs) {
          for (std::size_t i = 0; i < tile_inputs; ++i) to[i] = rounded(from[i]);
        } else {
          for (std::size_t i = 0; i < valid; ++i) to[i] = rounded(from[i]);
          for (std::size_t i = valid; i < tile_inputs; ++i) to[i] = Activation{};
        }
      }
    }
  }

  // Writes 16 outputs of one token and row block; `values` may be changed.
  static void write(const Output& y, const Panels& p, std::size_t n, std::size_t token,
                    std::size_t block, float* values) {
    const std::size_t first = block * tile_rows;
    const std::size_t valid = smaller(tile_rows, n - first);
    if (y.bias) {
      for (std::size_t i = 0; i < valid; ++i) values[i] += y.bias[first + i];
    }
    if (y.kind == OutputKind::prepared) {
      Activation* to = static_cast<Activation*>(y.data) +
                       place(p, input_tiles(n), token, first / tile_inputs) + first % tile_inputs;
      for (std::size_t i = 0; i < tile_rows; ++i) to[i] = rounded(values[i]);
      if (block + 1 == row_blocks(n) && first % tile_inputs == 0) {
        for (std::size_t i = tile_rows; i < tile_inputs; ++i) to[i] = Activation{};
      }
    } else if (y.kind == OutputKind::bf16) {
      std::uint16_t* to = static_cast<std::uint16_t*>(y.data) + token * y.stride + first;
      for (std::size_t i = 0; i < valid; ++i) to[i] = float_to_bf16(values[i]);
    } else {
      float* to = static_cast<float*>(y.data) + token * y.stride + first;
      if (y.kind == OutputKind::f32_add) {
        for (std::size_t i = 0; i < valid; ++i) values[i] = to[i] + values[i];
      }
      for (std::size_t i = 0; i < valid; ++i) to[i] = values[i];
    }
  }

  template <Source S, int R>
  static Block<R> block(std::size_t tokens) {
    static constexpr auto table = []<std::size_t... T>(Sequence<T...>) {
      return BlockTable<R>{{&Ops::template block<S, R, static_cast<int>(T) + 1>...}};
    }(MakeSequence<max_tokens>{});
    return table.entry[tokens - 1];
  }

  // acc[panel of the pass][R][T][16] = the products of R row blocks with the panels [first, last).
  template <Layout L, int R>
  static void multiply(const Part<R>& rows, const Activation* x, const Panels& p, std::size_t first,
                       std::size_t last, std::size_t tiles, float* acc) {
    const std::size_t start = p.first(first);
    for (std::size_t i = 0; i < (p.first(last) - start) * R * tile_rows; ++i) acc[i] = 0.0f;
    if (last - first == 1) {
      constexpr Source source = L == Layout::dense_bf16 ? Source::dense : Source::codes;
      block<source, R>(p.size(first))(rows, x + start * tiles * tile_inputs, tiles, acc);
      return;
    }
    constexpr Source source = L == Layout::dense_bf16 ? Source::dense : Ops::shared_source;
    constexpr bool expand = L == Layout::sparse24_bf16 && source != Source::codes;
    constexpr std::size_t chunk =
        expand && source == Source::dense ? dense_chunk_tiles : chunk_tiles;
    constexpr std::size_t bytes = expand ? chunk * expanded_tile_bytes(source) : 1;
    alignas(64) std::byte expanded[expand ? R : 1][bytes];
    for (std::size_t tile = 0; tile < tiles; tile += chunk) {
      const std::size_t count = smaller(chunk, tiles - tile);
      const bool row_ends = tile + count == tiles;
      const std::size_t lines_of_tile = tile_bytes(L) / vector_bytes;
      Part<R> part = rows;
      part.next_lines = (lines_of_tile + last - first - 1) / (last - first);
      for (int r = 0; r < R; ++r) {
        part.w[r] += tile * tile_bytes(L);
        part.next[r] = part.w[r] + count * tile_bytes(L) + (row_ends ? rows.skip : 0);
        if constexpr (expand) {
          Ops::expand(part.w[r], count, expanded[r]);
          (source == Source::dense ? part.w : part.places)[r] = expanded[r];
        }
      }
      for (std::size_t panel = first; panel < last; ++panel) {
        const std::size_t size = p.size(panel), token = p.first(panel);
        block<source, R>(size)(part, x + (token * tiles + tile * size) * tile_inputs, count,
                               acc + (token - start) * R * tile_rows);
        for (int r = 0; r < R; ++r) part.next[r] += count * part.next_lines * vector_bytes;
      }
    }
  }

  // Panels of one pass over the weights, from `first`.
  static std::size_t pass_end(const Panels& p, std::size_t first, std::size_t tiles) {
    const std::size_t panel_bytes = (p.base + 1) * tiles * tile_inputs * sizeof(Activation);
    std::size_t count = pass_bytes / panel_bytes;
    count = count < 1 ? 1 : smaller(count, pass_tokens / max_tokens);
    return smaller(p.count, first + count);
  }

  // R row blocks, one after the other or (gated) of two matrices, then `finish(token, r, values)`.
  template <Layout L, int R, class Finish>
  static void pass(const Part<R>& rows, const Activation* x, const Panels& p, std::size_t first,
                   std::size_t last, std::size_t tiles, float* acc, Finish finish) {
    multiply<L, R>(rows, x, p, first, last, tiles, acc);
    const std::size_t start = p.first(first);
    for (std::size_t panel = first; panel < last; ++panel) {
      const std::size_t size = p.size(panel), token = p.first(panel);
      float* values = acc + (token - start) * R * tile_rows;
      for (std::size_t t = 0; t < size; ++t) {
        finish(token + t, values + t * tile_rows, size * tile_rows);
      }
    }
  }

  template <Layout L>
  static void linear_of(const Weights& w, const Activation* x, std::size_t tokens, const Output& y,
                        std::size_t begin, std::size_t end) {
    alignas(64) float acc[max_rows * pass_tokens * tile_rows];
    const Panels p = panels(tokens);
    const std::size_t tiles = input_tiles(w.k), bytes = block_bytes(L, w.k);
    for (std::size_t first = 0, last = 0; first < p.count; first = last) {
      last = pass_end(p, first, tiles);
      std::size_t block = begin;
      for (; block + 2 <= end; block += 2) {
        const Part<2> rows{
            {w.data + block * bytes, w.data + (block + 1) * bytes}, {}, bytes, {}, 0};
        pass<L, 2>(rows, x, p, first, last, tiles, acc,
                   [&](std::size_t token, float* v, std::size_t next) {
                     write(y, p, w.n, token, block, v);
                     write(y, p, w.n, token, block + 1, v + next);
                   });
      }
      if (block < end) {
        const Part<1> rows{{w.data + block * bytes}, {}, 0, {}, 0};
        pass<L, 1>(
            rows, x, p, first, last, tiles, acc,
            [&](std::size_t token, float* v, std::size_t) { write(y, p, w.n, token, block, v); });
      }
    }
  }

  template <Layout L>
  static void gated_of(const Weights& gate, const Weights& up, const Activation* x,
                       std::size_t tokens, const Output& y, std::size_t begin, std::size_t end) {
    alignas(64) float acc[max_rows * pass_tokens * tile_rows];
    const Panels p = panels(tokens);
    const std::size_t tiles = input_tiles(gate.k), bytes = block_bytes(L, gate.k);
    for (std::size_t first = 0, last = 0; first < p.count; first = last) {
      last = pass_end(p, first, tiles);
      for (std::size_t block = begin; block < end; ++block) {
        const Part<2> rows{{gate.data + block * bytes, up.data + block * bytes}, {}, 0, {}, 0};
        pass<L, 2>(rows, x, p, first, last, tiles, acc,
                   [&](std::size_t token, float* v, std::size_t next) {
                     for (std::size_t i = 0; i < tile_rows; ++i) {
                       v[i] = gated_by(v[i], y.curve.linear, y.curve.cubic) * v[next + i];
                     }
                     write(y, p, gate.n, token, block, v);
                   });
      }
    }
  }

  static void linear(const Weights& w, const void* prepared, std::size_t tokens, const Output& y,
                     std::size_t begin, std::size_t end) {
    const Activation* x = static_cast<const Activation*>(prepared);
    if (w.layout == Layout::sparse24_bf16) {
      linear_of<Layout::sparse24_bf16>(w, x, tokens, y, begin, end);
    } else {
      linear_of<Layout::dense_bf16>(w, x, tokens, y, begin, end);
    }
  }

  static void gated(const Weights& gate, const Weights& up, const void* prepared,
                    std::size_t tokens, const Output& y, std::size_t begin, std::size_t end) {
    const Activation* x = static_cast<const Activation*>(prepared);
    if (gate.layout == Layout::sparse24_bf16) {
      gated_of<Layout::sparse24_bf16>(gate, up, x, tokens, y, begin, end);
    } else {
      gated_of<Layout::dense_bf16>(gate, up, x, tokens, y, begin, end);
    }
  }

  static void gate_mul(const float* gate, const float* up, std::size_t stride, std::size_t n,
                       std::size_t tokens, const Output& y, std::size_t begin, std::size_t end) {
    const Panels p = panels(tokens);
    for (std::size_t token = 0; token < tokens; ++token) {
      for (std::size_t block = begin; block < end; ++block) {
        const std::size_t from = token * stride + block * tile_rows;
        const std::size_t valid = smaller(tile_rows, n - block * tile_rows);
        float values[tile_rows] = {};
        for (std::size_t i = 0; i < valid; ++i) {
          values[i] = gated_by(gate[from + i], y.curve.linear, y.curve.cubic) * up[from + i];
        }
        write(y, p, n, token, block, values);
      }
    }
  }

  static void patch_add(const Patch& patch, const void* prepared, std::size_t tokens,
                        const std::uint32_t* which, std::size_t count, float* y, std::size_t stride,
                        std::size_t begin, std::size_t end) {
    const Panels p = panels(tokens);
    const std::size_t tiles = input_tiles(patch.k);
    const std::size_t row_end = smaller(end * tile_rows, patch.n);
    for (std::size_t row = begin * tile_rows; row < row_end; ++row) {
      const std::uint32_t from = patch.row_start[row], length = patch.row_start[row + 1] - from;
      if (length == 0) continue;
      for (std::size_t i = 0; i < count; ++i) {
        const std::size_t token = which[i], tile_stride = p.size(p.of(token)) * tile_inputs;
        const Activation* x = static_cast<const Activation*>(prepared) + place(p, tiles, token, 0);
        y[token * stride + row] += Ops::patch_row(
            patch.group + from, patch.delta + 4 * std::size_t{from}, length, x, tile_stride);
      }
    }
  }

  static constexpr Kernels table() {
    return {prepared_bytes, prepare<float>, prepare<std::uint16_t>, linear, gated, gate_mul,
            patch_add,      Ops::read,      Ops::kernel_name};
  }

 private:
  template <int R>
  struct BlockTable {
    Block<R> entry[max_tokens];
  };
};

}  // namespace
}  // namespace twofour
