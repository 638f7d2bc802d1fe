/* The cores, and which of them computes with a weight on the running machine. */
#ifndef LORAFAST_LINEAR_H
#define LORAFAST_LINEAR_H

#include "simd.h"
#include "gemm.h"

/* What activations and gradients are rounded to before they meet quantised weights: not at all, to 16 bits, to 8. */
enum { PRECISION_FLOAT32, PRECISION_INT16, PRECISION_INT8 };

#define TOKENS_AT_ONCE 512      /* tokens a pass over the weights: bounds packed x and dy, keeps sums in cache */
#define DY_COLUMNS 4096         /* columns of dy packed at a time, likewise: a multiple of the cores' chunks of rows */

#define SIMD_BODY "linear_body.h"
#include "simd_foreach.h"
#include "gemm_amx.h"

/* The core for weights of a type in a precision, which a float type does not ask for. */
static const gemm_core *linear_core(int type, int precision) {
#if SIMD_X86
    if (simd_isa() == ISA_AMX && precision != PRECISION_FLOAT32 && !ggml_is_float(type))
        return precision == PRECISION_INT8 ? &amx_core_1 : &amx_core_2;
#endif
    return DISPATCH(core_for)(type, precision);
}

/* Few tokens have a core of their own in forward. */
static const gemm_core *linear_forward_core(int type, int precision, int T) {
    return T <= GEMV_TOKENS ? DISPATCH(core_for_few)(type, precision) : linear_core(type, precision);
}

/* Rows of W a panel, for N rows in all: as many panels as divide evenly among the threads, so that none waits. */
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

/* dx[t0 .. t1][k0 .. k0+n_columns] += the rank-R updates of all projections. */
static void linear_add_low_rank(float *dx, int K, const projection *p, int n_projections, int k0, int n_columns,
                                int t0, int t1) {
    DISPATCH(add_low_rank_columns)(dx, K, p, n_projections, k0, n_columns, t0, t1);
}

#endif
