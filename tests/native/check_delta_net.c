/* The gated delta rule: delta_net.pyx with one thread, against the recurrence row by row. */
#include "check.h"
#include "delta_net.h"

#define DELTA_NET_LIMIT 1e-11

static double exact_dot(const double *S, const float *k, int D, int DV, int j) {
    double sum = 0;
    for (int i = 0; i < D; i++) sum += S[i * DV + j] * k[i];
    return sum;
}

/* One head of keys and of values, T rows: o, and the gradients of q, k, v, g and beta. */
typedef struct { double *o, *dq, *dk, *dv, *dg, *dbeta; } exact_results;

static exact_results exact_of(const delta_net *a, int T) {
    const int D = a->D, DV = a->DV;
    double *S = take_zeros((T + 1) * D * DV), *dS = take_zeros(D * DV), *errors = take_zeros(T * DV);
    exact_results r = {take_zeros(T * DV), take_zeros(T * D), take_zeros(T * D), take_zeros(T * DV), take_zeros(T),
                       take_zeros(T)};
    for (int t = 0; t < T; t++) {
        double *before = S + t * D * DV, *after = before + D * DV;
        for (int i = 0; i < D * DV; i++) after[i] = before[i] * exp(a->g[t]);
        for (int j = 0; j < DV; j++) errors[t * DV + j] = a->v[t * DV + j] - exact_dot(after, a->k + t * D, D, DV, j);
        for (int i = 0; i < D; i++)
            for (int j = 0; j < DV; j++) after[i * DV + j] += a->k[t * D + i] * a->beta[t] * errors[t * DV + j];
        for (int j = 0; j < DV; j++) r.o[t * DV + j] = exact_dot(after, a->q + t * D, D, DV, j);
    }
    for (int t = T; t-- > 0;) {
        const double *before = S + t * D * DV, *after = before + D * DV, decay = exp(a->g[t]);
        const float *q = a->q + t * D, *k = a->k + t * D, *d_o = a->d_o + t * DV;
        for (int i = 0; i < D; i++)
            for (int j = 0; j < DV; j++) {
                r.dq[t * D + i] += after[i * DV + j] * d_o[j];
                dS[i * DV + j] += (double)q[i] * d_o[j];
            }
        for (int j = 0; j < DV; j++) {
            const double d_delta = exact_dot(dS, k, D, DV, j), error = errors[t * DV + j];
            r.dbeta[t] += d_delta * error;
            r.dv[t * DV + j] = a->beta[t] * d_delta;
            for (int i = 0; i < D; i++) {
                r.dk[t * D + i] += dS[i * DV + j] * a->beta[t] * error - decay * before[i * DV + j] * r.dv[t * DV + j];
                dS[i * DV + j] -= k[i] * r.dv[t * DV + j];
                r.dg[t] += dS[i * DV + j] * decay * before[i * DV + j];
                dS[i * DV + j] *= decay;
            }
        }
    }
    return r;
}

static void check(int T, int D, int DV) {
    const int begin[2] = {0, T};
    float *k = take_random(T * D), *g = take_random(T), *beta = take_random(T), *scratch;
    for (int t = 0; t < T; t++) {
        double square = 0;
        for (int i = 0; i < D; i++) square += k[t * D + i] * k[t * D + i];
        for (int i = 0; i < D; i++) k[t * D + i] /= sqrt(square);
        g[t] = -fabsf(g[t]), beta[t] = fabsf(beta[t]);
    }
    delta_net a = {.q = take_random(T * D), .k = k, .v = take_random(T * DV), .g = g, .beta = beta,
                   .d_o = take_random(T * DV), .o = take_floats(T * DV), .dq = take_floats(T * D),
                   .dk = take_floats(T * D), .dv = take_floats(T * DV), .dg = take_floats(T), .dbeta = take_floats(T),
                   .begin = begin, .n_head_k = 1, .n_head_v = 1, .D = D, .DV = DV};
    const exact_results exact = exact_of(&a, T);
    scratch = take_floats(delta_forward_scratch(&a));
    DISPATCH(delta_forward)(&a, 0, 0, scratch);
    scratch = take_floats(delta_backward_scratch(&a, T));
    DISPATCH(delta_backward)(&a, 0, 0, scratch);
    expect("delta_net o", a.o, exact.o, T * DV, DELTA_NET_LIMIT);
    expect("delta_net dq", a.dq, exact.dq, T * D, DELTA_NET_LIMIT);
    expect("delta_net dk", a.dk, exact.dk, T * D, DELTA_NET_LIMIT);
    expect("delta_net dv", a.dv, exact.dv, T * DV, DELTA_NET_LIMIT);
    expect("delta_net dg", a.dg, exact.dg, T, DELTA_NET_LIMIT);
    expect("delta_net dbeta", a.dbeta, exact.dbeta, T, DELTA_NET_LIMIT);
}

void check_delta_net(void) {
    check(150, 24, 40);
    check(3, 5, 7);
}
