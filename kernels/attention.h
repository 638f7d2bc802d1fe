/* Causal grouped-query attention over packed sequences, without a T x T matrix; see attention.pyx for the equations.
 *
 * The query heads of a group read the same keys and values, so the (query, head) pairs of a group are numbered through
 * as *rows*: row = query * group + head of the group. Work is cut into tiles of up to ROW_TILE rows by KEY_TILE keys.
 * Tiles of scores are held transposed, keys down and rows along the vector lanes:
 *
 *     S^T (keys x rows)  = K . Q^T       softmax runs down the columns: no sums or maxima across the lanes of a vector
 *     O   (rows x Dv)   += P . V         P is read by broadcast, and a broadcast doesn't mind which way P lies
 *
 * So of the operands only Q (in backward also dO) has to be transposed, once for all the keys it meets.
 */
#ifndef LORAFAST_ATTENTION_H
#define LORAFAST_ATTENTION_H

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <string.h>

#include "prefetch.h"
#include "simd.h"

#define ROW_TILE 96                     /* multiples of the register blocks of attention_tile.h: STRIP rows (6 or 12) */
#define KEY_TILE 96                     /* and PANEL columns (8, 16 or 32) */
#define ROW_BLOCK (4 * ROW_TILE)        /* rows of a forward work item: four tiles use a key tile while it is cached */
#define PADDED(n) (((n) + 15) / 16 * 16)        /* values in a row of scratch: whole vectors, whole cache lines */
#define ROUND_UP(n, m) (((n) + (m) - 1) / (m) * (m))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

typedef struct {
    const float *q, *k, *v;             /* (T, H D), (S, HKV D), (S, HKV Dv) */
    float *o_out, *lse_out;             /* (T, H Dv), (T, H): outputs of forward */
    const float *o, *lse, *d_o;         /* the same as inputs of backward, and the gradient of o */
    float *dq, *dk, *dv;                /* like q, k, v: added to by the work items of backward */
    float *delta;                       /* (T, H): sum_d do o, scratch of backward */
    const float *sinks;                 /* (H,): a logit of each head that takes probability and adds no value; or NULL */
    const int *q_begin, *k_begin;       /* (n_seq + 1,): rows of q and of k that belong to a sequence */
    int n_head, n_head_kv, group;       /* H, HKV, H / HKV */
    int head_size, value_size;          /* D, Dv */
    int window;                         /* a query sees so many keys, its own the last; INT_MAX: all up to its own */
    int block;                          /* queries, and keys, of a backward work item: a multiple of KEY_TILE */
    float scale;
    float soft_cap;                     /* c: scores s become c tanh(s / c); 0: they stay */
} attention;

/* Floats of scratch for each thread. */
static inline ptrdiff_t attention_forward_scratch(const attention *a) {
    const ptrdiff_t widths = PADDED(a->head_size) + PADDED(a->value_size);
    return (ROW_BLOCK + KEY_TILE) * widths + KEY_TILE * ROW_TILE + PADDED(2 * a->n_head);
}
static inline ptrdiff_t attention_backward_scratch(const attention *a) {
    const ptrdiff_t d = PADDED(a->head_size), dv = PADDED(a->value_size);
    return 2 * a->block * (d + dv) + ROW_TILE * (3 * d + 2 * dv) + 2 * KEY_TILE * ROW_TILE;
}

static inline int attention_n_queries(const attention *a, int seq) { return a->q_begin[seq + 1] - a->q_begin[seq]; }
static inline int attention_n_keys(const attention *a, int seq) { return a->k_begin[seq + 1] - a->k_begin[seq]; }

/* Where a row is among all (token, head) pairs: its q starts at a->q + index * head_size. Likewise a key. */
static inline ptrdiff_t attention_row(const attention *a, int seq, int head_kv, int row) {
    return (ptrdiff_t)(a->q_begin[seq] + row / a->group) * a->n_head + head_kv * a->group + row % a->group;
}
static inline ptrdiff_t attention_key(const attention *a, int seq, int head_kv, int key) {
    return (ptrdiff_t)(a->k_begin[seq] + key) * a->n_head_kv + head_kv;
}

#define SIMD_BODY "attention_body.h"
#include "simd_foreach.h"

/* The work items of attention_body.h. */
typedef void (*attention_rows)(const attention *a, int seq, int head_kv, int row, int n_rows, float *scratch);
typedef void (*attention_query)(const attention *a, int seq, int head, int head_end, float *scratch);
typedef void (*attention_token)(const attention *a, ptrdiff_t token);
typedef void (*attention_block)(const attention *a, int seq, int head_kv, int query, int key, float *scratch);

#endif
