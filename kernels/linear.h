/* The cores, and which of them computes with a weight on the running machine. */
#ifndef LORAFAST_LINEAR_H
#define LORAFAST_LINEAR_H

#include "simd.h"
#include "gemm.h"

#define TOKENS_AT_ONCE 512      /* tokens per pass over the weights: bounds packing buffers, keeps partial sums in cache */
#define DY_COLUMNS 4096         /* columns of dy packed at a time, for the same reason: a multiple of every core's chunk */

#define SIMD_BODY "linear_body.h"
#include "simd_foreach.h"
#include "gemm_amx.h"

#if SIMD_X86
static void amx_core_pack_x(float *packed, const float *x, int T, int K, int tile) {
    amx_pack_tokens((bf16 *)packed, x, T, K, tile);
}
static void amx_core_forward_panel(const projection *p, const float *packed, int T, int K, int n0, int n_rows, float *scratch) {
    amx_forward_panel(p, (const bf16 *)packed, T, K, n0, n_rows, scratch);
}
static void amx_core_pack_dy(float *packed, const float *dy, int T, int N, int n0, int n, int tile) {
    amx_pack_dy((bf16 *)packed, dy, T, N, n0, n, tile);
}
static void amx_core_backward_slice(float *dx, int K, const projection *p, const float *packed, int n0, int n, int k0, int n_columns,
                                    int t0, int t1, float *scratch) {
    amx_backward_slice(dx, K, p, (const bf16 *)packed, n0, n, k0, n_columns, t0, t1, scratch);
}
static const gemm_core amx_core = {
    .token_tile = 32, .panel_rows = AMX_ROWS, .panel_unit = 32, .slice_columns = AMX_COLUMNS,
    .packed_x = amx_packed_floats, .packed_dy = amx_packed_floats,
    .forward_scratch = amx_forward_scratch, .backward_scratch = amx_backward_scratch,
    .pack_x = amx_core_pack_x, .forward_panel = amx_core_forward_panel,
    .pack_dy = amx_core_pack_dy, .backward_slice = amx_core_backward_slice,
};
#endif

static const gemm_core *linear_core(int type) {
#if SIMD_X86
    if (simd_isa() == ISA_AMX) return &amx_core;
#endif
    return DISPATCH(core_for)(type);
}

/* For y alone there is one more, for few tokens. */
static const gemm_core *linear_forward_core(int type, int T) {
    return T <= GEMV_TOKENS ? DISPATCH(core_for_few)() : linear_core(type);
}

/* Rows of W a panel, for N rows in all. As many panels as divide evenly among the threads, so that none waits for
 * another. */
static int linear_panel_rows(const gemm_core *core, int N, int n_threads) {
    const int panels = ROUND_UP((N + core->panel_rows - 1) / core->panel_rows, 2 * n_threads);
    return MIN(core->panel_rows, ROUND_UP((N + panels - 1) / panels, core->panel_unit));
}

/* Columns of W a slice, which starts at a block boundary: wide, since dy passes by once for each slice, but as many
 * slices as divide evenly among the threads. */
static int linear_slice_columns(const gemm_core *core, int K, int block, int n_threads) {
    const int slices = ROUND_UP((K + core->slice_columns - 1) / core->slice_columns, n_threads);
    return MIN(core->slice_columns, ROUND_UP((K + slices - 1) / slices, MAX(block, 32)));
}

/* dx[t0 .. t1][k0 .. k0+n_columns] = 0. */
static void linear_clear(float *dx, int K, int k0, int n_columns, int t0, int t1) {
    for (ptrdiff_t t = t0; t < t1; t++) memset(dx + t * K + k0, 0, sizeof(float) * n_columns);
}

static void linear_add_low_rank(float *dx, int K, const projection *p, int n_projections, int k0, int n_columns, int t0, int t1) {
    DISPATCH(add_low_rank_columns)(dx, K, p, n_projections, k0, n_columns, t0, t1);
}

#endif
