/* Layer norm of one row, and the gradient of the gain over a range of columns. */

/* Mean and mean of squares in float64, in two passes over a row that is in cache: no cancellation. bias may be NULL. */
static void FN(layer_norm_row)(float *restrict y, float *mean, float *rstd, const float *restrict x,
                               const float *restrict gain, const float *restrict bias, ptrdiff_t C, float eps) {
    vd low = {0}, high = {0};
    ptrdiff_t i = 0;
    for (; i + VF_WIDTH <= C; i += VF_WIDTH) low += vd_load(x + i), high += vd_load(x + i + VF_WIDTH / 2);
    double sum = vd_sum(low + high);
    for (; i < C; i++) sum += x[i];
    const float m = *mean = sum / C;

    for (ptrdiff_t c = 0; c < C; c++) y[c] = x[c] - m;
    const float variance = vd_dot(y, y, C) / C;
    const float r = *rstd = 1 / sqrtf(variance + eps);
    if (bias) for (ptrdiff_t c = 0; c < C; c++) y[c] = y[c] * r * gain[c] + bias[c];
    else for (ptrdiff_t c = 0; c < C; c++) y[c] = y[c] * r * gain[c];
}

/* forward: y = z gain + bias, z = (x - mean) rstd, so dz/dx takes from dz gain its mean and its part along z. */
static void FN(layer_norm_dx_row)(float *restrict dx, const float *restrict dy, const float *restrict x,
                                  const float *restrict gain, float mean, float rstd, ptrdiff_t C) {
    vd sums = {0}, dots = {0};
    ptrdiff_t i = 0;
    for (; i + VF_WIDTH / 2 <= C; i += VF_WIDTH / 2) {
        const vd dz = vd_load(dy + i) * vd_load(gain + i);
        sums += dz;
        dots += dz * (vd_load(x + i) - (double)mean);
    }
    double sum = vd_sum(sums), dot = vd_sum(dots);
    for (; i < C; i++) {
        const double dz = (double)dy[i] * gain[i];
        sum += dz;
        dot += dz * ((double)x[i] - mean);
    }
    const float shift = sum / C, k = dot / C * rstd * rstd;
    for (ptrdiff_t c = 0; c < C; c++) dx[c] += rstd * (dy[c] * gain[c] - shift - k * (x[c] - mean));
}

/* forward: y = (x - mean) rstd gain + bias. The columns are n <= LAYER_NORM_COLUMNS of rows C apart. */
static void FN(layer_norm_dgain_columns)(float *restrict dgain, const float *restrict dy, const float *restrict x,
                                         const float *restrict mean, const float *restrict rstd, ptrdiff_t T,
                                         ptrdiff_t C, ptrdiff_t n) {
    float sum[LAYER_NORM_COLUMNS] = {0};
    for (ptrdiff_t t = 0; t < T; t++)
        for (ptrdiff_t c = 0; c < n; c++) sum[c] += dy[t * C + c] * (x[t * C + c] - mean[t]) * rstd[t];
    for (ptrdiff_t c = 0; c < n; c++) dgain[c] += sum[c];
}
