// What the forms that open an OpenMP region share.
#pragma once

#include <omp.h>

#include "kernels/kernels.h"

namespace twofour {

inline int team_size(int threads) { return threads > 0 ? threads : omp_get_max_threads(); }

// A buffer of the calling thread, aligned to 4096, which only grows: fresh memory costs a page
// fault per 4 KiB, more than a small product itself. Throws std::bad_alloc.
void* workspace(std::size_t bytes);

// This thread's part, inside a region.
inline Range thread_share(std::size_t blocks) {
  return share(blocks, static_cast<std::size_t>(omp_get_thread_num()),
               static_cast<std::size_t>(omp_get_num_threads()));
}

// Opens a region and runs body(row blocks of this thread).
template <class Body>
void over_blocks(std::size_t n, int threads, Body body) {
#pragma omp parallel num_threads(team_size(threads))
  {
    const Range rows = thread_share(row_blocks(n));
    if (rows.begin < rows.end) body(rows);
  }
}

}  // namespace twofour
