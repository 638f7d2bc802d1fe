/* Short causal convolutions, gated and with SiLU: short_conv.pyx with one thread, on one sequence. */
#include "check.h"
#include "short_conv.h"

#define SHORT_CONV_LIMIT 1e-12

/* v = the convolution of u; or, backwards, du of dv. */
static void convolve(double *v, const double *u, const float *taps, int T, int C, int K, int backwards) {
    for (int t = 0; t < T; t++)
        for (int c = 0; c < C; c++) {
            double sum = 0;
            for (int j = 0; j < K; j++) {
                const int from = backwards ? t + j : t - j;
                if (0 <= from && from < T) sum += taps[(K - 1 - j) * C + c] * u[from * C + c];
            }
            v[t * C + c] = sum;
        }
}

static void check_gated(int T, int C, int K) {
    const int n = T * C;
    const float *b = take_random(n), *c = take_random(n), *x = take_random(n), *dy = take_random(n);
    const float *taps = take_random(K * C);
    float *y = take_floats(n), *db = take_floats(n), *dc = take_floats(n), *dx = take_floats(n);
    double *u = take_zeros(n), *v = take_zeros(n), *dv = take_zeros(n), *du = take_zeros(n);
    double *y_exact = take_zeros(n), *db_exact = take_zeros(n), *dc_exact = take_zeros(n), *dx_exact = take_zeros(n);
    for (int i = 0; i < n; i++) u[i] = (double)b[i] * x[i], dv[i] = (double)dy[i] * c[i];
    convolve(v, u, taps, T, C, K, 0);
    convolve(du, dv, taps, T, C, K, 1);
    for (int i = 0; i < n; i++) {
        y_exact[i] = c[i] * v[i], dc_exact[i] = dy[i] * v[i];
        db_exact[i] = du[i] * x[i], dx_exact[i] = du[i] * b[i];
    }
    for (int i = 0; i < C; i += CONV_FEWEST) {
        DISPATCH(gated_conv_columns)(y + i, b + i, c + i, x + i, taps + i, T, C, MIN(CONV_FEWEST, C - i), K);
        DISPATCH(gated_conv_backward_columns)(db + i, dc + i, dx + i, dy + i, b + i, c + i, x + i, taps + i, T, C,
                                              MIN(CONV_FEWEST, C - i), K);
    }
    expect("gated_conv y", y, y_exact, n, SHORT_CONV_LIMIT);
    expect("gated_conv db", db, db_exact, n, SHORT_CONV_LIMIT);
    expect("gated_conv dc", dc, dc_exact, n, SHORT_CONV_LIMIT);
    expect("gated_conv dx", dx, dx_exact, n, SHORT_CONV_LIMIT);
}

static void check_silu(int T, int C, int K) {
    const int n = T * C;
    const float *x = take_random(n), *dy = take_random(n), *taps = take_random(K * C);
    float *y = take_floats(n), *dx = take_floats(n);
    double *u = take_zeros(n), *v = take_zeros(n), *dv = take_zeros(n), *y_exact = take_zeros(n);
    double *dx_exact = take_zeros(n);
    for (int i = 0; i < n; i++) u[i] = x[i];
    convolve(v, u, taps, T, C, K, 0);
    for (int i = 0; i < n; i++) {
        const double sigmoid = 1 / (1 + exp(-v[i]));
        y_exact[i] = v[i] * sigmoid;
        dv[i] = dy[i] * sigmoid * (1 + v[i] * (1 - sigmoid));
    }
    convolve(dx_exact, dv, taps, T, C, K, 1);
    for (int i = 0; i < C; i += CONV_FEWEST) {
        DISPATCH(silu_conv_columns)(y + i, x + i, taps + i, T, C, MIN(CONV_FEWEST, C - i), K);
        DISPATCH(silu_conv_backward_columns)(dx + i, dy + i, x + i, taps + i, T, C, MIN(CONV_FEWEST, C - i), K);
    }
    expect("silu_conv y", y, y_exact, n, SHORT_CONV_LIMIT);
    expect("silu_conv dx", dx, dx_exact, n, SHORT_CONV_LIMIT);
}

void check_short_conv(void) {
    check_gated(23, 150, 3);
    check_gated(2, 7, 4);
    check_silu(23, 150, 4);
    check_silu(3, 5, 16);
}
