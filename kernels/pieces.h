/* How the products of linear.pyx are divided into pieces that threads take one by one: forward by panels of rows of W,
 * backward by slices of its columns. A piece owns the elements it writes, so that threads need not wait for each other
 * and results do not depend on their number. The loops over pieces, with OpenMP, are in linear.pyx; tests/native goes
 * through the pieces in any order. */
#ifndef LORAFAST_PIECES_H
#define LORAFAST_PIECES_H

#include <string.h>

#include "linear.h"

#define MAX_PROJECTIONS 8       /* that share an input */

static inline int linear_tiles(const gemm_core *core, int T) {
    return (T + core->token_tile - 1) / core->token_tile;
}

/* ---- forward ---- */

/* The panels of all projections in one row: projection i has them from first[i] on, of rows[i] rows each. */
typedef struct {
    int first[MAX_PROJECTIONS + 1], rows[MAX_PROJECTIONS];
} panel_plan;

static panel_plan linear_plan_panels(const projection *p, int n, int n_threads) {
    panel_plan plan = { .first = { 0 } };
    int N = 0;
    for (int i = 0; i < n; i++) N += p[i].N;
    for (int i = 0; i < n; i++) {
        plan.rows[i] = linear_panel_rows(p[i].core, N, n_threads);
        plan.first[i + 1] = plan.first[i] + (p[i].N + plan.rows[i] - 1) / plan.rows[i];
    }
    return plan;
}

/* Which projection a panel belongs to. */
static inline int linear_panel_owner(const panel_plan *plan, int panel) {
    int i = 0;
    while (panel >= plan->first[i + 1]) i++;
    return i;
}

/* The first projection with the core of projection i: x is packed once for both. */
static inline int linear_shares_x_with(const projection *p, int i) {
    int j = 0;
    while (p[j].core != p[i].core) j++;
    return j;
}

/* Tells every projection where it finds x packed, from `packed` on (NULL: only counts). Floats of it in all. */
static ptrdiff_t linear_place_x(projection *p, int n, int T, int K, float *packed) {
    ptrdiff_t size = 0;
    for (int i = 0; i < n; i++) {
        const int j = linear_shares_x_with(p, i);
        p[i].packed = j < i ? p[j].packed : packed + size;
        if (j == i) size += p[i].core->packed_x(T, K);
    }
    return size;
}

static void linear_forward_panel(projection *p, const panel_plan *plan, int panel, int T, int K, float *scratch) {
    const int i = linear_panel_owner(plan, panel), n0 = (panel - plan->first[i]) * plan->rows[i];
    p[i].core->forward_panel(&p[i], p[i].packed, T, K, n0, MIN(plan->rows[i], p[i].N - n0), scratch);
}

/* ---- backward ---- */

/* The pieces of one projection's dx: slices of columns, each for all tokens or for `tokens` of them. */
typedef struct {
    int columns, slices, tokens, pieces;
} slice_plan;

static slice_plan linear_plan_slices(const projection *p, int T, int K, int n_threads) {
    slice_plan plan = { .columns = linear_slice_columns(p->core, K, ggml_formats[p->type].block_size, n_threads) };
    int parts = 1;
    plan.slices = (K + plan.columns - 1) / plan.columns;
    /* Where slices do not divide evenly, tokens are dealt out, too, so that no thread waits: each part unpacks W. */
    while (plan.slices * parts % n_threads && plan.slices * parts < 4 * n_threads && T / parts >= 128) parts *= 2;
    plan.tokens = ROUND_UP((T + parts - 1) / parts, 32);
    plan.pieces = plan.slices * ((T + plan.tokens - 1) / plan.tokens);
    return plan;
}

static inline int linear_dy_chunks(int N) { return (N + DY_COLUMNS - 1) / DY_COLUMNS; }
static inline int linear_dy_columns(int N, int chunk) { return MIN(DY_COLUMNS, N - chunk * DY_COLUMNS); }

/* Floats of packed dy; 0 where a core takes it as it lies. */
static inline ptrdiff_t linear_packed_dy(const gemm_core *core, int T, int N) {
    return core->packed_dy ? core->packed_dy(T, MIN(N, DY_COLUMNS)) : 0;
}

/* One tile of tokens of a chunk of dy. Columns are counted from the first one of the matrix that this is a piece of. */
static void linear_pack_dy(float *packed, const projection *p, int T, int chunk, int tile) {
    p->core->pack_dy(packed, p->dy - p->first_row, T, p->N, p->first_row + chunk * DY_COLUMNS,
                     linear_dy_columns(p->N, chunk), tile);
}

/* One piece of dx (T, K) += dy W of projection `index` of n, for one chunk of dy. To overwrite dx, the first chunk of
 * the first projection clears the piece before; the last of the last one adds the rank-R updates of all, while the
 * piece is in cache. */
static void linear_backward_piece(float *dx, int K, const projection *all, int n, int index, const slice_plan *plan,
                                  int piece, int T, int chunk, int overwrite, const float *packed, float *scratch) {
    const projection *p = &all[index];
    const int k0 = piece % plan->slices * plan->columns, n_columns = MIN(plan->columns, K - k0);
    const int t0 = piece / plan->slices * plan->tokens, t1 = MIN(T, t0 + plan->tokens);
    if (overwrite && index == 0 && chunk == 0) linear_clear(dx, K, k0, n_columns, t0, t1);
    p->core->backward_slice(dx, K, p, packed, T, chunk * DY_COLUMNS, linear_dy_columns(p->N, chunk), k0, n_columns,
                            t0, t1, scratch);
    if (index == n - 1 && chunk == linear_dy_chunks(p->N) - 1)
        linear_add_low_rank(dx, K, all, n, k0, n_columns, t0, t1);
}

/* On to the next T tokens. */
static void linear_next_tokens(projection *p, int n, int T) {
    for (int i = 0; i < n; i++) {
        if (p[i].y) p[i].y += (ptrdiff_t)T * p[i].N;
        if (p[i].residual) p[i].residual += (ptrdiff_t)T * p[i].N;
        if (p[i].dy) p[i].dy += (ptrdiff_t)T * p[i].N;
        if (p[i].R) p[i].c += (ptrdiff_t)T * p[i].R;
    }
}

#endif
