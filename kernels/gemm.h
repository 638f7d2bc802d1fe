/* The vocabulary that the matrix-product cores share.
 *
 * Forward   y  (T, N)  = x (T, K) . W^T      lanes run along tokens:  y^T[n][t] = sum_k W[n][k] x^T[k][t]
 * Backward  dx (T, K) += dy (T, N) . W       lanes run along columns: dx[t][k] += sum_n dy[t][n] W[n][k]
 *
 * In both, W keeps the order it has in the file: a row is unpacked once into cache, as it lies, and used for all tokens. What has
 * to be transposed is x, once for all rows of W (and for all projections that share x), and the finished tiles of y.
 *
 * A core (gemm_f32_body.h, gemm_i16_body.h, gemm_amx.h) brings four functions: pack x, compute a panel of rows of y, pack dy, and
 * compute a slice of columns of dx. linear.pyx deals them out to threads. Each output element belongs to one thread and
 * its sum runs in an order that depends on nothing but its own indices and the constants below, so results do not depend on
 * the number of threads.
 */
#ifndef LORAFAST_GEMM_H
#define LORAFAST_GEMM_H

#include <stddef.h>
#include <stdint.h>

/* One matrix W of those that share an input, with its rank-R update: y += c . v (forward, c = s x A^T and v = B) or
 * dx += c . v (backward, c = s dy B^T and v = A). */
typedef struct {
    const uint8_t *weight;  /* (N, row_bytes), GGML blocks */
    ptrdiff_t row_bytes;
    int type;               /* ggml type id */
    int N;
    float *y;               /* forward: (T, N), overwritten */
    const float *residual;  /* forward: (T, N) added to y, or NULL */
    const float *dy;        /* backward: (T, N) */
    int R;                  /* 0: no update */
    const float *c;         /* (T, R) */
    const float *v;         /* (R, N) forward, (R, K) backward */
} projection;

#define ROUND_UP(n, m) (((n) + (m) - 1) / (m) * (m))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

#endif
