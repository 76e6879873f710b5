#include "kernels/team.h"

#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

#include "kernels/region.h"

namespace twofour {

Range share(std::size_t blocks, std::size_t index, std::size_t count) {
  // Shares are even numbers of blocks, because kernels take two at a time.
  const std::size_t pairs = (blocks + 1) / 2;
  const auto bound = [&](std::size_t i) {
    const std::size_t at = 2 * (pairs * i / count);
    return at < blocks ? at : blocks;
  };
  return {bound(index), bound(index + 1)};
}

namespace {

struct Free {
  void operator()(void* pointer) const { std::free(pointer); }
};

}  // namespace

void* workspace(std::size_t bytes) {
  thread_local std::unique_ptr<void, Free> buffer;
  thread_local std::size_t capacity = 0;
  if (bytes > capacity) {
    const std::size_t rounded = (bytes + 4095) / 4096 * 4096;
    buffer.reset(std::aligned_alloc(4096, rounded));
    capacity = buffer ? rounded : 0;
    if (!buffer) throw std::bad_alloc();
  }
  return buffer.get();
}

namespace {

void prepare(const Kernels& kernels, const Input& x, std::size_t k, void* to, Range tokens) {
  if (x.is_bf16) {
    kernels.prepare_bf16(static_cast<const std::uint16_t*>(x.data), x.stride, x.tokens, k, to,
                         tokens.begin, tokens.end);
  } else {
    kernels.prepare_f32(static_cast<const float*>(x.data), x.stride, x.tokens, k, to, tokens.begin,
                        tokens.end);
  }
}

// Prepares, waits for all, then runs `body(prepared, row blocks of this thread)`.
template <class Body>
void with_prepared(const Kernels& kernels, const Input& x, std::size_t n, std::size_t k,
                   int threads, Body body) {
  void* prepared = workspace(kernels.prepared_bytes(x.tokens, k));
#pragma omp parallel num_threads(team_size(threads))
  {
    prepare(kernels, x, k, prepared, thread_share(x.tokens));
#pragma omp barrier
    const Range rows = thread_share(row_blocks(n));
    if (rows.begin < rows.end) body(prepared, rows);
  }
}

}  // namespace

void linear_team(const Kernels& kernels, const Weights& w, const Input& x, const Output& y,
                 int threads) {
  with_prepared(kernels, x, w.n, w.k, threads, [&](const void* prepared, Range rows) {
    kernels.linear(w, prepared, x.tokens, y, rows.begin, rows.end);
  });
}

void gated_team(const Kernels& kernels, const Weights& gate, const Weights& up, const Input& x,
                const Output& y, int threads) {
  with_prepared(kernels, x, gate.n, gate.k, threads, [&](const void* prepared, Range rows) {
    kernels.gated(gate, up, prepared, x.tokens, y, rows.begin, rows.end);
  });
}

void patch_add_team(const Kernels& kernels, const Patch& patch, const Input& x,
                    const std::uint32_t* which, std::size_t count, float* y, std::size_t stride,
                    int threads) {
  with_prepared(kernels, x, patch.n, patch.k, threads, [&](const void* prepared, Range rows) {
    kernels.patch_add(patch, prepared, x.tokens, which, count, y, stride, rows.begin, rows.end);
  });
}

std::uint64_t read_team(const Kernels& kernels, const std::byte* data, std::size_t bytes,
                        int threads) {
  std::uint64_t sum = 0;
  const std::size_t lines = bytes / 4096;
#pragma omp parallel num_threads(team_size(threads)) reduction(^ : sum)
  {
    const Range part = thread_share(lines);
    sum ^= kernels.read(data + part.begin * 4096, (part.end - part.begin) * 4096);
  }
  return sum;
}

bool pack_sparse_team(const std::uint16_t* dense, std::size_t stride, const std::uint8_t* codes,
                      std::size_t n, std::size_t k, std::byte* packed, int threads) {
  bool good = true;
#pragma omp parallel num_threads(team_size(threads)) reduction(&& : good)
  {
    const Range rows = thread_share(row_blocks(n));
    if (rows.begin < rows.end) {
      good = pack_sparse(dense, stride, codes, n, k, packed, rows.begin, rows.end);
    }
  }
  return good;
}

void pack_dense_team(const std::uint16_t* dense, std::size_t stride, std::size_t n, std::size_t k,
                     std::byte* packed, int threads) {
  over_blocks(n, threads,
              [&](Range r) { pack_dense(dense, stride, n, k, packed, r.begin, r.end); });
}

void unpack_team(const Weights& packed, std::uint16_t* dense, std::size_t stride,
                 std::uint8_t* codes, int threads) {
  over_blocks(packed.n, threads,
              [&](Range r) { unpack(packed, dense, stride, codes, r.begin, r.end); });
}

Finding check_team(const Weights& packed, int threads) {
  Finding first{Fault::none, 0, 0, 0};
  over_blocks(packed.n, threads, [&](Range r) {
    const Finding found = check(packed, r.begin, r.end);
    if (found.fault != Fault::none) {
#pragma omp critical(twofour_check)
      first = found;
    }
  });
  return first;
}

bool patch_apply_team(const Patch& patch, std::byte* packed, bool revert, int threads) {
  std::atomic<bool> fits = true;
#pragma omp parallel num_threads(team_size(threads))
  {
    const Range rows = thread_share(row_blocks(patch.n));
    if (!patch_fits(patch, packed, revert, rows.begin, rows.end)) fits = false;
#pragma omp barrier
    if (fits) patch_apply(patch, packed, revert, rows.begin, rows.end);
  }
  return fits;
}

}  // namespace twofour
