/* Picks the core for the running machine. linear.pyx sees one set of functions, whatever computes. */
#ifndef LORAFAST_LINEAR_H
#define LORAFAST_LINEAR_H

#include "simd.h"
#include "gemm.h"

#define SIMD_BODY "linear_body.h"
#include "simd_foreach.h"
#include "gemm_amx.h"

#define TOKENS_AT_ONCE 512      /* tokens per pass over the weights: bounds packing buffers and keeps partial sums in cache */
#define DY_COLUMNS 4096         /* columns of dy packed at a time, for the same reason */

#if SIMD_X86
#define USE_AMX (simd_isa() == ISA_AMX)
#else
#define USE_AMX 0
#define amx_packed_floats(T, K) 0
#define amx_forward_scratch(T) 0
#define amx_backward_scratch(T) 0
#define amx_pack_tokens(...)
#define amx_forward_panel(...)
#define amx_pack_dy(...)
#define amx_backward_slice(...)
#endif

/* Sizes in floats: packed x or dy (shared), and scratch (a thread). */
static ptrdiff_t linear_packed_x(int T, int K) { return USE_AMX ? amx_packed_floats(T, K) : DISPATCH(f32_packed_floats)(T, K); }
static ptrdiff_t linear_packed_dy(int T, int N) { return USE_AMX ? amx_packed_floats(T, MIN(N, DY_COLUMNS)) : 0; }
static ptrdiff_t linear_scratch_forward(int T) { return USE_AMX ? amx_forward_scratch(T) : DISPATCH(f32_forward_scratch)(T); }
static ptrdiff_t linear_scratch_backward(int T) { return USE_AMX ? amx_backward_scratch(T) : DISPATCH(f32_backward_scratch)(); }

static int linear_token_tiles(int T) { return USE_AMX ? ROUND_UP(T, 32) / 32 : DISPATCH(f32_token_tiles)(T); }

/* Rows of W a panel. As many panels as divide evenly among the threads, so that none waits for another. */
static int linear_panel_rows(int N, int n_threads) {
    const int most = USE_AMX ? AMX_ROWS : F32_ROWS, step = USE_AMX ? 32 : 12;
    const int panels = ROUND_UP((N + most - 1) / most, 2 * n_threads);
    return MIN(most, ROUND_UP((N + panels - 1) / panels, step));
}

/* Columns of W a slice. A slice starts at a block boundary. */
static int linear_slice_columns(int K, int block, int n_threads) {
    const int widest = USE_AMX ? AMX_COLUMNS : F32_COLUMNS;
    return MAX(block, MIN(widest, ROUND_UP(ROUND_UP(K, 4 * n_threads) / (4 * n_threads), MAX(block, 32))));
}

static void linear_pack_x(float *packed, const float *x, int T, int K, int tile) {
    if (USE_AMX) amx_pack_tokens((bf16 *)packed, x, T, K, tile);
    else DISPATCH(f32_pack_tokens)(packed, x, T, K, tile);
}
static void linear_forward_panel(const projection *p, const float *packed, int T, int K, int n0, int n_rows, float *scratch) {
    if (USE_AMX) amx_forward_panel(p, (const bf16 *)packed, T, K, n0, n_rows, scratch);
    else DISPATCH(f32_forward_panel)(p, packed, T, K, n0, n_rows, scratch);
}
static void linear_pack_dy(float *packed, const projection *p, int T, int n0, int n, int tile) {
    if (USE_AMX) amx_pack_dy((bf16 *)packed, p->dy, T, p->N, n0, n, tile);
}
static void linear_backward_slice(float *dx, int K, const projection *p, const float *packed, int n0, int n, int k0, int n_columns,
                                  int t0, int t1, float *scratch) {
    if (USE_AMX) amx_backward_slice(dx, K, p, (const bf16 *)packed, n0, n, k0, n_columns, t0, t1, scratch);
    else DISPATCH(f32_backward_slice)(dx, K, p, n0, n, k0, n_columns, t0, t1, scratch);
}
static void linear_add_low_rank(float *dx, int K, const projection *p, int n_projections, int t0, int t1) {
    DISPATCH(add_low_rank_columns)(dx, K, p, n_projections, 0, K, t0, t1);
}

#endif
