/* Rotary position embedding of one row of heads. */

/* Rotates each pair (a, b) = (x[step j], x[step j + apart]) by its angle, or back (direction -1). y may be x: a pair is
 * read before it is written, and no two pairs overlap, which the compiler is told. */
VF_INLINE void FN(rope_rotate)(float *y, const float *x, const float *cos, const float *sin, ptrdiff_t n_pairs,
                               ptrdiff_t step, ptrdiff_t apart, float direction, int accumulate) {
    SIMD_NO_OVERLAP
    for (ptrdiff_t j = 0; j < n_pairs; j++) {
        const float a = x[step * j], b = x[step * j + apart], s = direction * sin[j];
        const float rotated_a = a * cos[j] - b * s, rotated_b = a * s + b * cos[j];
        y[step * j] = accumulate ? y[step * j] + rotated_a : rotated_a;
        y[step * j + apart] = accumulate ? y[step * j + apart] + rotated_b : rotated_b;
    }
}

static void FN(rope_forward_row)(float *y, const float *x, const float *cos, const float *sin, ptrdiff_t n_head,
                                 ptrdiff_t D, ptrdiff_t n_rot, int interleaved) {
    for (ptrdiff_t h = 0; h < n_head; h++, y += D, x += D) {
        if (interleaved) FN(rope_rotate)(y, x, cos, sin, n_rot / 2, 2, 1, 1, 0);
        else FN(rope_rotate)(y, x, cos, sin, n_rot / 2, 1, n_rot / 2, 1, 0);
        if (y != x) memcpy(y + n_rot, x + n_rot, sizeof(float) * (D - n_rot));
    }
}

/* forward: y = R x, with R a rotation, so dx = R^T dy: the same angles backwards. */
static void FN(rope_backward_row)(float *dx, const float *dy, const float *cos, const float *sin, ptrdiff_t n_head,
                                  ptrdiff_t D, ptrdiff_t n_rot, int interleaved) {
    for (ptrdiff_t h = 0; h < n_head; h++, dx += D, dy += D) {
        if (interleaved) FN(rope_rotate)(dx, dy, cos, sin, n_rot / 2, 2, 1, -1, 1);
        else FN(rope_rotate)(dx, dy, cos, sin, n_rot / 2, 1, n_rot / 2, -1, 1);
        for (ptrdiff_t i = n_rot; i < D; i++) dx[i] += dy[i];
    }
}
