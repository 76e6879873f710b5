#include "decoder/lowbit_patch.h"

#include <atomic>
#include <bit>

#include "kernels/lowbit/activations.h"
#include "kernels/numeric.h"
#include "kernels/region.h"

namespace twofour {

namespace {

using lowbit::Places;

float scale_of(const Weights& w, const std::byte* rows, std::size_t lane, std::size_t input) {
  std::uint16_t scale;
  __builtin_memcpy(&scale, rows + lowbit::scale_place(input / w.block) + 2 * lane, sizeof scale);
  return lowbit::half_to_float(scale);
}

// One row of one tile, taken apart.
class TileRow {
 public:
  TileRow(const Weights& w, std::byte* rows, std::size_t lane, std::size_t tile)
      : w_(w),
        lane_(lane),
        base_(rows + lowbit::header_bytes(w.k, w.block, w.minima) +
              tile * lowbit::tile_bytes(w.layout)) {
    const std::size_t b = tile * tile_inputs / w.block;
    minimum_ = w.minima
                   ? static_cast<std::int8_t>(
                         rows[lowbit::minimum_place(lowbit::block_count(w.k, w.block), b) + lane])
                   : lowbit::symmetric_minimum;
    std::uint32_t places;
    __builtin_memcpy(&places, base_ + 4 * lane, sizeof places);
    bits_ = pairs() ? lowbit::kept_of_pairs(places).bits : places;
    std::size_t slot = 0;
    for (std::uint32_t rest = bits_; rest != 0; rest &= rest - 1) {
      if (slot == lowbit::tile_slots(w.layout)) break;  // malformed: `valid` says so
      values_[std::countr_zero(rest)] = read(slot++);
    }
  }

  bool valid() const {
    return pairs()
               ? lowbit::groups_kept_twice(bits_)
               : static_cast<std::size_t>(std::popcount(bits_)) == lowbit::tile_slots(w_.layout);
  }

  // Whether the input was dropped, and its value is one that the block can hold.
  bool add(std::size_t input, int value) {
    if (bits_ >> input & 1u) return false;
    bits_ |= 1u << input;
    values_[input] = value;
    if (!lowbit::is_int4(w_.layout)) return true;
    const int level = (value - minimum_) / lowbit::level_step;
    return value >= minimum_ && level < 16 && lowbit::level_step * level + minimum_ == value;
  }

  // Whether the input was kept with this value.
  bool remove(std::size_t input, int value) {
    if (!(bits_ >> input & 1u) || values_[input] != value) return false;
    bits_ &= ~(1u << input);
    return true;
  }

  void write() const {
    const std::uint32_t places = pairs() ? lowbit::pairs_of_kept(bits_) : bits_;
    __builtin_memcpy(base_ + 4 * lane_, &places, sizeof places);
    std::size_t slot = 0;
    for (std::uint32_t rest = bits_; rest != 0; rest &= rest - 1) {
      store(slot++, values_[std::countr_zero(rest)]);
    }
  }

 private:
  bool pairs() const { return lowbit::places_of(w_.layout) == Places::pairs; }

  int read(std::size_t slot) const {
    const lowbit::ValuePlace at = lowbit::value_place(w_.layout, lane_, slot);
    if (!lowbit::is_int4(w_.layout)) return static_cast<std::int8_t>(base_[at.byte]);
    const auto level = std::to_integer<unsigned>(base_[at.byte]) >> at.shift & 15u;
    return lowbit::level_step * static_cast<int>(level) + minimum_;
  }

  void store(std::size_t slot, int value) const {
    const lowbit::ValuePlace at = lowbit::value_place(w_.layout, lane_, slot);
    if (!lowbit::is_int4(w_.layout)) {
      base_[at.byte] = static_cast<std::byte>(value);
      return;
    }
    const auto level = static_cast<unsigned>((value - minimum_) / lowbit::level_step);
    const auto other = std::to_integer<unsigned>(base_[at.byte]) & (0xf0u >> at.shift);
    base_[at.byte] = static_cast<std::byte>(other | level << at.shift);
  }

