/* Ten steps of Adam with decoupled weight decay, and the sum of squares: adam.pyx with one thread. */
#include <float.h>

#include "check.h"
#include "simd.h"
#define SIMD_BODY "adam_body.h"
#include "simd_foreach.h"

#define ADAM_LIMIT 1e-12
#define SUM_LIMIT 1e-14         /* the sum is in float64, the check of it in float32 */

static void check(int n) {
    const float rate = 0.01f, beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f, decay = 0.001f, grad_scale = 0.5f;
    double *param_exact, *m_exact = take_zeros(n), *v_exact = take_zeros(n);
    float *param = take_gradient(n, &param_exact), *m = take_floats(n), *v = take_floats(n);
    memset(m, 0, sizeof(float) * n);
    memset(v, 0, sizeof(float) * n);
    for (int step = 1; step <= 10; step++) {
        const float *grad = take_random(n);
        const float a_t = rate / (1 - powf(beta1, step)), c_t = 1 / (1 - powf(beta2, step));
        DISPATCH(adam_values)(param, m, v, grad, n, grad_scale, beta1, beta2, a_t, c_t, eps, decay);
        for (int i = 0; i < n; i++) {
            const double g = (double)grad[i] * grad_scale;
            m_exact[i] = beta1 * m_exact[i] + (1 - (double)beta1) * g;
            v_exact[i] = beta2 * v_exact[i] + (1 - (double)beta2) * g * g;
            param_exact[i] = param_exact[i] * (1 - (double)decay) - m_exact[i] * a_t / (sqrt(v_exact[i] * c_t) + eps);
        }
    }
    expect("adam param", param, param_exact, n, ADAM_LIMIT);
    expect("adam m", m, m_exact, n, ADAM_LIMIT);
    expect("adam v", v, v_exact, n, ADAM_LIMIT);

    double sum_exact = 0;
    for (int i = 0; i < n; i++) sum_exact += (double)param[i] * param[i];
    const float sum = DISPATCH(sum_of_squares_values)(param, n);
    expect("sum of squares", &sum, &sum_exact, 1, SUM_LIMIT);
}

void check_adam(void) {
    check(1000);
    check(11);
}
