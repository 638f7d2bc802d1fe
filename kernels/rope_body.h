/* Rotary position embedding of one row of heads. */

/* Rotates each pair (a, b) = (x[step j], x[step j + apart]) by its angle. y may be x: a pair is read before it is
 * written, and no two pairs overlap, which the compiler is told. */
VF_INLINE void FN(rope_rotate)(float *y, const float *x, const float *cos, const float *sin, ptrdiff_t n_pairs,
                               ptrdiff_t step, ptrdiff_t apart) {
    SIMD_NO_OVERLAP
    for (ptrdiff_t j = 0; j < n_pairs; j++) {
        const float a = x[step * j], b = x[step * j + apart];
        y[step * j] = a * cos[j] - b * sin[j];
        y[step * j + apart] = a * sin[j] + b * cos[j];
    }
}

static void FN(rope_forward_row)(float *y, const float *x, const float *cos, const float *sin, ptrdiff_t n_head,
                                 ptrdiff_t D, ptrdiff_t n_rot, int interleaved) {
    for (ptrdiff_t h = 0; h < n_head; h++, y += D, x += D) {
        if (interleaved) FN(rope_rotate)(y, x, cos, sin, n_rot / 2, 2, 1);
        else FN(rope_rotate)(y, x, cos, sin, n_rot / 2, 1, n_rot / 2);
        if (y != x) memcpy(y + n_rot, x + n_rot, sizeof(float) * (D - n_rot));
    }
}