  const Weights& w_;
  std::size_t lane_;
  std::byte* base_;
  int minimum_ = 0;
  std::uint32_t bits_ = 0;
  int values_[tile_inputs] = {};
};

// Changes one row, or only tries whether it could.
bool change_row(const LowbitPatch& patch, const Weights& w, std::byte* packed, std::size_t row,
                bool revert, bool write) {
  std::byte* rows =
      packed + row / tile_rows * lowbit::row_block_bytes(w.layout, w.k, w.block, w.minima);
  const std::uint32_t last = patch.row_start[row + 1];
  for (std::uint32_t e = patch.row_start[row]; e < last;) {
    const std::size_t tile = (patch.place[e] & ~patch_removes) / tile_inputs;
    TileRow part(w, rows, row % tile_rows, tile);
    bool fits = part.valid();
    for (; e < last && (patch.place[e] & ~patch_removes) / tile_inputs == tile; ++e) {
      const std::size_t input = (patch.place[e] & ~patch_removes) % tile_inputs;
      const bool removes = ((patch.place[e] & patch_removes) != 0) != revert;
      fits &= removes ? part.remove(input, patch.value[e]) : part.add(input, patch.value[e]);
    }
    if (!fits || !part.valid()) return false;
    if (write) part.write();
  }
  return true;
}

}  // namespace

void quantise_row(const float* x, std::size_t k, std::size_t block, std::int8_t* values,
                  float* scales) {
  for (std::size_t start = 0, b = 0; start < k; start += block, ++b) {
    const std::size_t count = smaller(block, k - start);
    std::uint32_t largest = 0;
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t bits = as_bits(x[start + i]) & 0x7fffffffu;
      largest = bits > largest ? bits : largest;
    }
    const lowbit::ActivationScale s = lowbit::activation_scale(largest);
    scales[b] = s.scale;
    for (std::size_t i = 0; i < count; ++i) {
      values[start + i] = static_cast<std::int8_t>(
          s.inverse == 0.0f ? 0 : lowbit::rounded(x[start + i] * s.inverse));
    }
  }
}

void add_patch(const LowbitPatch& patch, const Weights& base, const QuantisedInputs& x,
               const std::uint32_t* which, std::size_t count, float* y, std::size_t stride,
               std::size_t begin, std::size_t end) {
  const std::size_t blocks = lowbit::block_count(patch.k, base.block);
  const std::size_t bytes = lowbit::row_block_bytes(base.layout, base.k, base.block, base.minima);
  for (std::size_t row = begin * tile_rows; row < smaller(end * tile_rows, patch.n); ++row) {
    const std::uint32_t first = patch.row_start[row], last = patch.row_start[row + 1];
    if (first == last) continue;
    const std::byte* rows = base.data + row / tile_rows * bytes;
    for (std::size_t c = 0; c < count; ++c) {
      const std::int8_t* a = x.values + which[c] * patch.k;
      const float* scales = x.scales + which[c] * blocks;
      float sum = y[which[c] * stride + row];
      for (std::uint32_t e = first; e < last;) {
        const std::size_t b = (patch.place[e] & ~patch_removes) / base.block;
        const std::size_t stop = (b + 1) * base.block;
        std::int32_t part = 0;
        for (; e < last && (patch.place[e] & ~patch_removes) < stop; ++e) {
          const std::int32_t product =
              std::int32_t{patch.value[e]} * a[patch.place[e] & ~patch_removes];
          part += patch.place[e] & patch_removes ? -product : product;
        }
        const float scale = scale_of(base, rows, row % tile_rows, b * base.block) * scales[b];
        sum = sum + static_cast<float>(part) * scale;
      }
      y[which[c] * stride + row] = sum;
    }
  }
}

bool apply_patch(const LowbitPatch& patch, const Weights& w, std::byte* packed, bool revert,
                 int threads) {
  std::atomic<bool> fits{true};
  for (const bool write : {false, true}) {
    // By row blocks: rows of one may share bytes.
    over_blocks(patch.n, threads, [&](Range blocks) {
      const std::size_t end = smaller(blocks.end * tile_rows, patch.n);
      for (std::size_t row = blocks.begin * tile_rows; row < end; ++row) {
        if (!change_row(patch, w, packed, row, revert, write)) fits = false;
      }
    });
    if (!fits) return false;
  }
  return true;
}

}  // namespace twofour
