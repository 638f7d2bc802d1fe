/* loss = -ln(p (1 - floor) + floor), p = softmax(logits)[target], with and without a soft cap on the logits: cross_entropy.pyx for one token. */
#include <float.h>

#include "check.h"
#include "simd.h"
#define SIMD_BODY "cross_entropy_body.h"
#include "simd_foreach.h"

#define CROSS_ENTROPY_LIMIT 1e-12
#define CROSS_ENTROPY_CAPPED_LIMIT 1e-11

/* A loss is a difference of numbers as large as the target's logit: beside which its error is judged. */
static void expect_loss(const char *what, float loss, double exact, double logit, double limit) {
    const float got[2] = {loss, (float)logit};
    const double wanted[2] = {exact, logit};
    expect(what, got, wanted, 2, limit);
}

/* The same by two pieces of the columns. */
static void check_pieces(const float *x, int V, int target, double floor, double cap, float dloss, double loss_exact,
                         double logit, const double *gradient, double limit) {
    const int n = V > 2048 ? 2048 : 4, parts[2][2] = {{0, n}, {n, V - n}};
    float max = -FLT_MAX, chosen = 0, *dx = take_random(V);
    double sum = 0;
    memcpy(dx, x, sizeof *x * V);
    for (int i = 0; i < 2; i++)
        DISPATCH(cross_entropy_piece_row)(&max, &sum, &chosen, x + parts[i][0], parts[i][1], target - parts[i][0], cap);
    const float loss = DISPATCH(cross_entropy_loss_of)(chosen, max, sum, floor);
    for (int i = 0; i < 2; i++)
        DISPATCH(cross_entropy_piece_backward_row)(dx + parts[i][0], max, sum, parts[i][1], target - parts[i][0], dloss,
                                                   floor, cap);
    expect_loss("cross_entropy loss by pieces", loss, loss_exact, logit, limit);
    expect("cross_entropy dlogits by pieces", dx, gradient, V, limit);
}

static void check(int V, int target, double floor, double cap) {
    const double limit = cap > 0 ? CROSS_ENTROPY_CAPPED_LIMIT : CROSS_ENTROPY_LIMIT;
    const float dloss = 0.25f;
    float *x = take_random(V);
    double sum = 0, *y = take_zeros(V), *gradient = take_zeros(V);
    for (int v = 0; v < V; v++) {
        x[v] *= 15;
        y[v] = cap > 0 ? cap * tanh(x[v] / cap) : x[v];
        sum += exp(y[v]);
    }
    for (int v = 0; v < V; v++) {
        const double slope = cap > 0 ? 1 - y[v] / cap * (y[v] / cap) : 1;
        gradient[v] = (exp(y[v]) / sum * (1 - floor) + floor - (v == target)) * dloss * slope;
    }
    const double loss_exact = -log(exp(y[target]) / sum * (1 - floor) + floor);
    check_pieces(x, V, target, floor, cap, dloss, loss_exact, y[target], gradient, limit);
    const float loss = DISPATCH(cross_entropy_row)(x, V, target, floor, cap);
    const float same_loss = DISPATCH(cross_entropy_forward_backward_row)(x, V, target, dloss, floor, cap);
    expect_loss("cross_entropy loss", loss, loss_exact, y[target], limit);
    expect_loss("cross_entropy loss in place", same_loss, loss_exact, y[target], limit);
    expect("cross_entropy dlogits in place", x, gradient, V, limit);
}

void check_cross_entropy(void) {
    check(5003, 4999, 1e-9, 0);          /* three blocks, the last one odd */
    check(7, 0, 0, 0);
    check(5003, 4999, 0, 10);
    check(7, 3, 0, 10);
}
