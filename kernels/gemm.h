/* The vocabulary that the matrix-product cores share.
 *
 * Forward   y  (T, N)  = x (T, K) . W^T      lanes run along tokens:  y^T[n][t] = sum_k W[n][k] x^T[k][t]
 * Backward  dx (T, K) += dy (T, N) . W       lanes run along columns: dx[t][k] += sum_n dy[t][n] W[n][k]
 *
 * In both, W keeps the order it has in the file: a row is unpacked once into cache, as it lies, and used for all
 * tokens. What has to be transposed is x, once for all rows of W (and for all projections that share x), and the
 * finished tiles of y.
 *
 * A core (gemm_f32_body.h, gemm_i16_body.h, gemm_amx.h; gemv_body.h for forward alone) is a table of functions: pack x,
 * compute a panel of rows of W (columns of y), pack dy, and compute a slice of columns of dx. pieces.h cuts products
 * into such panels and slices, and linear.pyx deals them out to threads. Each output element belongs to one thread, and
 * its sum runs in an order that depends on nothing but its own indices and the core's tiles, so results do not depend on
 * the number of threads. */
#ifndef LORAFAST_GEMM_H
#define LORAFAST_GEMM_H

#include <stddef.h>
#include <stdint.h>

#include "prefetch.h"

/* One matrix W of those that share an input, with its rank-R update: y += c . v (forward, c = s x A^T and v = B) or
 * dx += c . v (backward, c = s dy B^T and v = A). */
typedef struct gemm_core gemm_core;
typedef struct {
    const gemm_core *core;  /* what computes it */
    const float *packed;    /* forward: x as the core packs it */
    const uint8_t *weight;  /* (N, row_bytes), GGML blocks */
    ptrdiff_t row_bytes;
    int type;               /* ggml type id */
    int N;
    int first_row;          /* of these N in the matrix that they are a piece of */
    float *y;               /* forward: (T, N), overwritten */
    const float *residual;  /* forward: (T, N) added to y, or NULL */
    const float *dy;        /* backward: (T, N) */
    int R;                  /* 0: no update */
    const float *c;         /* (T, R) */
    const float *v;         /* (R, N) forward, (R, K) backward */
} projection;

/* Tokens come in tiles of token_tile, of which a call packs one; rows of W in panels of at most panel_rows, a multiple
 * of panel_unit but for the last; columns of W in slices of at most slice_columns, a multiple of every block size. */
struct gemm_core {
    const char *arithmetic;     /* for people: what products are made of */
    int token_tile, panel_rows, panel_unit, slice_columns;

    /* In floats: packed x, packed n columns of dy, and what a thread works in; the last two in whole cache lines. */
    ptrdiff_t (*packed_x)(int T, int K);
    ptrdiff_t (*packed_dy)(int T, int n);       /* NULL as pack_dy is, where dy is read as it lies */
    ptrdiff_t (*forward_scratch)(int T);
    ptrdiff_t (*backward_scratch)(int T);

    /* y[0 .. T][n0 .. n0+n_rows] from packed x, with residual and rank-R update. */
    void (*pack_x)(float *packed, const float *x, int T, int K, int tile);
    void (*forward_panel)(const projection *p, const float *packed, int T, int K, int n0, int n_rows, float *scratch);

    /* dx[t0 .. t1][k0 .. k0+n_columns] += dy[.][n0 .. n0+n] . W, without the rank-R update, from these columns of dy,
     * packed for all T tokens (all_T). */
    void (*pack_dy)(float *packed, const float *dy, int T, int N, int n0, int n, int tile);
    void (*backward_slice)(float *dx, int K, const projection *p, const float *packed, int all_T, int n0, int n,
                           int k0, int n_columns, int t0, int t1, float *scratch);
};

#define ROUND_UP(n, m) (((n) + (m) - 1) / (m) * (m))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

#endif
