/* y = (x - mean) rstd gain + bias: layer_norm.pyx with one thread. */
#include "check.h"
#include "simd.h"
#define LAYER_NORM_COLUMNS 256    /* as in layer_norm.pyx */
#define SIMD_BODY "layer_norm_body.h"
#include "simd_foreach.h"

#define LAYER_NORM_LIMIT 1e-12

static void check(int T, int C, int with_bias) {
    const float eps = 1e-5f, *x = take_random(T * C), *gain = take_random(C), *dy = take_random(T * C);
    const float *bias = with_bias ? take_random(C) : NULL;
    float *y = take_floats(T * C), *mean = take_floats(T), *rstd = take_floats(T);
    double *y_exact = take_zeros(T * C), *rstd_exact = take_zeros(T), *dx_exact, *dgain_exact;
    float *dx = take_gradient(T * C, &dx_exact), *dgain = take_gradient(C, &dgain_exact);
    for (int t = 0; t < T; t++) {
        const float *x_t = x + t * C, *dy_t = dy + t * C;
        double m = 0, variance = 0, dz_mean = 0, dot = 0;
        for (int c = 0; c < C; c++) m += (double)x_t[c] / C;
        for (int c = 0; c < C; c++) variance += (x_t[c] - m) * (x_t[c] - m) / C;
        const double r = rstd_exact[t] = 1 / sqrt(variance + eps);
        for (int c = 0; c < C; c++) {
            const double z = (x_t[c] - m) * r, dz = (double)dy_t[c] * gain[c];
            y_exact[t * C + c] = z * gain[c] + (bias ? bias[c] : 0);
            dgain_exact[c] += dy_t[c] * z;
            dz_mean += dz / C;
            dot += dz * z / C;
        }
        for (int c = 0; c < C; c++)
            dx_exact[t * C + c] += r * ((double)dy_t[c] * gain[c] - dz_mean - (x_t[c] - m) * r * dot);
    }
    for (int t = 0; t < T; t++) {
        DISPATCH(layer_norm_row)(y + t * C, mean + t, rstd + t, x + t * C, gain, bias, C, eps);
        DISPATCH(layer_norm_dx_row)(dx + t * C, dy + t * C, x + t * C, gain, mean[t], rstd[t], C);
    }
    for (int c = 0; c < C; c += LAYER_NORM_COLUMNS)
        DISPATCH(layer_norm_dgain_columns)(dgain + c, dy + c, x + c, mean, rstd, T, C, MIN(LAYER_NORM_COLUMNS, C - c));
    expect("layer_norm y", y, y_exact, T * C, LAYER_NORM_LIMIT);
    expect("layer_norm rstd", rstd, rstd_exact, T, LAYER_NORM_LIMIT);
    expect("layer_norm dx", dx, dx_exact, T * C, LAYER_NORM_LIMIT);
    expect("layer_norm dgain", dgain, dgain_exact, C, LAYER_NORM_LIMIT);
}

void check_layer_norm(void) {
    check(17, 576, 1);
    check(3, 13, 0);
}
