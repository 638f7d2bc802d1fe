/* Causal grouped-query attention over packed sequences, forward and backward: attention.pyx with one thread. */
#include <limits.h>
#include <stdio.h>

#include "check.h"
#undef ROUND_UP                 /* both gemm.h and attention.h have them */
#undef MIN
#undef MAX
#include "attention.h"

#define ATTENTION_LIMIT 1e-11
#define ATTENTION_LSE_LIMIT 1e-13

enum { MAX_KEYS = 512 };

/* One query of one head, by the equations: o and lse, and what d_o adds to the gradients. */
static void exact_query(const attention *a, int seq, int query, int head, double *o, double *lse,
                        double *dq, double *dk, double *dv) {
    const int D = a->head_size, Dv = a->value_size, head_kv = head / a->group;
    const int last = attention_n_keys(a, seq) - attention_n_queries(a, seq) + query;
    const int first = last >= a->window ? last - a->window + 1 : 0;
    const ptrdiff_t row = (ptrdiff_t)(a->q_begin[seq] + query) * a->n_head + head;
    double p[MAX_KEYS], slope[MAX_KEYS], sum = a->sinks ? exp(a->sinks[head]) : 0, delta = 0;
    for (int j = first; j <= last; j++) {
        const float *k = a->k + attention_key(a, seq, head_kv, j) * D;
        p[j] = 0;
        for (int d = 0; d < D; d++) p[j] += (double)a->scale * a->q[row * D + d] * k[d];
        const double t = a->soft_cap > 0 ? tanh(p[j] / a->soft_cap) : 0;
        if (a->soft_cap > 0) p[j] = a->soft_cap * t;
        slope[j] = 1 - t * t;
        sum += exp(p[j]);
    }
    lse[row] = log(sum);
    for (int j = first; j <= last; j++) {
        p[j] = exp(p[j]) / sum;
        for (int d = 0; d < Dv; d++) o[row * Dv + d] += p[j] * a->v[attention_key(a, seq, head_kv, j) * Dv + d];
    }
    for (int d = 0; d < Dv; d++) delta += o[row * Dv + d] * a->d_o[row * Dv + d];
    for (int j = first; j <= last; j++) {
        const ptrdiff_t key = attention_key(a, seq, head_kv, j);
        double dp = 0;
        for (int d = 0; d < Dv; d++) {
            dp += (double)a->d_o[row * Dv + d] * a->v[key * Dv + d];
            dv[key * Dv + d] += p[j] * a->d_o[row * Dv + d];
        }
        const double ds = a->scale * p[j] * (dp - delta) * slope[j];
        for (int d = 0; d < D; d++) {
            dq[row * D + d] += ds * a->k[key * D + d];
            dk[key * D + d] += ds * a->q[row * D + d];
        }
    }
}

static void forward(const attention *a, int n_seq) {
    float *scratch = take_floats(attention_forward_scratch(a));
    for (int seq = 0; seq < n_seq; seq++) {
        const int n_rows = attention_n_queries(a, seq) * a->group;
        if (n_rows == a->group) DISPATCH(attention_forward_query)(a, seq, 0, a->n_head, scratch);
        else
            for (int head_kv = 0; head_kv < a->n_head_kv; head_kv++)
                for (int row = 0; row < n_rows; row += ROW_BLOCK)
                    DISPATCH(attention_forward_rows)(a, seq, head_kv, row, MIN(ROW_BLOCK, n_rows - row), scratch);
    }
}

static void backward(const attention *a, int n_seq) {
    float *scratch = take_floats(attention_backward_scratch(a));
    for (int token = 0; token < a->q_begin[n_seq]; token++) DISPATCH(attention_delta)(a, token);
    for (int seq = 0; seq < n_seq; seq++)
        for (int head_kv = 0; head_kv < a->n_head_kv; head_kv++)
            for (int query = 0; query < attention_n_queries(a, seq); query += a->block)
                for (int key = 0; key < attention_n_keys(a, seq); key += a->block)
                    DISPATCH(attention_backward_block)(a, seq, head_kv, query, key, scratch);
}

static void check(const char *name, int n_seq, const int *q_begin, const int *k_begin, int n_head, int n_head_kv,
                  int D, int Dv, int window, float soft_cap, int with_sinks) {
    const int T = q_begin[n_seq], S = k_begin[n_seq];
    const int n_q = T * n_head * D, n_k = S * n_head_kv * D, n_v = S * n_head_kv * Dv;
    const int n_o = T * n_head * Dv, n_lse = T * n_head;
    double *dq_exact, *dk_exact, *dv_exact, *o_exact = take_zeros(n_o), *lse_exact = take_zeros(n_lse);
    float *o = take_floats(n_o), *lse = take_floats(n_lse);
    const attention a = {
        .q = take_random(n_q), .k = take_random(n_k), .v = take_random(n_v),
        .o_out = o, .lse_out = lse, .o = o, .lse = lse, .d_o = take_random(n_o),
        .dq = take_gradient(n_q, &dq_exact), .dk = take_gradient(n_k, &dk_exact), .dv = take_gradient(n_v, &dv_exact),
        .delta = take_floats(n_lse), .sinks = with_sinks ? take_random(n_head) : NULL,
        .q_begin = q_begin, .k_begin = k_begin,
        .n_head = n_head, .n_head_kv = n_head_kv, .group = n_head / n_head_kv, .head_size = D, .value_size = Dv,
        .window = window, .block = KEY_TILE, .scale = 1.5f, .soft_cap = soft_cap,
    };
    for (int seq = 0; seq < n_seq; seq++)
        for (int query = 0; query < attention_n_queries(&a, seq); query++)
            for (int head = 0; head < n_head; head++)
                exact_query(&a, seq, query, head, o_exact, lse_exact, dq_exact, dk_exact, dv_exact);
    forward(&a, n_seq);
    backward(&a, n_seq);

    const struct { const char *name; const float *got; const double *exact; int n; double limit; } results[] = {
        {"o", o, o_exact, n_o, ATTENTION_LIMIT}, {"lse", lse, lse_exact, n_lse, ATTENTION_LSE_LIMIT},
        {"dq", a.dq, dq_exact, n_q, ATTENTION_LIMIT}, {"dk", a.dk, dk_exact, n_k, ATTENTION_LIMIT},
        {"dv", a.dv, dv_exact, n_v, ATTENTION_LIMIT},
    };
    for (int i = 0; i < 5; i++) {
        char what[64];
        snprintf(what, sizeof what, "attention %s, %s", results[i].name, name);
        expect(what, results[i].got, results[i].exact, results[i].n, results[i].limit);
    }
}

void check_attention(void) {
    const int packed[] = {0, 1, 38, 38, 180}, queries[] = {0, 1, 2, 9}, keys[] = {0, 1, 46, 156};
    check("packed sequences", 4, packed, packed, 4, 2, 64, 64, INT_MAX, 0, 0);
    check("odd heads and a window", 4, packed, packed, 3, 1, 13, 21, 50, 0, 0);
    check("after a cache", 3, queries, keys, 4, 2, 20, 12, INT_MAX, 0, 0);
    check("a window after a cache", 3, queries, keys, 2, 2, 32, 64, 33, 0, 0);
    check("soft cap, sinks and a window", 3, queries, keys, 4, 2, 20, 12, 33, 3, 1);
    check("soft cap and sinks", 4, packed, packed, 4, 2, 32, 32, INT_MAX, 3, 1);
}
