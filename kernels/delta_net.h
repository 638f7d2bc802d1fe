/* The gated delta rule; see delta_net.pyx for the equations and kernels/README.md for the conventions. */
#ifndef LORAFAST_DELTA_NET_H
#define LORAFAST_DELTA_NET_H

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "simd.h"

#define DELTA_CHUNK 64           /* rows that are worked on as matrices; between chunks stands a state */
#define DELTA_BLOCK 16           /* rows of triangular matrices that are taken together; columns are padded to as many */
#define DELTA_LD_N 80            /* floats from row to row of a (chunk, chunk) matrix */

typedef struct {
    const float *q, *k, *v, *g, *beta, *d_o;
    float *o, *state, *dq, *dk, *dv, *dg, *dbeta;
    const int *begin;
    int n_head_k, n_head_v, D, DV;
} delta_net;

/* Forward of a head of values, or backward of a head of keys, of one sequence. */
typedef void (*delta_head)(const delta_net *a, int sequence, int head, float *scratch);

/* Floats from row to row of a matrix: whole cache lines, an odd number of them, so that a column's values fall on all
 * sets of the cache. */
static inline ptrdiff_t delta_ld(int columns) {
    const ptrdiff_t lines = (columns + 15) / 16;
    return 16 * (lines | 1);
}
static inline int delta_padded(int columns) { return (columns + 15) / 16 * 16; }
static inline int delta_chunks(int T) { return (T + DELTA_CHUNK - 1) / DELTA_CHUNK; }

/* Floats of a state, and of the scratch that one thread needs. longest: rows of the longest sequence */
static inline ptrdiff_t delta_state_size(const delta_net *a) { return a->D * delta_ld(a->DV); }
static inline ptrdiff_t delta_forward_scratch(const delta_net *a) {
    return DELTA_CHUNK * (2 * delta_ld(a->D) + 3 * delta_ld(a->DV) + 3 * DELTA_LD_N) + delta_padded(a->D) * DELTA_LD_N
           + delta_state_size(a);
}
static inline ptrdiff_t delta_backward_scratch(const delta_net *a, int longest) {
    const ptrdiff_t n_chunks = delta_chunks(longest), ld_k = delta_ld(a->D), ld_v = delta_ld(a->DV);
    return DELTA_CHUNK * (5 * ld_k + 4 * ld_v + 5 * DELTA_LD_N) + (delta_padded(a->D) + delta_padded(a->DV)) * DELTA_LD_N
           + 2 * delta_padded(a->DV) * ld_k + delta_state_size(a) * (n_chunks + 1) + n_chunks * DELTA_CHUNK * ld_v;
}

#define SIMD_BODY "delta_net_body.h"
#include "simd_foreach.h"

#endif
