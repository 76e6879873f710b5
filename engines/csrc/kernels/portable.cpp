// The portable kernels: what every layout means, in scalar code. Correct rather than fast.
#include "common/bf16.h"
#include "kernels/driver.h"
#include "kernels/tables.h"

namespace twofour {
namespace {

struct PortableOps {
  using Activation = std::uint16_t;
  static constexpr std::size_t max_tokens = 8;
  static constexpr Source shared_source = Source::codes;

  static float load(const std::byte* at) {
    std::uint16_t value;
    __builtin_memcpy(&value, at, sizeof value);
    return bf16_to_float(value);
  }

  template <Source S, int R, int T>
  static void block(const Part<R>& part, const Activation* x, std::size_t tiles, float* acc) {
    constexpr Layout L = layout_of(S);
    for (std::size_t tile = 0; tile < tiles; ++tile) {
      for (int r = 0; r < R; ++r) {
        const std::byte* from = part.w[r] + tile * tile_bytes(L);
        for (int t = 0; t < T; ++t) {
          const Activation* in = x + (tile * T + static_cast<std::size_t>(t)) * tile_inputs;
          float* out = acc + static_cast<std::size_t>(r * T + t) * tile_rows;
          if constexpr (L == Layout::sparse24_bf16) {
            sparse_tile(from, in, out);
          } else {
            dense_tile(from, in, out);
          }
        }
      }
    }
  }

  static void sparse_tile(const std::byte* from, const Activation* in, float* out) {
    for (std::size_t group = 0; group < tile_groups; ++group) {
      for (std::size_t lane = 0; lane < tile_rows; ++lane) {
        const unsigned byte = std::to_integer<unsigned>(from[4 * lane + group / 2]);
        const std::uint8_t* pair = placement_pairs[(byte >> (4 * (group % 2))) & 15u];
        const std::byte* values = from + vector_bytes * (1 + group) + 4 * lane;
        out[lane] += load(values) * bf16_to_float(in[4 * group + pair[0]]);
        out[lane] += load(values + 2) * bf16_to_float(in[4 * group + pair[1]]);
      }
    }
  }

  static void dense_tile(const std::byte* from, const Activation* in, float* out) {
    for (std::size_t pair = 0; pair < tile_inputs / 2; ++pair) {
      for (std::size_t lane = 0; lane < tile_rows; ++lane) {
        const std::byte* values = from + vector_bytes * pair + 4 * lane;
        out[lane] += load(values) * bf16_to_float(in[2 * pair]);
        out[lane] += load(values + 2) * bf16_to_float(in[2 * pair + 1]);
      }
    }
  }

  static float patch_row(const std::uint32_t* group, const std::uint16_t* delta, std::size_t length,
                         const Activation* x, std::size_t tile_stride) {
    float sum = 0.0f;
    for (std::size_t i = 0; i < length; ++i) {
      const Activation* in =
          x + (group[i] / tile_groups) * tile_stride + 4 * (group[i] % tile_groups);
      for (std::size_t j = 0; j < 4; ++j) {
        sum += bf16_to_float(delta[4 * i + j]) * bf16_to_float(in[j]);
      }
    }
    return sum;
  }

  static std::uint64_t read(const std::byte* data, std::size_t bytes) {
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i + 8 <= bytes; i += 8) {
      std::uint64_t word;
      __builtin_memcpy(&word, data + i, 8);
      sum ^= word;
    }
    return sum;
  }

  static const char* kernel_name(Layout layout, std::size_t) {
    return layout == Layout::sparse24_bf16 ? "sparse24-scalar" : "dense-scalar";
  }
};

}  // namespace

const Kernels& portable_kernels() {
  static const Kernels table = Driver<PortableOps>::table();
  return table;
}

}  // namespace twofour
