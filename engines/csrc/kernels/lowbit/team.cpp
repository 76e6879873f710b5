#include "kernels/lowbit/team.h"

#include "kernels/region.h"

namespace twofour::lowbit {
namespace {

// Prepares, waits for all, then runs `body(prepared, row blocks of this thread)`.
template <class Body>
void with_prepared(const Kernels& kernels, const Input& x, const Weights& w, int threads,
                   Body body) {
  void* prepared = workspace(kernels.prepared_bytes(x.tokens, w.k, w.block));
#pragma omp parallel num_threads(team_size(threads))
  {
    const Range tokens = thread_share(x.tokens);
    if (x.is_bf16) {
      kernels.prepare_bf16(static_cast<const std::uint16_t*>(x.data), x.stride, x.tokens, w.k,
                           w.block, prepared, tokens.begin, tokens.end);
    } else {
      kernels.prepare_f32(static_cast<const float*>(x.data), x.stride, x.tokens, w.k, w.block,
                          prepared, tokens.begin, tokens.end);
    }
#pragma omp barrier
    const Range rows = thread_share(row_blocks(w.n));
    if (rows.begin < rows.end) body(prepared, rows);
  }
}

template <class Body>
Finding first_finding(std::size_t n, int threads, Body body) {
  Finding first;
  over_blocks(n, threads, [&](Range rows) {
    const Finding found = body(rows);
    if (found.fault != Fault::none) {
#pragma omp critical(twofour_lowbit_finding)
      first = found;
    }
  });
  return first;
}

}  // namespace

void linear_team(const Kernels& kernels, const Weights& w, const Input& x, const Output& y,
                 int threads) {
  with_prepared(kernels, x, w, threads, [&](const void* prepared, Range rows) {
    kernels.linear(w, prepared, x.tokens, y, rows.begin, rows.end);
  });
}

void gated_team(const Kernels& kernels, const Weights& gate, const Weights& up, const Input& x,
                const Output& y, int threads) {
  with_prepared(kernels, x, gate, threads, [&](const void* prepared, Range rows) {
    kernels.gated(gate, up, prepared, x.tokens, y, rows.begin, rows.end);
  });
}

Finding pack_team(const Weights& w, const Source& from, std::byte* packed, int threads) {
  return first_finding(w.n, threads,
                       [&](Range r) { return lowbit::pack(w, from, packed, r.begin, r.end); });
}

void unpack_team(const Weights& w, const Target& to, int threads) {
  over_blocks(w.n, threads, [&](Range r) { lowbit::unpack(w, to, r.begin, r.end); });
}

Finding check_team(const Weights& w, int threads) {
  return first_finding(w.n, threads, [&](Range r) { return lowbit::check(w, r.begin, r.end); });
}

}  // namespace twofour::lowbit
