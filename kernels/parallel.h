/* The one place that decides whether an op is worth its threads. */
#ifndef LORAFAST_PARALLEL_H
#define LORAFAST_PARALLEL_H

#include <stddef.h>

/* Entering and leaving a parallel region costs 1 to 5 microseconds with waiting threads, and more when another program
 * has their core. One core reads or writes 32768 floats in about 10. */
#ifndef PARALLEL_MIN_WORK
#define PARALLEL_MIN_WORK 32768
#endif

/* work: float32 values that the op reads and writes in all. One thread or all of them, never a number between: OpenMP
 * ends the threads that a smaller team leaves over, and has to start them again. */
static inline int threads_for(ptrdiff_t work, int n_threads) {
    return n_threads > 1 && work >= PARALLEL_MIN_WORK ? n_threads : 1;
}

/* For an op that deals out rows: a single row has nothing to deal. */
static inline int threads_for_rows(ptrdiff_t rows, ptrdiff_t work_per_row, int n_threads) {
    return rows > 1 ? threads_for(rows * work_per_row, n_threads) : 1;
}

#endif
