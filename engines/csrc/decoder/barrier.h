// A barrier for the threads of one parallel region. It spins for as long as a balanced phase needs,
// and then sleeps: on a machine with other work, spinning keeps the thread that is waited for from
// running.
#pragma once

#include <atomic>
#include <cstdint>

#ifdef TWOFOUR_X86
#include <immintrin.h>
#endif

namespace twofour {

class Barrier {
 public:
  explicit Barrier(std::uint32_t threads) : threads_(threads) {}

  void wait() {
    const std::uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      // Either this thread sees the sleeper's count, or the sleeper sees the new phase and does not
      // sleep: both write one of the two and then read the other, in one total order. So the system
      // call to wake is made only where somebody sleeps.
      phase_.store(phase + 1, std::memory_order_seq_cst);
      if (sleepers_.load(std::memory_order_seq_cst) > 0) phase_.notify_all();
      return;
    }
    for (int spin = 0; spin < spins; ++spin) {
      if (phase_.load(std::memory_order_acquire) != phase) return;
      relax();
    }
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    phase_.wait(phase, std::memory_order_seq_cst);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
  }

 private:
  static constexpr int spins = 3000;  // some tens of microseconds

  static void relax() {
#ifdef TWOFOUR_X86
    _mm_pause();
#endif
  }

  // On cache lines of their own: the waiting threads read one while the others arrive at the other.
  alignas(64) std::atomic<std::uint32_t> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> phase_{0};
  alignas(64) std::atomic<std::uint32_t> sleepers_{0};
  std::uint32_t threads_;
};

}  // namespace twofour
