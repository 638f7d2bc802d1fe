/* y = x W^T + c v + residual and dx += dy W + c v, for every weight type: the loops of linear.pyx with one thread. */
#include <stdio.h>

#include "check.h"
#include "linear.h"

/* The limits of tests/kernels/test_linear.py. */
#define FLOAT32_LIMIT 1e-11
#define INT16_LIMIT 5e-8
#define INT8_LIMIT 1e-3
#define BFLOAT16_PIECES_LIMIT 5e-10     /* AMX */

static double limit_of(int type, int precision) {
    if (precision == PRECISION_FLOAT32 || ggml_is_float(type)) return FLOAT32_LIMIT;
    if (precision == PRECISION_INT8) return INT8_LIMIT;
    return strcmp(simd_isa_name(simd_isa()), "amx") ? INT16_LIMIT : BFLOAT16_PIECES_LIMIT;
}

static void forward(projection *p, int precision, const float *x, int T, int K) {
    const gemm_core *core = p->core = linear_forward_core(p->type, precision, T);
    float *packed = take_floats(core->packed_x(T, K)), *scratch = take_floats(core->forward_scratch(T));
    const int rows = linear_panel_rows(core, p->N, 1);
    for (int tile = 0; tile < ROUND_UP(T, core->token_tile) / core->token_tile; tile++)
        core->pack_x(packed, x, T, K, tile);
    p->packed = packed;
    for (int n0 = 0; n0 < p->N; n0 += rows) core->forward_panel(p, packed, T, K, n0, MIN(rows, p->N - n0), scratch);
}

static void backward(projection *p, int precision, float *dx, int T, int K) {
    const gemm_core *core = p->core = linear_core(p->type, precision);
    float *packed = core->pack_dy ? take_floats(core->packed_dy(T, p->N)) : NULL;
    float *scratch = take_floats(core->backward_scratch(T));
    const int columns = linear_slice_columns(core, K, ggml_formats[p->type].block_size, 1);
    for (int n0 = 0; n0 < p->N; n0 += DY_COLUMNS) {
        const int n = MIN(DY_COLUMNS, p->N - n0);
        if (core->pack_dy)
            for (int tile = 0; tile < ROUND_UP(T, core->token_tile) / core->token_tile; tile++)
                core->pack_dy(packed, p->dy, T, p->N, n0, n, tile);
        for (int k0 = 0; k0 < K; k0 += columns)
            core->backward_slice(dx, K, p, packed, T, n0, n, k0, MIN(columns, K - k0), 0, T, scratch);
    }
    linear_add_low_rank(dx, K, p, 1, 0, K, 0, T);
}

static void check_in(int precision, int type, int T, int N, int K) {
    enum { R = 3 };
    const ggml_format *format = &ggml_formats[type];
    const uint8_t *weight = take_blocks(type, N, K);
    const ptrdiff_t row_bytes = (ptrdiff_t)K / format->block_size * format->type_size;
    const float *x = take_random(T * K), *dy = take_random(T * N), *residual = take_random(T * N);
    const float *c = take_random(T * R), *v = take_random(R * N), *A = take_random(R * K);
    double *W = take_zeros(N * K), *y_exact = take_zeros(T * N), *dx_exact;
    float *y = take_floats(T * N), *dx = take_gradient(T * K, &dx_exact);

    for (int n = 0; n < N; n++)
        for (int k = 0; k < K; k++) W[n * K + k] = block_value(type, weight + n * row_bytes, k);
    for (int t = 0; t < T; t++) {
        for (int n = 0; n < N; n++) {
            double sum = residual[t * N + n];
            for (int r = 0; r < R; r++) sum += (double)c[t * R + r] * v[r * N + n];
            for (int k = 0; k < K; k++) {
                sum += x[t * K + k] * W[n * K + k];
                dx_exact[t * K + k] += dy[t * N + n] * W[n * K + k];
            }
            y_exact[t * N + n] = sum;
        }
        for (int r = 0; r < R; r++)
            for (int k = 0; k < K; k++) dx_exact[t * K + k] += (double)c[t * R + r] * A[r * K + k];
    }

    projection p = { .weight = weight, .row_bytes = row_bytes, .type = type, .N = N, .y = y,
                     .residual = residual, .dy = dy, .R = R, .c = c, .v = v };
    char what[96];
    const char *const in = (const char *const[]){ "float32", "int16", "int8" }[precision];
    forward(&p, precision, x, T, K);
    snprintf(what, sizeof what, "linear forward  %s in %s %d x %d x %d", type_names[type], in, T, N, K);
    expect(what, y, y_exact, T * N, limit_of(type, precision));
    p.v = A;
    backward(&p, precision, dx, T, K);
    snprintf(what, sizeof what, "linear backward %s in %s %d x %d x %d", type_names[type], in, T, N, K);
    expect(what, dx, dx_exact, T * K, limit_of(type, precision));
}

static void check(int type, int T, int N, int K) {
    check_in(PRECISION_FLOAT32, type, T, N, K);
    check_in(PRECISION_INT16, type, T, N, K);
    check_in(PRECISION_INT8, type, T, N, K);
}

void check_linear(void) {
    for (int type = 0; type < GGML_N_TYPES; type++)
        if (ggml_is_known(type)) check(type, 37, 101, 768), check(type, 3, 5, 512);
    check(GGML_Q8_0, 1, 1, 32);
    check(GGML_Q8_0, 5, 7, 96);
    check(GGML_Q5_1, 13, 290, 288);
    check(GGML_Q6_K, 2, 259, 256);
    check(GGML_F16, 3, 97, 515);
    check(GGML_F32, 1, 1, 1);
    check(GGML_BF16, 34, 5, 31);
}
