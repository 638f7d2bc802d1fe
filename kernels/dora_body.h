/* The gains of a linear layer's outputs: multiplying by them, a row at a time, and their gradient over a range of
 * columns. y may be z, and dz may be y: each value is read before it is written. */

/* y = gain * z, and out = residual + y where there is a residual. */
static void FN(dora_row)(float *y, float *out, const float *z, const float *gain, const float *residual, ptrdiff_t N) {
    if (!residual) {
        SIMD_NO_OVERLAP
        for (ptrdiff_t n = 0; n < N; n++) y[n] = gain[n] * z[n];
        return;
    }
    SIMD_NO_OVERLAP
    for (ptrdiff_t n = 0; n < N; n++) {
        const float product = gain[n] * z[n];
        y[n] = product;
        out[n] = residual[n] + product;
    }
}

/* forward: y = gain * z with gain = m / c, so dy/dm = z / c = y / m. The columns are n <= DORA_COLUMNS of rows N
 * apart. */
static void FN(dora_backward_columns)(float *dz, float *dm, const float *dy, const float *y, const float *m,
                                      const float *gain, ptrdiff_t T, ptrdiff_t N, ptrdiff_t n) {
    float sum[DORA_COLUMNS] = {0};
    for (ptrdiff_t t = 0; t < T; t++, dz += N, dy += N, y += N) {
        SIMD_NO_OVERLAP
        for (ptrdiff_t i = 0; i < n; i++) {
            sum[i] += dy[i] * y[i];
            dz[i] = gain[i] * dy[i];
        }
    }
    for (ptrdiff_t i = 0; i < n; i++)
        if (m[i] != 0) dm[i] += sum[i] / m[i];
}
