/* h = act(gate) up, act being SiLU or GELU in its tanh form: swiglu.pyx with one thread. */
#include "check.h"
#include "simd.h"
#define SIMD_BODY "swiglu_body.h"
#include "simd_foreach.h"

#define SWIGLU_LIMIT 1e-12

/* The activation and its slope. */
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

static void check(int F, int is_gelu) {
    float *gate = take_random(F), *up = take_random(F), *h = take_floats(F);
    const float *dh = take_random(F);
    double *h_exact = take_zeros(F), *dgate_exact, *dup_exact;
    float *dgate = take_gradient(F, &dgate_exact), *dup = take_gradient(F, &dup_exact);
    double *in_place_gate = take_zeros(F), *in_place_up = take_zeros(F);
    for (int i = 0; i < F; i++) {
        gate[i] *= 10;
        double slope;
        const double value = is_gelu ? gelu(gate[i], &slope) : silu(gate[i], &slope);
        h_exact[i] = value * up[i];
        dgate_exact[i] += in_place_gate[i] = dh[i] * up[i] * slope;
        dup_exact[i] += in_place_up[i] = dh[i] * value;
    }
    if (is_gelu) {
        DISPATCH(geglu_row)(h, gate, up, F);
        DISPATCH(geglu_backward_row)(dgate, dup, dh, gate, up, F);
        DISPATCH(geglu_overwrite_row)(gate, up, dh, gate, up, F);
    } else {
        DISPATCH(swiglu_row)(h, gate, up, F);
        DISPATCH(swiglu_backward_row)(dgate, dup, dh, gate, up, F);
        DISPATCH(swiglu_overwrite_row)(gate, up, dh, gate, up, F);
    }
    expect(is_gelu ? "geglu h" : "swiglu h", h, h_exact, F, SWIGLU_LIMIT);
    expect(is_gelu ? "geglu dgate" : "swiglu dgate", dgate, dgate_exact, F, SWIGLU_LIMIT);
    expect(is_gelu ? "geglu dup" : "swiglu dup", dup, dup_exact, F, SWIGLU_LIMIT);
    expect(is_gelu ? "geglu dgate in place" : "swiglu dgate in place", gate, in_place_gate, F, SWIGLU_LIMIT);
    expect(is_gelu ? "geglu dup in place" : "swiglu dup in place", up, in_place_up, F, SWIGLU_LIMIT);
}

void check_swiglu(void) {
    for (int is_gelu = 0; is_gelu < 2; is_gelu++) {
        check(1536, is_gelu);
        check(21, is_gelu);
    }
}
