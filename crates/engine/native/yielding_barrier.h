/* Included before every C file of llama.cpp (llama.cmake says how).
 *
 * Without OpenMP the workers of ggml meet at a barrier that spins on `_mm_pause` and never gives its
 * core away. As soon as another process wants one of the cores, each of the hundreds of barriers in
 * a step waits for a whole time slice: two threads then decode a hundred times slower than one.
 * So after a thousand pauses (tens of microseconds, longer than an undisturbed wait) the waiting
 * thread offers its core. Measured: nothing lost when idle, and no collapse beside a busy process.
 *
 * arm64 spins on an instruction and not on an intrinsic, so this does not reach it. */
#if !defined(__cplusplus) && defined(__x86_64__)
#include <immintrin.h>
#include <sched.h>

#define VIVARIUM_PAUSES_BEFORE_YIELD 1024u

static inline void vivarium_relax(void) {
    static __thread unsigned pauses;
    __builtin_ia32_pause();
    if (++pauses % VIVARIUM_PAUSES_BEFORE_YIELD == 0) {
        sched_yield();
    }
}

#undef _mm_pause
#define _mm_pause() vivarium_relax()
#endif
