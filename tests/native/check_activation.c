/* h = a(gate) up and y = a(x), a being SiLU, GELU in its tanh form, the squared ReLU or the sigmoid: swiglu.pyx and
 * activation.pyx with one thread. */
#include "check.h"
#include "activation.h"

#define ACTIVATION_LIMIT 1e-12

/* The activations and their slopes. */
static double silu(double z, double *slope) {
    const double sigmoid = 1 / (1 + exp(-z));
    *slope = sigmoid * (1 + z * (1 - sigmoid));
    return z * sigmoid;
}
static double gelu(double z, double *slope) {
    const double k = 0.79788456080286535588, t = tanh(k * (z + 0.044715 * z * z * z));          /* k = sqrt(2 / pi) */
    *slope = (1 + t) / 2 + z / 2 * (1 - t * t) * k * (1 + 3 * 0.044715 * z * z);
    return z / 2 * (1 + t);
}
static double relu_squared(double z, double *slope) {
    *slope = z > 0 ? 2 * z : 0;
    return z > 0 ? z * z : 0;
}

static double clamped_silu(double z, double *slope) {
    const double g = z > 7 ? 7 : z, sigmoid = 1 / (1 + exp(-1.702 * g));
    *slope = z > 7 ? 0 : sigmoid * (1 + 1.702 * g * (1 - sigmoid));
    return g * sigmoid;
}
static double sigmoid(double z, double *slope) {
    const double value = 1 / (1 + exp(-z));
    *slope = value * (1 - value);
    return value;
}

typedef double (*activation)(double z, double *slope);
typedef void (*gated)(float *h, const float *gate, const float *up, ptrdiff_t F);
typedef void (*gated_backward)(float *dgate, float *dup, const float *dh, const float *gate, const float *up, ptrdiff_t F);
typedef void (*plain)(float *y, const float *x, ptrdiff_t F);
typedef void (*plain_backward)(float *dx, const float *dy, const float *x, ptrdiff_t F);

static float *take_gate(int F) {
    float *gate = take_random(F);
    for (int i = 0; i < F; i++) gate[i] *= 10;
    return gate;
}

static void check_gated(const char *name, int F, activation a, gated forward, gated_backward backward) {
    float *gate = take_gate(F), *up = take_random(F), *h = take_floats(F), *dgate = take_floats(F), *dup = take_floats(F);
    const float *dh = take_random(F);
    up[F / 2] = 9, up[F / 3] = -9;              /* beyond the clamp */
    double *h_exact = take_zeros(F), *dgate_exact = take_zeros(F), *dup_exact = take_zeros(F);
    for (int i = 0; i < F; i++) {
        double slope;
        const double value = a(gate[i], &slope);
        const int is_clamped = a == clamped_silu;
        const double u = is_clamped ? 1 + fmin(fmax(up[i], -7), 7) : up[i];
        h_exact[i] = value * u;
        dgate_exact[i] = dh[i] * u * slope;
        dup_exact[i] = is_clamped && fabs(up[i]) > 7 ? 0 : dh[i] * value;
    }
    forward(h, gate, up, F);
    backward(dgate, dup, dh, gate, up, F);
    backward(gate, up, dh, gate, up, F);
    const struct { const char *name; const float *got; const double *exact; } results[] = {
        {"h", h, h_exact}, {"dgate", dgate, dgate_exact}, {"dup", dup, dup_exact},
        {"dgate in place", gate, dgate_exact}, {"dup in place", up, dup_exact},
    };
    for (int i = 0; i < 5; i++) expect_named(name, results[i].name, results[i].got, results[i].exact, F, ACTIVATION_LIMIT);
}

static void check_plain(const char *name, int F, activation a, plain forward, plain_backward backward) {
    float *x = take_gate(F), *y = take_floats(F), *dx = take_floats(F);
    const float *dy = take_random(F);
    double *y_exact = take_zeros(F), *dx_exact = take_zeros(F);
    for (int i = 0; i < F; i++) {
        double slope;
        y_exact[i] = a(x[i], &slope);
        dx_exact[i] = dy[i] * slope;
    }
    forward(y, x, F);
    backward(dx, dy, x, F);
    backward(x, dy, x, F);
    expect_named(name, "y", y, y_exact, F, ACTIVATION_LIMIT);
    expect_named(name, "dx", dx, dx_exact, F, ACTIVATION_LIMIT);
    expect_named(name, "dx in place", x, dx_exact, F, ACTIVATION_LIMIT);
}

void check_activation(void) {
    for (int F = 1536; F > 20; F -= 1515) {         /* 1536 and 21 */
        check_gated("swiglu", F, silu, DISPATCH(swiglu_row), DISPATCH(swiglu_backward_row));
        check_gated("geglu", F, gelu, DISPATCH(geglu_row), DISPATCH(geglu_backward_row));
        check_gated("reglu2", F, relu_squared, DISPATCH(reglu2_row), DISPATCH(reglu2_backward_row));
        check_gated("clamped_swiglu", F, clamped_silu, DISPATCH(clamped_swiglu_row),
                    DISPATCH(clamped_swiglu_backward_row));
        check_gated("glu", F, sigmoid, DISPATCH(glu_row), DISPATCH(glu_backward_row));
        check_plain("gelu", F, gelu, DISPATCH(gelu_row), DISPATCH(gelu_backward_row));
        check_plain("relu_squared", F, relu_squared, DISPATCH(relu_squared_row), DISPATCH(relu_squared_backward_row));
    }
}
