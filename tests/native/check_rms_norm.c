/* y = x rstd gain with rstd = 1 / sqrt(mean x^2 + eps): rms_norm.pyx with one thread. */
#include "check.h"
#include "simd.h"
#define RMS_NORM_COLUMNS 256    /* as in rms_norm.pyx */
#define SIMD_BODY "rms_norm_body.h"
#include "simd_foreach.h"

#define RMS_NORM_LIMIT 1e-14
#define RMS_NORM_GAIN_LIMIT 1e-12

static void check(int T, int C) {
    const float eps = 1e-5f, *x = take_random(T * C), *gain = take_random(C), *dy = take_random(T * C);
    float *y = take_floats(T * C), *rstd = take_floats(T);
    double *y_exact = take_zeros(T * C), *rstd_exact = take_zeros(T), *dx_exact, *dgain_exact;
    float *dx = take_gradient(T * C, &dx_exact), *dgain = take_gradient(C, &dgain_exact);
    for (int t = 0; t < T; t++) {
        double square = 0, dot = 0;
        for (int c = 0; c < C; c++) {
            const int i = t * C + c;
            square += (double)x[i] * x[i] / C;
            dot += (double)dy[i] * gain[c] * x[i] / C;
        }
        const double r = rstd_exact[t] = 1 / sqrt(square + eps);
        for (int c = 0; c < C; c++) {
            const int i = t * C + c;
            y_exact[i] = x[i] * r * gain[c];
            dx_exact[i] += r * ((double)dy[i] * gain[c] - x[i] * r * r * dot);
            dgain_exact[c] += (double)dy[i] * x[i] * r;
        }
    }
    for (int t = 0; t < T; t++) {
        rstd[t] = DISPATCH(rms_norm_row)(y + t * C, x + t * C, gain, C, eps);
        DISPATCH(rms_norm_dx_row)(dx + t * C, dy + t * C, x + t * C, gain, rstd[t], C);
    }
    for (int c = 0; c < C; c += RMS_NORM_COLUMNS)
        DISPATCH(rms_norm_dgain_columns)(dgain + c, dy + c, x + c, rstd, T, C, MIN(RMS_NORM_COLUMNS, C - c));
    expect("rms_norm y", y, y_exact, T * C, RMS_NORM_LIMIT);
    expect("rms_norm rstd", rstd, rstd_exact, T, RMS_NORM_LIMIT);
    expect("rms_norm dx", dx, dx_exact, T * C, RMS_NORM_LIMIT);
    expect("rms_norm dgain", dgain, dgain_exact, C, RMS_NORM_GAIN_LIMIT);
}

void check_rms_norm(void) {
    check(17, 576);
    check(3, 13);
    check(1, 1);
}
