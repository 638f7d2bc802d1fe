/* Working memory that outlives a call, one block for each calling thread and module: taking it fresh from the system
 * every time would cost page faults that show. It grows to the largest need and is given back when the process ends. */
#ifndef LORAFAST_SCRATCH_H
#define LORAFAST_SCRATCH_H

#include <stdlib.h>

static __thread void *scratch_block;
static __thread size_t scratch_size;

/* At least `bytes` bytes, aligned to 64; NULL when the system has no more. Contents are undefined. */
static void *scratch_get(size_t bytes) {
    if (bytes > scratch_size) {
        free(scratch_block);
        scratch_size = 0;
        if (posix_memalign(&scratch_block, 64, (bytes + 4095) / 4096 * 4096)) return scratch_block = NULL;
        scratch_size = (bytes + 4095) / 4096 * 4096;
    }
    return scratch_block;
}

#endif
