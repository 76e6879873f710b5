#include "decoder/affinity.h"

#ifdef __linux__
#include <sched.h>
#include <unistd.h>

#include <cstdlib>
#include <initializer_list>
#endif

namespace twofour {

#ifdef __linux__

namespace {

bool bound_by_environment() {
  for (const char* name : {"OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY"}) {
    if (std::getenv(name) != nullptr) return true;
  }
  return false;
}

// The processors of the process: asked for once, before any of its threads is bound here.
const cpu_set_t& allowed_processors() {
  static const cpu_set_t allowed = [] {
    cpu_set_t set;
    CPU_ZERO(&set);
    sched_getaffinity(0, sizeof(set), &set);
    return set;
  }();
  return allowed;
}

}  // namespace

void bind_thread(int thread, int threads) {
  thread_local int bound_as = -1;
  if (bound_as == thread) return;
  static const bool leave_alone = bound_by_environment();
  const cpu_set_t& allowed = allowed_processors();
  if (leave_alone || threads < 2 || CPU_COUNT(&allowed) != threads) return;
  if (gettid() == getpid()) return;
  int seen = 0;
  for (int processor = 0; processor < CPU_SETSIZE; ++processor) {
    if (!CPU_ISSET(processor, &allowed) || seen++ != thread) continue;
    cpu_set_t own;
    CPU_ZERO(&own);
    CPU_SET(processor, &own);
    if (sched_setaffinity(0, sizeof(own), &own) == 0) bound_as = thread;
    return;
  }
}

#else

void bind_thread(int, int) {}

#endif

}  // namespace twofour
