// Binds the threads of a team to processors of their own, where that can only help.
#pragma once

namespace twofour {

// Called by every thread of a parallel region. When the team has as many threads as this process
// may use processors, thread i is bound to the i-th of them, once. Otherwise nothing happens: on a
// part of the machine the scheduler knows better than we do which processors are free. An OpenMP
// binding from the environment (OMP_PROC_BIND, OMP_PLACES, GOMP_CPU_AFFINITY) is left alone.
//
// The process's main thread is never bound: every thread that it starts later would inherit that.
//
// Unbound, two threads that sleep at barriers can end up on one processor and take turns there,
// each of them never running long enough for the scheduler to move it: a step then takes two to
// three times as long.
void bind_thread(int thread, int threads);

}  // namespace twofour
