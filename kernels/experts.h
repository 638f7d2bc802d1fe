/* Products with experts, divided into pieces as pieces.h divides the others. The rows of a batch are sorted by their
 * expert: row r is of token tokens[r], and expert e has the rows from begin[e] to begin[e + 1]. What they make is
 * worked on for some experts at a time: a part. Each of its products has panels (forward) or slices (backward) of
 * columns that are dealt out to threads, over all experts of the part: so one thread owns every element that the rows
 * of several experts are added to, and small experts cost no parallel region. */
#ifndef LORAFAST_EXPERTS_H
#define LORAFAST_EXPERTS_H

#include "pieces.h"

#define EXPERT_PROJECTIONS 2    /* gate and up share an input */

/* The rows of one expert in a part. */
typedef struct {
    int expert, row, n, at;             /* its first row, their number, and the place of the first in the part */
    const gemm_core *core[EXPERT_PROJECTIONS];
    float *packed[EXPERT_PROJECTIONS];
} segment;

/* A product of all experts, with one matrix each. */
typedef struct {
    const gemm_core *core;
    const uint8_t *weight;
    ptrdiff_t expert_bytes, row_bytes;
    int type, precision, N;
    const float *bias;                  /* (E, N) or NULL */
} expert_product;

/* The next segments, TOKENS_AT_ONCE rows in all at most, from *row of *expert on; these move on. Returns their number:
 * 0 at the end. An expert's rows stay together where they fit, so that its matrices are read once. */
static int experts_fill_part(segment *part, const int *begin, int E, int *expert, int *row) {
    int n = 0, at = 0;
    while (*expert < E) {
        int left = begin[*expert + 1] - *row;
        if (left == 0) {
            ++*expert;
            continue;
        }
        if (at > 0 && at + left > TOKENS_AT_ONCE) break;
        left = MIN(left, TOKENS_AT_ONCE);
        part[n++] = (segment){ .expert = *expert, .row = *row, .n = left, .at = at };
        at += left, *row += left;
    }
    return n;
}

static inline int experts_rows(const segment *part, int n) { return part[n - 1].at + part[n - 1].n; }

/* The product of one segment. */
static inline projection experts_projection(const expert_product *product, const segment *s, const gemm_core *core) {
    return (projection){ .core = core, .weight = product->weight + s->expert * product->expert_bytes,
                         .row_bytes = product->row_bytes, .type = product->type, .N = product->N };
}

/* ---- forward ---- */

static panel_plan experts_plan_panels(const expert_product *products, int n_products, int n_threads) {
    projection p[EXPERT_PROJECTIONS] = { { 0 } };
    for (int i = 0; i < n_products; i++) p[i] = (projection){ .core = products[i].core, .N = products[i].N };
    return linear_plan_panels(p, n_products, n_threads);
}

/* Chooses the cores of a part's segments, and where each finds its x packed (NULL: only counts). Floats of it in all. */
static ptrdiff_t experts_place_x(segment *part, int n, const expert_product *products, int n_products, int K,
                                 float *packed) {
    ptrdiff_t size = 0;
    for (segment *s = part; s < part + n; s++)
        for (int i = 0; i < n_products; i++) {
            s->core[i] = linear_forward_core(products[i].type, products[i].precision, s->n);
            if (i > 0 && s->core[i] == s->core[0]) {
                s->packed[i] = s->packed[0];
                continue;
            }
            s->packed[i] = packed + size;
            size += s->core[i]->packed_x(s->n, K);
        }
    return size;
}

/* Packs the segment's rows of x; with `tokens` those of its tokens, which are gathered first. */
static void experts_pack_x(const segment *s, int n_products, const float *x, int K, const int *tokens,
                           float *gathered) {
    if (tokens) {
        gathered += (ptrdiff_t)s->at * K;
        for (int r = 0; r < s->n; r++)
            memcpy(gathered + (ptrdiff_t)r * K, x + (ptrdiff_t)tokens[s->row + r] * K, sizeof(float) * K);
        x = gathered;
    } else x += (ptrdiff_t)s->row * K;
    for (int i = 0; i < n_products; i++) {
        if (i > 0 && s->packed[i] == s->packed[0]) continue;
        for (int tile = 0; tile < linear_tiles(s->core[i], s->n); tile++)
            s->core[i]->pack_x(s->packed[i], x, s->n, K, tile);
    }
}

