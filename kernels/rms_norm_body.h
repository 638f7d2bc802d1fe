/* RMS norm of one row, and the gradient of the gain over a range of columns. */

/* Returns rstd. Mean of squares in float64, as the original. */
static float FN(rms_norm_row)(float *restrict y, const float *restrict x, const float *restrict gain, ptrdiff_t C,
                              float eps) {
    const float mean = vd_dot(x, x, C) / C;
    const float rstd = 1 / sqrtf(mean + eps);
    for (ptrdiff_t c = 0; c < C; c++) y[c] = x[c] * rstd * gain[c];
    return rstd;
}

/* forward: y = x * rstd * gain, rstd = 1 / sqrt(mean(x^2) + eps), so drstd/dx = -rstd^3 / C * x. */
static void FN(rms_norm_dx_row)(float *restrict dx, const float *restrict dy, const float *restrict x,
                                const float *restrict gain, float rstd, ptrdiff_t C) {
    vd low = {0}, high = {0};
    ptrdiff_t i = 0;
    for (; i + VF_WIDTH <= C; i += VF_WIDTH) {
        const ptrdiff_t j = i + VF_WIDTH / 2;
        low += vd_load(dy + i) * vd_load(gain + i) * vd_load(x + i);
        high += vd_load(dy + j) * vd_load(gain + j) * vd_load(x + j);
    }
    double drstd = vd_sum(low + high);
    for (; i < C; i++) drstd += (double)dy[i] * gain[i] * x[i];

    const float k = drstd * rstd * rstd * rstd / C;
    for (ptrdiff_t c = 0; c < C; c++) dx[c] += dy[c] * gain[c] * rstd - k * x[c];
}

/* forward: y = x * rstd * gain. The columns are n <= RMS_NORM_COLUMNS of rows C apart. */
static void FN(rms_norm_dgain_columns)(float *restrict dgain, const float *restrict dy, const float *restrict x,
                                       const float *restrict rstd, ptrdiff_t T, ptrdiff_t C, ptrdiff_t n) {
    float sum[RMS_NORM_COLUMNS] = {0};
    for (ptrdiff_t t = 0; t < T; t++)
        for (ptrdiff_t c = 0; c < n; c++) sum[c] += dy[t * C + c] * x[t * C + c] * rstd[t];
    for (ptrdiff_t c = 0; c < n; c++) dgain[c] += sum[c];
}
