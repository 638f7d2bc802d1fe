/* y = gain z and its gradient, in place as the trainer calls them: dora.pyx with one thread. */
#include "check.h"
#include "simd.h"
#define DORA_COLUMNS 256        /* as in dora.pyx */
#define SIMD_BODY "dora_body.h"
#include "simd_foreach.h"

#define DORA_LIMIT 1e-14
#define DORA_MAGNITUDE_LIMIT 1e-12

static void check(int T, int N) {
    const float *z = take_random(T * N), *residual = take_random(T * N), *dy = take_random(T * N);
    const float *gain = take_random(N);
    float *y = take_floats(T * N), *out = take_floats(T * N), *m = take_random(N);
    double *y_exact = take_zeros(T * N), *out_exact = take_zeros(T * N), *dz_exact = take_zeros(T * N), *dm_exact;
    float *dm = take_gradient(N, &dm_exact);
    for (int n = 0; n < N; n++) m[n] = n % 4 ? m[n] + (m[n] < 0 ? -1 : 1) : 0;
    for (int t = 0; t < T; t++)
        for (int n = 0; n < N; n++) {
            const int i = t * N + n;
            y_exact[i] = (double)gain[n] * z[i];
            out_exact[i] = residual[i] + y_exact[i];
            dz_exact[i] = (double)gain[n] * dy[i];
            if (m[n] != 0) dm_exact[n] += dy[i] * y_exact[i] / m[n];
        }
    memcpy(y, z, sizeof(float) * T * N);
    for (int t = 0; t < T; t++) DISPATCH(dora_row)(y + t * N, NULL, y + t * N, gain, NULL, N);
    expect("dora y in place", y, y_exact, T * N, DORA_LIMIT);
    for (int t = 0; t < T; t++) DISPATCH(dora_row)(y + t * N, out + t * N, z + t * N, gain, residual + t * N, N);
    expect("dora y", y, y_exact, T * N, DORA_LIMIT);
    expect("dora out", out, out_exact, T * N, DORA_LIMIT);
    for (int n = 0; n < N; n += DORA_COLUMNS)
        DISPATCH(dora_backward_columns)(y + n, dm + n, dy + n, y + n, m + n, gain + n, T, N, MIN(DORA_COLUMNS, N - n));
    expect("dora dz in place", y, dz_exact, T * N, DORA_LIMIT);
    expect("dora dm", dm, dm_exact, N, DORA_MAGNITUDE_LIMIT);
}

void check_dora(void) {
    check(5, 300);
    check(33, 64);
    check(1, 3);
}
