// What the low-bit layouts mean, in scalar code. Correct rather than fast.
#include "kernels/lowbit/driver.h"

namespace twofour::lowbit {
namespace {

struct PortableOps {
  static constexpr std::size_t max_tokens = 8;
  static constexpr int offset = 0;
  static constexpr bool widens = false;
  static constexpr bool multiplies_bitmaps = false;

  template <Layout L>
  static int value_at(const std::byte* tile, std::size_t lane, std::size_t slot, int minimum) {
    const ValuePlace place = value_place(L, lane, slot);
    const int stored = std::to_integer<int>(tile[place.byte]);
    if constexpr (is_int4(L)) return level_step * ((stored >> place.shift) & 15) + minimum;
    return static_cast<std::int8_t>(stored);
  }

  static std::uint32_t places_at(const std::byte* tile, std::size_t lane) {
    std::uint32_t places;
    __builtin_memcpy(&places, tile + 4 * lane, sizeof places);
    return places;
  }

  static int minimum_at(const std::byte* minima, std::size_t lane) {
    return minima ? static_cast<std::int8_t>(minima[lane]) : symmetric_minimum;
  }

  template <Layout L>
  static void spread(const std::byte* from, const std::byte* minima, std::byte* to) {
    for (std::size_t lane = 0; lane < tile_rows; ++lane) {
      const std::uint32_t kept = places_at(from, lane);
      const int minimum = minimum_at(minima, lane);
      std::size_t slot = 0;
      for (std::size_t i = 0; i < tile_inputs; ++i) {
        const bool keeps = (kept >> i) & 1u;
        const int value = keeps ? value_at<L>(from, lane, slot++, minimum) : 0;
        to[value_place(Layout::dense_int8, lane, i).byte] = static_cast<std::byte>(value);
      }
    }
  }

  template <Form F>
  static constexpr Layout layout_of() {
    if constexpr (F == Form::dense_int4) return Layout::dense_int4;
    if constexpr (F == Form::pairs_int8) return Layout::sparse24_int8;
    if constexpr (F == Form::pairs_int4) return Layout::sparse24_int4;
    return Layout::dense_int8;
  }

  template <Form F>
  static std::int32_t tile_product(const std::byte* tile, std::size_t lane, int minimum,
                                   const std::uint8_t* x) {
    constexpr Layout L = layout_of<F>();
    const std::uint32_t places = pairs_form(F) ? places_at(tile, lane) : 0;
    std::int32_t sum = 0;
    for (std::size_t slot = 0; slot < tile_slots(L); ++slot) {
      std::size_t input = slot;
      if constexpr (pairs_form(F)) input = 4 * (slot / 2) + ((places >> pair_shift(slot)) & 3u);
      sum += value_at<L>(tile, lane, slot, minimum) * static_cast<std::int8_t>(x[input]);
    }
    return sum;
  }

  template <Form F, int R, int T>
  static void block(const Part<R>& part, float* acc) {
    for (std::size_t first = 0; first < part.tile_count; first += part.block_tiles) {
      const std::size_t b = first / part.block_tiles;
      const std::size_t last = smaller(first + part.block_tiles, part.tile_count);
      for (int r = 0; r < R; ++r) {
        for (std::size_t lane = 0; lane < tile_rows; ++lane) {
          const std::byte* minima = part.minima[r] ? part.minima[r] + 16 * b : nullptr;
          std::uint16_t half;
          __builtin_memcpy(&half, part.scales[r] + scale_place(b) + 2 * lane, sizeof half);
          for (int t = 0; t < T; ++t) {
            std::int32_t sum = 0;
            for (std::size_t tile = first; tile < last; ++tile) {
              sum += tile_product<F>(part.tiles[r] + tile * form_tile_bytes(F), lane,
                                     minimum_at(minima, lane),
                                     part.x + (tile * T + static_cast<std::size_t>(t)) * 32);
            }
            const float scale = half_to_float(half) * part.x_scales[b * T + t];
            float* out = acc + static_cast<std::size_t>(r * T + t) * tile_rows + lane;
            *out = *out + static_cast<float>(sum) * scale;
          }
        }
      }
    }
  }

  static constexpr KernelNames names = {"dense-int8-scalar",    "dense-int4-scalar",
                                        "sparse24-int8-scalar", "sparse24-int4-scalar",
                                        "bitmap32-int8-scalar", "bitmap32-int4-scalar"};
};

}  // namespace

const Kernels& portable_kernels() {
  static const Kernels table = Driver<PortableOps>::table();
  return table;
}

}  // namespace twofour::lowbit
