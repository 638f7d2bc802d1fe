/* h = s x A^T and dA += c^T x: lora.pyx with one thread. */
#include "check.h"
#include "simd.h"
#define SIMD_BODY "lora_body.h"
#include "simd_foreach.h"

#define LORA_LIMIT 1e-12
#define COLUMNS 64              /* as in lora.pyx */

static void check(int T, int R, int K) {
    const float scale = 0.5f, *x = take_random(T * K), *A = take_random(R * K), *c = take_random(T * R);
    double *h_exact = take_zeros(T * R), *dA_exact;
    float *h = take_floats(T * R), *dA = take_gradient(R * K, &dA_exact);
    for (int t = 0; t < T; t++)
        for (int r = 0; r < R; r++)
            for (int k = 0; k < K; k++) {
                h_exact[t * R + r] += (double)scale * x[t * K + k] * A[r * K + k];
                dA_exact[r * K + k] += (double)c[t * R + r] * x[t * K + k];
            }
    for (int t = 0; t < T; t++) DISPATCH(lora_project_row)(h + t * R, x + t * K, A, R, K, scale);
    for (int k = 0; k < K; k += COLUMNS) DISPATCH(lora_outer_columns)(dA, c, x, T, R, K, k, MIN(COLUMNS, K - k));
    expect("lora h", h, h_exact, T * R, LORA_LIMIT);
    expect("lora dA", dA, dA_exact, R * K, LORA_LIMIT);
}

void check_lora(void) {
    check(33, 4, 256);
    check(5, 7, 101);
    check(1, 1, 3);
}
