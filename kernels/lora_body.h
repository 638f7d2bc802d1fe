/* Products with the few long rows of LoRA's A and B. Rows are taken four at a time, so that each value of x or dy that is loaded
 * serves four of them. */

/* h[r] = scale * x . V[r], r < R, for one token; V has rows of J floats. */
static void FN(lora_project_row)(float *restrict h, const float *restrict x, const float *restrict V, ptrdiff_t R, ptrdiff_t J,
                                 float scale) {
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
        for (; j < J; j++) t0 += x[j] * V[j], t1 += x[j] * V[J + j], t2 += x[j] * V[2 * J + j], t3 += x[j] * V[3 * J + j];
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

/* dV[r][j0 .. j0+n] += sum_t c[t][r] u[t][j0 .. j0+n]; u has rows of J floats, and so has dV. */
static void FN(lora_outer_columns)(float *restrict dV, const float *restrict c, const float *restrict u, ptrdiff_t T, ptrdiff_t R,
                                   ptrdiff_t J, ptrdiff_t j0, ptrdiff_t n) {
    for (ptrdiff_t j = j0; j < j0 + n; j += VF_WIDTH) {
        const int width = j + VF_WIDTH <= j0 + n ? VF_WIDTH : j0 + n - j;
        ptrdiff_t r = 0;
        for (; r + 4 <= R; r += 4) {
            vf s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
            for (ptrdiff_t t = 0; t < T; t++) {
                const vf v = width == VF_WIDTH ? vf_load(u + t * J + j) : vf_load_part(u + t * J + j, width);
                const float *k = c + t * R + r;
                s0 += k[0] * v, s1 += k[1] * v, s2 += k[2] * v, s3 += k[3] * v;
            }
            float *out = dV + r * J + j;
            vf_store_part(out, vf_load_part(out, width) + s0, width), out += J;
            vf_store_part(out, vf_load_part(out, width) + s1, width), out += J;
            vf_store_part(out, vf_load_part(out, width) + s2, width), out += J;
            vf_store_part(out, vf_load_part(out, width) + s3, width);
        }
        for (; r < R; r++) {
            vf s = {0};
            for (ptrdiff_t t = 0; t < T; t++)
                s += c[t * R + r] * (width == VF_WIDTH ? vf_load(u + t * J + j) : vf_load_part(u + t * J + j, width));
            float *out = dV + r * J + j;
            vf_store_part(out, vf_load_part(out, width) + s, width);
        }
    }
}