/* Some columns of a segment's y (rows of N): adds the bias, and with `total` adds them, scaled, to their tokens'. */
static void experts_finish(float *y, const segment *s, int n_rows, int N, const float *bias, float *total,
                           const float *scale, const int *tokens) {
    for (int r = 0; r < s->n; r++, y += N) {
        if (bias)
            for (int j = 0; j < n_rows; j++) y[j] += bias[j];
        if (total) {
            float *out = total + (ptrdiff_t)tokens[s->row + r] * N;
            for (int j = 0; j < n_rows; j++) out[j] += scale[s->row + r] * y[j];
        }
    }
}

/* A panel of the products, of all segments: columns of ys, or by way of the buffer added to those of the total. */
static void experts_forward_panel(const expert_product *products, const panel_plan *plan, int panel,
                                  const segment *part, int n, int K, float *const *ys, float *total,
                                  const float *scale, const int *tokens, float *buffer, float *scratch) {
    const int i = linear_panel_owner(plan, panel), N = products[i].N;
    const int n0 = (panel - plan->first[i]) * plan->rows[i], n_rows = MIN(plan->rows[i], N - n0);
    for (const segment *s = part; s < part + n; s++) {
        projection p = experts_projection(&products[i], s, s->core[i]);
        const float *bias = products[i].bias;
        p.packed = s->packed[i];
        p.y = total ? buffer + (ptrdiff_t)s->at * N : ys[i] + (ptrdiff_t)s->row * N;
        p.core->forward_panel(&p, p.packed, s->n, K, n0, n_rows, scratch);
        experts_finish(p.y + n0, s, n_rows, N, bias ? bias + (ptrdiff_t)s->expert * N + n0 : NULL,
                       total ? total + n0 : NULL, scale, tokens);
    }
}

/* ---- backward ---- */

/* As experts_place_x, of dy and for one product. */
static ptrdiff_t experts_place_dy(segment *part, int n, const expert_product *product, float *packed) {
    ptrdiff_t size = 0;
    for (segment *s = part; s < part + n; s++) {
        s->packed[0] = packed + size;
        size += linear_packed_dy(product->core, s->n, product->N);
    }
    return size;
}

/* Packs a chunk of the segment's dy; where the output is a sum over rows, those of its tokens, gathered first. */
static void experts_pack_dy(const segment *s, const expert_product *product, const float *dy, const int *tokens,
                            int is_sum, int chunk, float *gathered) {
    const int N = product->N;
    if (is_sum) {
        gathered += (ptrdiff_t)s->at * N;
        for (int r = 0; chunk == 0 && r < s->n; r++)
            memcpy(gathered + (ptrdiff_t)r * N, dy + (ptrdiff_t)tokens[s->row + r] * N, sizeof(float) * N);
        dy = gathered;
    } else dy += (ptrdiff_t)s->row * N;
    if (product->core->pack_dy)
        for (int tile = 0; tile < linear_tiles(product->core, s->n); tile++)
            product->core->pack_dy(s->packed[0], dy, s->n, N, chunk * DY_COLUMNS, linear_dy_columns(N, chunk), tile);
}

/* Columns k0 .. of dx of all segments, from a chunk of dy: in place where the output is a sum over rows; otherwise in
 * the buffer, until the last chunk of the last product adds them to their tokens'. */
static void experts_backward_slice(float *dx, int K, const float *dy, const expert_product *product,
                                   const segment *part, int n, const int *tokens, int is_sum, int chunk, int k0,
                                   int n_columns, int is_first, int is_last, float *buffer, float *scratch) {
    const int N = product->N;
    for (const segment *s = part; s < part + n; s++) {
        projection p = experts_projection(product, s, product->core);
        float *rows = is_sum ? dx + (ptrdiff_t)s->row * K : buffer + (ptrdiff_t)s->at * K;
        p.dy = is_sum ? buffer + (ptrdiff_t)s->at * N : dy + (ptrdiff_t)s->row * N;
        if (is_first) linear_clear(rows, K, k0, n_columns, 0, s->n);
        p.core->backward_slice(rows, K, &p, s->packed[0], s->n, chunk * DY_COLUMNS, linear_dy_columns(N, chunk), k0,
                               n_columns, 0, s->n, scratch);
        for (int r = 0; is_last && !is_sum && r < s->n; r++) {
            float *out = dx + (ptrdiff_t)tokens[s->row + r] * K;
            for (int j = k0; j < k0 + n_columns; j++) out[j] += rows[(ptrdiff_t)r * K + j];
        }
    }
}

#endif
