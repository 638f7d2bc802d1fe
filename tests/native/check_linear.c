/* y = x W^T + c v + residual and dx += dy W + c v, for every weight type: the loops of linear.pyx without threads, over
 * the pieces as they are cut for any number of them, and from the last to the first. */
#include <stdio.h>

#include "check.h"
#include "pieces.h"
#include "simd.h"

/* The limits of tests/kernels/test_linear.py. */
#define FLOAT32_LIMIT 1e-11
#define INT16_LIMIT 5e-8
#define INT8_LIMIT 5e-4
#define BFLOAT16_LIMIT 5e-5             /* AMX in int8 and in int16 */
#define BFLOAT16_PIECES_LIMIT 5e-10

/* By what the core says that it makes products of; those for few tokens are no worse than int16. */
static double limit_of(int type, int precision, const gemm_core *core) {
    if (precision == PRECISION_FLOAT32 || ggml_is_float(type)) return FLOAT32_LIMIT;
    if (!core->arithmetic) return INT16_LIMIT;
    if (!strcmp(core->arithmetic, "int8")) return INT8_LIMIT;
    if (!strcmp(core->arithmetic, "bfloat16")) return BFLOAT16_LIMIT;
    return !strcmp(core->arithmetic, "bfloat16 pieces") ? BFLOAT16_PIECES_LIMIT : INT16_LIMIT;
}

static void forward(projection *p, int precision, const float *x, int T, int K, int n_threads) {
    p->core = linear_forward_core(p->type, precision, T);
    const panel_plan plan = linear_plan_panels(p, 1, n_threads);
    float *packed = take_floats(linear_place_x(p, 1, T, K, NULL)), *scratch = take_floats(p->core->forward_scratch(T));
    linear_place_x(p, 1, T, K, packed);
    for (int tile = linear_tiles(p->core, T); tile-- > 0;) p->core->pack_x(packed, x, T, K, tile);
    for (int panel = plan.first[1]; panel-- > 0;) linear_forward_panel(p, &plan, panel, T, K, scratch);
}

static void backward(projection *p, int precision, float *dx, int T, int K, int n_threads) {
    p->core = linear_core(p->type, precision);
    const slice_plan plan = linear_plan_slices(p, T, K, n_threads);
    float *packed = take_floats(linear_packed_dy(p->core, T, p->N)), *scratch = take_floats(p->core->backward_scratch(T));
    for (int chunk = 0; chunk < linear_dy_chunks(p->N); chunk++) {
        for (int tile = p->core->pack_dy ? linear_tiles(p->core, T) : 0; tile-- > 0;)
            linear_pack_dy(packed, p, T, chunk, tile);
        for (int piece = plan.pieces; piece-- > 0;)
            linear_backward_piece(dx, K, p, 1, 0, &plan, piece, T, chunk, 0, packed, scratch);
    }
}

static void check_in(int precision, int type, int T, int N, int K) {
    enum { R = 3 };
    const ggml_format *format = &ggml_formats[type];
    const uint8_t *weight = take_blocks(type, N, K);
    const ptrdiff_t row_bytes = (ptrdiff_t)K / format->block_size * format->type_size;
    const float *x = take_random(T * K), *dy = take_random(T * N), *residual = take_random(T * N);
    const float *c = take_random(T * R), *v = take_random(R * N), *A = take_random(R * K);
    double *W = take_zeros(N * K), *y_exact = take_zeros(T * N), *dx_exact;
    float *y = take_floats(T * N), *dx = take_gradient(T * K, &dx_exact), *before = take_floats(T * K);
    memcpy(before, dx, sizeof(float) * T * K);

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
    forward(&p, precision, x, T, K, 1);
    snprintf(what, sizeof what, "linear forward  %s in %s %d x %d x %d", type_names[type], in, T, N, K);
    expect(what, y, y_exact, T * N, limit_of(type, precision, p.core));
    p.v = A;
    backward(&p, precision, dx, T, K, 1);
    snprintf(what, sizeof what, "linear backward %s in %s %d x %d x %d", type_names[type], in, T, N, K);
    expect(what, dx, dx_exact, T * K, limit_of(type, precision, p.core));

    /* The same bits as with pieces for seven threads. */
    enum { N_THREADS = 7 };
    float *again = take_floats(T * MAX(N, K));
    p.y = again, p.v = v;
    forward(&p, precision, x, T, K, N_THREADS);
    snprintf(what, sizeof what, "linear forward  %s in %s, %d threads", type_names[type], in, N_THREADS);
    expect_bits(what, again, y, T * N);
    memcpy(again, before, sizeof(float) * T * K);
    p.v = A;
    backward(&p, precision, again, T, K, N_THREADS);
    snprintf(what, sizeof what, "linear backward %s in %s, %d threads", type_names[type], in, N_THREADS);
    expect_bits(what, again, dx, T * K);

#if SIMD_NEON
    /* And as with dotprod, whose sums of bytes are as exact. */
    if (simd_isa() != ISA_I8MM || strcmp(p.core->arithmetic, "int8")) return;
    setenv("LORAFAST_ISA", "dotprod", 1);
    p.v = v;
    forward(&p, precision, x, T, K, 1);
    snprintf(what, sizeof what, "linear forward  %s, i8mm's result", type_names[type]);
    expect_bits(what, again, y, T * N);
    memcpy(again, before, sizeof(float) * T * K);
    p.v = A;
    backward(&p, precision, again, T, K, 1);
    snprintf(what, sizeof what, "linear backward %s, i8mm's result", type_names[type]);
    expect_bits(what, again, dx, T * K);
    setenv("LORAFAST_ISA", "i8mm", 1);
#endif
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
