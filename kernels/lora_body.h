/* Products with the few long rows of LoRA's A and B. Rows are taken four at a time, so that each value of x or dy that
 * is loaded serves four of them. */

/* h[r] = scale * x . V[r], r < R, for one token; V has rows of J floats. */
static void FN(lora_project_row)(float *restrict h, const float *restrict x, const float *restrict V,
                                 ptrdiff_t R, ptrdiff_t J, float scale) {
    ptrdiff_t r = 0;
    for (; r + 4 <= R; r += 4, V += 4 * J) {
        vf s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
        ptrdiff_t j = 0;
        for (; j + VF_WIDTH <= J; j += VF_WIDTH) {
            const vf v = vf_load(x + j);
            s0 += v * vf_load(V + j), s1 += v * vf_load(V + J + j);
            s2 += v * vf_load(V + 2 * J + j), s3 += v * vf_load(V + 3 * J + j);
        }
        float t0 = vf_sum(s0), t1 = vf_sum(s1), t2 = vf_sum(s2), t3 = vf_sum(s3);
        for (; j < J; j++) {
            t0 += x[j] * V[j], t1 += x[j] * V[J + j];
            t2 += x[j] * V[2 * J + j], t3 += x[j] * V[3 * J + j];
        }
        h[r] = scale * t0, h[r + 1] = scale * t1, h[r + 2] = scale * t2, h[r + 3] = scale * t3;
    }
    for (; r < R; r++, V += J) {
        vf s = {0};
        ptrdiff_t j = 0;
        for (; j + VF_WIDTH <= J; j += VF_WIDTH) s += vf_load(x + j) * vf_load(V + j);
        float t = vf_sum(s);
        for (; j < J; j++) t += x[j] * V[j];
        h[r] = scale * t;
    }
}

#if VF_WIDTH == 16
#define LORA_VECTORS 4          /* 16 accumulators and 4 vectors of u */
#else
#define LORA_VECTORS 2          /* 8 and 2, of 16 registers */
#endif

/* dV[r][j] += sum_t c[t][r] u[t][j] for 4 ranks and LORA_VECTORS vectors of columns; u and dV have rows of J floats. */
static void FN(lora_outer_tile)(float *restrict dV, const float *restrict c, const float *restrict u,
                                ptrdiff_t T, ptrdiff_t R, ptrdiff_t J) {
    vf sum[4][LORA_VECTORS] = {{{0}}};
    for (ptrdiff_t t = 0; t < T; t++, c += R, u += J) {
        __builtin_prefetch(u + LORA_VECTORS * VF_WIDTH);     /* the next tile's: no processor follows such strides */
#pragma GCC unroll 4
        for (int v = 0; v < LORA_VECTORS; v++) {
            const vf x = vf_load(u + v * VF_WIDTH);
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) sum[r][v] += c[r] * x;
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
        for (int v = 0; v < LORA_VECTORS; v++)
            vf_store(dV + r * J + v * VF_WIDTH, vf_load(dV + r * J + v * VF_WIDTH) + sum[r][v]);
}

/* dV[r][j0 .. j0+n] += sum_t c[t][r] u[t][j0 .. j0+n], all r < R. */
static void FN(lora_outer_columns)(float *restrict dV, const float *restrict c, const float *restrict u,
                                   ptrdiff_t T, ptrdiff_t R, ptrdiff_t J, ptrdiff_t j0, ptrdiff_t n) {
    const ptrdiff_t step = LORA_VECTORS * VF_WIDTH, end = j0 + n;
    const ptrdiff_t whole_r = R / 4 * 4, whole_j = j0 + n / step * step;
    for (ptrdiff_t j = j0; j < whole_j; j += step)
        for (ptrdiff_t r = 0; r < whole_r; r += 4) FN(lora_outer_tile)(dV + r * J + j, c + r, u + j, T, R, J);
    for (ptrdiff_t r = 0; r < R; r++)                   /* what fills no tile */
        for (ptrdiff_t j = r < whole_r ? whole_j : j0; j < end; j += VF_WIDTH) {
            const int width = end - j < VF_WIDTH ? end - j : VF_WIDTH;
            vf sum = {0};
            for (ptrdiff_t t = 0; t < T; t++) sum += c[t * R + r] * vf_load_part(u + t * J + j, width);
            vf_store_part(dV + r * J + j, vf_load_part(dV + r * J + j, width) + sum, width);
        }
}
#undef LORA_VECTORS
