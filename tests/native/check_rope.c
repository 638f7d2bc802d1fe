/* Pairs rotated by tables of angles, in both orders of pairs: rope.pyx with one thread. */
#include "check.h"
#include "simd.h"
#define SIMD_BODY "rope_body.h"
#include "simd_foreach.h"

#define ROPE_LIMIT 1e-14

static void check(int n_head, int D, int n_rot, int interleaved) {
    const int n = n_head * D, n_pairs = n_rot / 2;
    const float *x = take_random(n);
    float *cos_t = take_floats(n_pairs), *sin_t = take_floats(n_pairs), *y = take_floats(n), *in_place = take_floats(n);
    double *y_exact = take_zeros(n);
    for (int j = 0; j < n_pairs; j++) cos_t[j] = cosf(j), sin_t[j] = sinf(j);
    for (int h = 0; h < n_head; h++) {
        for (int j = 0; j < n_pairs; j++) {
            const int a = h * D + (interleaved ? 2 * j : j), b = interleaved ? a + 1 : a + n_pairs;
            const double c = cos_t[j], s = sin_t[j];
            y_exact[a] = x[a] * c - x[b] * s, y_exact[b] = x[a] * s + x[b] * c;
        }
        for (int i = h * D + n_rot; i < (h + 1) * D; i++) y_exact[i] = x[i];
    }
    DISPATCH(rope_forward_row)(y, x, cos_t, sin_t, n_head, D, n_rot, interleaved);
    memcpy(in_place, x, sizeof(float) * n);
    DISPATCH(rope_forward_row)(in_place, in_place, cos_t, sin_t, n_head, D, n_rot, interleaved);
    expect("rope y", y, y_exact, n, ROPE_LIMIT);
    expect("rope y in place", in_place, y_exact, n, ROPE_LIMIT);
}

void check_rope(void) {
    for (int interleaved = 0; interleaved < 2; interleaved++) {
        check(5, 64, 64, interleaved);
        check(3, 13, 6, interleaved);
    }
}
