// Kept weights rounded to the nearest value of a grid of their block, and multiplied out again:
// maskgen/recovery/quantiser.py says which grids, and is the same function in torch, bit for bit.
#pragma once

#include "common/lanes.h"
#include "kernels.h"

namespace twofour::learning {
namespace {

inline constexpr float int4_step = 8.0f;           // values between two levels
inline constexpr float smallest_scale = 0x1p-24f;  // of fp16

using Bytes = std::int8_t __attribute__((vector_size(lanes)));

inline float round_to_fp16(float x) { return static_cast<float>(static_cast<_Float16>(x)); }

// To the nearest, even where two are: beyond 1.5 * 2^23 floats are whole numbers. For |x| < 2^22.
inline Floats round_to_whole(Floats x) { return (x + 12582912.0f) - 12582912.0f; }
inline Floats clamp(Floats x, float low, float high) {
  x = x < low ? splat(low) : x;
  return x > high ? splat(high) : x;
}

// All ones where one of `count` weights is kept.
inline Ints load_kept(const std::uint8_t* keep, int count) {
  Bytes bytes{};
  __builtin_memcpy(&bytes, keep, static_cast<std::size_t>(count));
  return __builtin_convertvector(bytes, Ints) != 0;
}

struct Range {
  float low, high;  // 0 lies between them
};

inline Range range_of(const float* weight, const std::uint8_t* keep, int block) {
  Floats low{}, high{};
  for (int i = 0; i < block; i += lanes) {
    const int count = block - i < lanes ? block - i : lanes;
    const Floats w = load_kept(keep + i, count) ? load(weight + i, count) : Floats{};
    low = w < low ? w : low;
    high = max(w, high);
  }
  Range range{0.0f, 0.0f};
  for (int lane = 0; lane < lanes; ++lane) {
    range.low = low[lane] < range.low ? low[lane] : range.low;
    range.high = high[lane] > range.high ? high[lane] : range.high;
  }
  return range;
}

struct BlockGrid {
  float scale, minimum;
};

inline BlockGrid fit(Range range, Grid grid) {
  const float largest = -range.low > range.high ? -range.low : range.high;
  float scale = largest / (grid.is_int4 ? 7.0f * int4_step : 127.0f);
  if (grid.minima) scale = (range.high - range.low) / (15.0f * int4_step);
  scale = round_to_fp16(scale > smallest_scale ? scale : smallest_scale);
  if (!grid.minima) return {scale, -8.0f * int4_step};
  return {scale, clamp(round_to_whole(splat(range.low / scale)), -127.0f, 7.0f)[0]};
}

inline Floats value_of(Floats w, BlockGrid block, Grid grid) {
  const Floats x = w / block.scale;
  if (!grid.is_int4) return clamp(round_to_whole(x), -127.0f, 127.0f) * block.scale;
  const Floats level = clamp(round_to_whole((x - block.minimum) / int4_step), 0.0f, 15.0f);
  return (level * int4_step + block.minimum) * block.scale;
}

inline void fake_quantise_row(const float* weight, const std::uint8_t* keep, std::int64_t columns,
                              Grid grid, float* out) {
  for (std::int64_t at = 0; at < columns; at += grid.block) {
    const std::int64_t left = columns - at;
    const int block = left < grid.block ? static_cast<int>(left) : grid.block;
    const BlockGrid fitted = fit(range_of(weight + at, keep + at, block), grid);
    for (int i = 0; i < block; i += lanes) {
      const int count = block - i < lanes ? block - i : lanes;
      const Floats value = value_of(load(weight + at + i, count), fitted, grid);
      store(out + at + i, load_kept(keep + at + i, count) ? value : Floats{}, count);
    }
  }
}

}  // namespace
}  // namespace twofour::learning
