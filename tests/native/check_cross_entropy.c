/* loss = -ln(p (1 - floor) + floor), p = softmax(logits)[target]: cross_entropy.pyx for one token. */
#include <float.h>

#include "check.h"
#include "simd.h"
#define SIMD_BODY "cross_entropy_body.h"
#include "simd_foreach.h"

#define CROSS_ENTROPY_LIMIT 1e-12

static void check(int V, int target, double floor) {
    const float dloss = 0.25f;
    float *x = take_random(V);
    double sum = 0, *gradient = take_zeros(V), *dx_exact;
    float *dx = take_gradient(V, &dx_exact);
    for (int v = 0; v < V; v++) x[v] *= 15, sum += exp(x[v]);
    for (int v = 0; v < V; v++) {
        gradient[v] = (exp(x[v]) / sum * (1 - floor) + floor - (v == target)) * dloss;
        dx_exact[v] += gradient[v];
    }
    const double loss_exact = -log(exp(x[target]) / sum * (1 - floor) + floor);
    const float loss = DISPATCH(cross_entropy_row)(x, V, target, floor);
    DISPATCH(cross_entropy_backward_row)(dx, dloss, x, V, target, floor);
    const float same_loss = DISPATCH(cross_entropy_forward_backward_row)(x, V, target, dloss, floor);
    expect("cross_entropy loss", &loss, &loss_exact, 1, CROSS_ENTROPY_LIMIT);
    expect("cross_entropy loss in place", &same_loss, &loss_exact, 1, CROSS_ENTROPY_LIMIT);
    expect("cross_entropy dlogits", dx, dx_exact, V, CROSS_ENTROPY_LIMIT);
    expect("cross_entropy dlogits in place", x, gradient, V, CROSS_ENTROPY_LIMIT);
}

void check_cross_entropy(void) {
    check(5003, 4999, 1e-9);          /* three blocks, the last one odd */
    check(7, 0, 0);
}
