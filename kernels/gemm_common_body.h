/* What every core does at the edges of a product: the rank-R update and the turn from y^T to y. */

/* out[j] += sum_r c[r] v[r][j], j < n; v has rows of ldv floats. */
static inline __attribute__((always_inline)) void FN(add_low_rank_row)(float *out, int n, int R, const float *c, const float *v,
                                                                       ptrdiff_t ldv) {
    int j = 0;
    for (; j + VF_WIDTH <= n; j += VF_WIDTH) {
        vf sum = vf_load(out + j);
        for (int r = 0; r < R; r++) sum += c[r] * vf_load(v + r * ldv + j);
        vf_store(out + j, sum);
    }
    for (; j < n; j++) {
        float sum = out[j];
        for (int r = 0; r < R; r++) sum += c[r] * v[r * ldv + j];
        out[j] = sum;
    }
}

/* rows[i][j] <-> rows[j][i] for a square of VF_WIDTH vectors: log2(VF_WIDTH) perfect shuffles. */
#if VF_WIDTH == 4
#define VF_LOW  (vi){0, 4, 1, 5}
#define VF_HIGH (vi){2, 6, 3, 7}
#elif VF_WIDTH == 8
#define VF_LOW  (vi){0, 8, 1, 9, 2, 10, 3, 11}
#define VF_HIGH (vi){4, 12, 5, 13, 6, 14, 7, 15}
#else
#define VF_LOW  (vi){0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}
#define VF_HIGH (vi){8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31}
#endif
static inline __attribute__((always_inline)) void FN(transpose)(vf rows[VF_WIDTH]) {
    vf next[VF_WIDTH];
#pragma GCC unroll 4
    for (int round = VF_WIDTH; round > 1; round /= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < VF_WIDTH / 2; i++) {
            next[2 * i] = __builtin_shuffle(rows[i], rows[i + VF_WIDTH / 2], VF_LOW);
            next[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + VF_WIDTH / 2], VF_HIGH);
        }
#pragma GCC unroll 16
        for (int i = 0; i < VF_WIDTH; i++) rows[i] = next[i];
    }
}
#undef VF_LOW
#undef VF_HIGH

/* Rows n0 .. n0+n_rows of y^T, finished in c (row stride ldc), become columns of y, with residual and rank-R update added while they
 * are in L1. c is readable up to multiples of VF_WIDTH. */
static void FN(write_outputs)(const projection *p, const float *c, ptrdiff_t ldc, int n0, int n_rows, int T) {
    const ptrdiff_t N = p->N;
    for (int t0 = 0; t0 < T; t0 += VF_WIDTH) {
        const int height = MIN(VF_WIDTH, T - t0);
        for (int j = 0; j < n_rows; j += VF_WIDTH) {
            const int width = MIN(VF_WIDTH, n_rows - j);
            vf tile[VF_WIDTH];
#pragma GCC unroll 16
            for (int k = 0; k < VF_WIDTH; k++) tile[k] = vf_load(c + (j + k) * ldc + t0);
            FN(transpose)(tile);
            float *y = p->y + t0 * N + n0 + j;
            if (width == VF_WIDTH && height == VF_WIDTH) {
#pragma GCC unroll 16
                for (int k = 0; k < VF_WIDTH; k++) vf_store(y + k * N, tile[k]);
            } else {
                for (int k = 0; k < height; k++) vf_store_part(y + k * N, tile[k], width);
            }
        }
        for (ptrdiff_t t = t0; t < t0 + height; t++) {
            float *y = p->y + t * N + n0;
            if (p->residual)
                for (int j = 0; j < n_rows; j++) y[j] += p->residual[t * N + n0 + j];
            if (p->R) FN(add_low_rank_row)(y, n_rows, p->R, p->c + t * p->R, p->v + n0, N);
        }
    }
}

/* dx[t][k0 .. k0+n] += the rank-R updates of all projections, for tokens t0 .. t1. */
static void FN(add_low_rank_columns)(float *dx, int K, const projection *p, int n_projections, int k0, int n, int t0, int t1) {
    for (int i = 0; i < n_projections; i++)
        if (p[i].R)
            for (ptrdiff_t t = t0; t < t1; t++)
                FN(add_low_rank_row)(dx + t * K + k0, n, p[i].R, p[i].c + t * p[i].R, p[i].v + k0, K);
}
