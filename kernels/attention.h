/* Causal grouped-query attention over packed sequences, without a T x T matrix; see attention.pyx for the equations.
 *
 * All query heads of a group read the same keys and values, so the (query, head) pairs of a group are numbered through as *rows*:
 * row = query * group + head. Work is cut into tiles of up to ROW_TILE rows by KEY_TILE keys. Score tiles are held transposed,
 * keys down and rows along the vector lanes:
 *
 *     S^T (keys x rows)  = K Q^T        softmax runs down the columns: no sums or maxima across the lanes of a vector
 *     O   (rows x D)    += P V          P is read by broadcast, and a broadcast doesn't mind which way P lies
 */
#ifndef LORAFAST_ATTENTION_H
#define LORAFAST_ATTENTION_H

#include <float.h>
#include <math.h>
#include <string.h>

#include "simd.h"

#ifndef ROW_TILE
#define ROW_TILE 96             /* tiles are multiples of every register block: STRIP rows (6 or 12), PANEL columns (8, 16 or 32) */
#define KEY_TILE 96
#endif
#ifndef ROW_BLOCK
#define ROW_BLOCK (4 * ROW_TILE)        /* rows of a forward work item: so many tiles use a key tile once it is in cache */
#endif
#define PADDED(n) (((n) + 15) & ~15L)

typedef struct {
    const float *q, *k, *v;             /* (T, H D), (S, HKV D), (S, HKV Dv) */
    const float *o, *lse, *d_o;         /* (T, H Dv), (T, H), (T, H Dv): inputs of backward */
    float *delta;                       /* (T, H): sum_d do o, scratch of backward */
    float *o_out, *lse_out;             /* outputs of forward */
    float *dq, *dk, *dv;                /* added to by backward */
    const int *q_begin, *k_begin;       /* (n_seq + 1,) */
    long n_head, n_head_kv, group;      /* H, HKV, H / HKV */
    long head_size, value_size;         /* D, Dv */
    int block;                          /* queries and keys of a backward work item: a multiple of KEY_TILE */
    int window;                         /* a query sees this many keys, itself included; INT_MAX: all before it */
    float scale;
} attention;

static inline long attention_forward_scratch(const attention *a) {
    const long d = PADDED(a->head_size), dv = PADDED(a->value_size);
    return (ROW_BLOCK + KEY_TILE) * (d + dv) + KEY_TILE * ROW_TILE + 16;
}

static inline long attention_backward_scratch(const attention *a) {
    const long d = PADDED(a->head_size), dv = PADDED(a->value_size);
    return 2 * a->block * (d + dv) + ROW_TILE * (3 * d + 2 * dv) + 2 * KEY_TILE * ROW_TILE + 16;
}

/* The index, among all (token, head) pairs, of a row of this sequence and kv head; its q starts at q + index * head_size. */
static inline long attention_row(const attention *a, int seq, int head_kv, int row) {
    return (a->q_begin[seq] + row / a->group) * a->n_head + head_kv * a->group + row % a->group;
}

/* The work items of attention_body.h. */
typedef void (*attention_rows)(const attention *a, int seq, int head_kv, int row, int n_rows, float *scratch);
typedef void (*attention_token)(const attention *a, long token);
typedef void (*attention_block)(const attention *a, int seq, int head_kv, int query, int key, float *scratch);

static inline float *aligned(float *p) { return (float *)(((size_t)p + 63) & ~(size_t)63); }

#define SIMD_BODY "attention_body.h"
#include "simd_foreach.h"

#endif
