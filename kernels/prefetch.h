/* Fetching rows that lie far apart, where the processor's own prefetching does not follow. */
#ifndef LORAFAST_PREFETCH_H
#define LORAFAST_PREFETCH_H

#include <stddef.h>
#include <stdint.h>

/* Part `part` of `parts` of fetching `bytes` of each of n_rows rows into the second-level cache: what comes next, while
 * this is computed with. Few lines can be on their way at a time, so the work is spread. */
static inline __attribute__((always_inline)) void prefetch_rows(const void *rows, ptrdiff_t row_bytes, int n_rows,
                                                                int bytes, int part, int parts) {
    for (int i = n_rows * part / parts; i < n_rows * (part + 1) / parts; i++) {
        const uint8_t *row = (const uint8_t *)rows + i * row_bytes;
        for (int b = 0; b < bytes; b += 64) __builtin_prefetch(row + b, 0, 2);
        if (bytes % 64) __builtin_prefetch(row + bytes - 1, 0, 2);
    }
}

#endif
