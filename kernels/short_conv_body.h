/* Causal depthwise convolutions over a range of n <= CONV_COLUMNS columns of one sequence of T rows, C values apart.
 * taps (K, C), oldest first: v[t] = sum_j taps[K - 1 - j] u[t - j], u being 0 before the sequence. Rings hold the K
 * newest rows: row t stands at t mod K. */

/* n columns, and what fills up the last vector */
VF_INLINE ptrdiff_t FN(conv_whole)(ptrdiff_t n) { return (n + VF_WIDTH - 1) / VF_WIDTH * VF_WIDTH; }

VF_INLINE vf FN(conv_sigmoid)(vf z) { return 1 / (1 + vf_exp(-z)); }

/* Rows lie in pages of their own, of which a processor does not know the next: they are asked for a few rows ahead. */
VF_INLINE void FN(conv_fetch)(const float *row, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i += 16) __builtin_prefetch(row + i);
}

/* v = sum_j taps[K - 1 - j] ring[t - j] */
static void FN(conv_of_ring)(float *restrict v, float (*ring)[CONV_COLUMNS], const float *restrict taps, ptrdiff_t t,
                             ptrdiff_t C, ptrdiff_t n, int K) {
    memset(v, 0, FN(conv_whole)(n) * sizeof *v);
    for (int j = 0; j < K && j <= t; j++) {
        const float *restrict u = ring[(t - j) % K], *restrict tap = taps + (K - 1 - j) * C;
        for (ptrdiff_t i = 0; i < n; i++) v[i] += tap[i] * u[i];
    }
}

/* du[t] = sum_j taps[K - 1 - j] dv[t + j], in a sequence of T rows */
static void FN(conv_backward_of_ring)(float *restrict du, float (*ring)[CONV_COLUMNS], const float *restrict taps,
                                      ptrdiff_t t, ptrdiff_t T, ptrdiff_t C, ptrdiff_t n, int K) {
    memset(du, 0, FN(conv_whole)(n) * sizeof *du);
    for (int j = 0; j < K && t + j < T; j++) {
        const float *restrict dv = ring[(t + j) % K], *restrict tap = taps + (K - 1 - j) * C;
        for (ptrdiff_t i = 0; i < n; i++) du[i] += tap[i] * dv[i];
    }
}

/* y = c v, v being the convolution of u = b x. */
static void FN(gated_conv_columns)(float *y, const float *b, const float *c, const float *x, const float *taps,
                                   ptrdiff_t T, ptrdiff_t C, ptrdiff_t n, int K) {
    float u[CONV_MAX_WIDTH][CONV_COLUMNS], v[CONV_COLUMNS];
    for (ptrdiff_t t = 0; t < T; t++) {
        const ptrdiff_t at = t * C, ahead = at + CONV_AHEAD * C;
        if (t + CONV_AHEAD < T) {
            FN(conv_fetch)(b + ahead, n);
            FN(conv_fetch)(x + ahead, n);
            FN(conv_fetch)(c + ahead, n);
        }
        for (ptrdiff_t i = 0; i < n; i++) u[t % K][i] = b[at + i] * x[at + i];
        FN(conv_of_ring)(v, u, taps, t, C, n, K);
        for (ptrdiff_t i = 0; i < n; i++) y[at + i] = c[at + i] * v[i];
    }
}

/* forward: y = c v, v[t] = sum_j taps[K - 1 - j] u[t - j], u = b x. From the last row to the first, so that a row's
 * gradients may take its place: rows before it are still there. */
