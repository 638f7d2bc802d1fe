/* A moment that nothing feeds shrinks by beta a step, and in the end it would stay a subnormal number for good:
 * arithmetic with those is some 60 times slower. */
VF_INLINE float FN(no_subnormal)(float x) { return fabsf(x) < FLT_MIN ? 0 : x; }

/* One Adam update of n values; every array is read and written once. */
static void FN(adam_values)(float *restrict param, float *restrict m, float *restrict v, const float *restrict grad,
                            ptrdiff_t n, float grad_scale, float beta1, float beta2, float a_t, float c_t, float eps,
                            float decay) {
    for (ptrdiff_t i = 0; i < n; i++) {
        const float g = grad[i] * grad_scale;
        m[i] = FN(no_subnormal)(beta1 * m[i] + (1 - beta1) * g);
        v[i] = FN(no_subnormal)(beta2 * v[i] + g * g * (1 - beta2));
        param[i] = param[i] * (1 - decay) - m[i] * a_t / (sqrtf(v[i] * c_t) + eps);
    }
}

static double FN(sum_of_squares_values)(const float *x, ptrdiff_t n) { return vd_dot(x, x, n); }
