/* What cores share around their tiles: the rank-R update, and the turn from y^T to y. */

/* out[j] += sum_r c[r] v[r][j], j < n; v has rows of ldv floats. The tail has the arithmetic of whole vectors, because
 * it depends on the number of threads where a row is cut. */
VF_INLINE void FN(add_low_rank_row)(float *out, int n, int R, const float *c, const float *v, ptrdiff_t ldv) {
    int j = 0;
    for (; j + VF_WIDTH <= n; j += VF_WIDTH) {
        vf sum = vf_load(out + j);
        for (int r = 0; r < R; r++) sum += c[r] * vf_load(v + r * ldv + j);
        vf_store(out + j, sum);
    }
    if (j < n) {
        vf sum = vf_load_part(out + j, n - j);
        for (int r = 0; r < R; r++) sum += c[r] * vf_load_part(v + r * ldv + j, n - j);
        vf_store_part(out + j, sum, n - j);
    }
}

/* Rows n0 .. n0+n_rows of y^T, finished in c (row stride ldc), become columns of y, with residual and rank-R update
 * added while they are in L1. c is readable up to multiples of VF_WIDTH. */
static void FN(write_outputs)(const projection *p, const float *c, ptrdiff_t ldc, int n0, int n_rows, int T) {
    const ptrdiff_t N = p->N;
    for (int t0 = 0; t0 < T; t0 += VF_WIDTH) {
        const int height = MIN(VF_WIDTH, T - t0);
        for (int j = 0; j < n_rows; j += VF_WIDTH) {
            const int width = MIN(VF_WIDTH, n_rows - j);
            vf tile[VF_WIDTH];
#pragma GCC unroll 16
            for (int k = 0; k < VF_WIDTH; k++) tile[k] = vf_load(c + (j + k) * ldc + t0);
            vf_transpose(tile);
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

/* dx[t0 .. t1][k0 .. k0+n] += c, the finished sums of a slice (row stride ldc). */
static void FN(add_sums)(float *dx, int K, const float *c, ptrdiff_t ldc, int k0, int n, int t0, int t1) {
    for (ptrdiff_t t = t0; t < t1; t++, c += ldc) {
        float *out = dx + t * K + k0;
        for (int k = 0; k < n; k++) out[k] += c[k];
    }
}

/* dx[t][k0 .. k0+n] += the rank-R updates of all projections, for tokens t0 .. t1. */
static void FN(add_low_rank_columns)(float *dx, int K, const projection *p, int n_projections, int k0, int n,
                                     int t0, int t1) {
    for (int i = 0; i < n_projections; i++)
        if (p[i].R)
            for (ptrdiff_t t = t0; t < t1; t++)
                FN(add_low_rank_row)(dx + t * K + k0, n, p[i].R, p[i].c + t * p[i].R, p[i].v + k0, K);
}