static void FN(gated_conv_backward_columns)(float *db, float *dc, float *dx, const float *dy, const float *b,
                                            const float *c, const float *x, const float *taps, ptrdiff_t T, ptrdiff_t C,
                                            ptrdiff_t n, int K) {
    float dv[CONV_MAX_WIDTH][CONV_COLUMNS], u[CONV_COLUMNS], v[CONV_COLUMNS], du[CONV_COLUMNS];
    for (ptrdiff_t t = T; t-- > 0;) {
        const ptrdiff_t at = t * C, ahead = at - CONV_AHEAD * C;
        if (t >= CONV_AHEAD) {
            FN(conv_fetch)(b + ahead, n);
            FN(conv_fetch)(x + ahead, n);
            FN(conv_fetch)(c + ahead, n);
            FN(conv_fetch)(dy + ahead, n);
        }
        memset(v, 0, FN(conv_whole)(n) * sizeof *v);
        for (int j = 0; j < K && j <= t; j++) {
            const ptrdiff_t earlier = at - j * C;
            const float *restrict tap = taps + (K - 1 - j) * C;
            for (ptrdiff_t i = 0; i < n; i++) u[i] = b[earlier + i] * x[earlier + i];
            for (ptrdiff_t i = 0; i < n; i++) v[i] += tap[i] * u[i];
        }
        for (ptrdiff_t i = 0; i < n; i++) dv[t % K][i] = dy[at + i] * c[at + i];
        FN(conv_backward_of_ring)(du, dv, taps, t, T, C, n, K);
        for (ptrdiff_t i = 0; i < n; i++) {
            const float b_i = b[at + i], x_i = x[at + i];
            dc[at + i] = dy[at + i] * v[i];
            db[at + i] = du[i] * x_i;
            dx[at + i] = du[i] * b_i;
        }
    }
}

/* y = silu(v), v being the convolution of x. */
static void FN(silu_conv_columns)(float *y, const float *x, const float *taps, ptrdiff_t T, ptrdiff_t C, ptrdiff_t n,
                                  int K) {
    float u[CONV_MAX_WIDTH][CONV_COLUMNS], v[CONV_COLUMNS];
    for (ptrdiff_t t = 0; t < T; t++) {
        if (t + CONV_AHEAD < T) FN(conv_fetch)(x + (t + CONV_AHEAD) * C, n);
        memcpy(u[t % K], x + t * C, n * sizeof *x);
        FN(conv_of_ring)(v, u, taps, t, C, n, K);
        for (ptrdiff_t i = 0; i < n; i += VF_WIDTH) {
            const vf z = vf_load(v + i);
            vf_store(v + i, z * FN(conv_sigmoid)(z));
        }
        memcpy(y + t * C, v, n * sizeof *y);
    }
}

/* forward: y = silu(v), v[t] = sum_j taps[K - 1 - j] x[t - j]. From the last row to the first, as above. */
static void FN(silu_conv_backward_columns)(float *dx, const float *dy, const float *x, const float *taps, ptrdiff_t T,
                                           ptrdiff_t C, ptrdiff_t n, int K) {
    float dv[CONV_MAX_WIDTH][CONV_COLUMNS], v[CONV_COLUMNS];
    for (ptrdiff_t t = T; t-- > 0;) {
        float *restrict d = dv[t % K];
        if (t >= CONV_AHEAD) {
            FN(conv_fetch)(x + (t - CONV_AHEAD) * C, n);
            FN(conv_fetch)(dy + (t - CONV_AHEAD) * C, n);
        }
        memset(v, 0, FN(conv_whole)(n) * sizeof *v);
        for (int j = 0; j < K && j <= t; j++) {
            const float *restrict tap = taps + (K - 1 - j) * C, *restrict u = x + (t - j) * C;
            for (ptrdiff_t i = 0; i < n; i++) v[i] += tap[i] * u[i];
        }
        memset(d, 0, FN(conv_whole)(n) * sizeof *d);
        memcpy(d, dy + t * C, n * sizeof *dy);
        for (ptrdiff_t i = 0; i < n; i += VF_WIDTH) {
            const vf z = vf_load(v + i), s = FN(conv_sigmoid)(z);
            vf_store(d + i, vf_load(d + i) * s * (1 + z * (1 - s)));
        }
        FN(conv_backward_of_ring)(v, dv, taps, t, T, C, n, K);
        memcpy(dx + t * C, v, n * sizeof *dx);
    }
}
