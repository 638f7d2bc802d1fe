/* The work items of attention, forward and backward; see attention.h. Compiled once per instruction set. */
#include "attention_tile.h"
#include "attention_query_body.h"

/* --- which row sees which key --- */

typedef struct {
    int n_rows, n_lanes;                    /* rows in use, and rounded up to whole vectors */
    int first[ROW_TILE], last[ROW_TILE];    /* the keys that each row sees, both included; past n_rows as the last */
    int key, n_keys;                        /* the key tile at hand: key .. key + n_keys */
    int masked;                             /* some row doesn't see some key, counting the padding of the last strip */
    FN(span) keys[ROW_TILE / STRIP];        /* for each strip of rows: which keys of the tile some row of it sees */
    FN(span) rows[KEY_TILE / STRIP];        /* for each strip of keys: which rows see some key of it */
} FN(view);

static void FN(view_rows)(FN(view) *w, const attention *a, int seq, int row, int n_rows) {
    const int earlier = attention_n_keys(a, seq) - attention_n_queries(a, seq);
    w->n_rows = n_rows;
    w->n_lanes = ROUND_UP(n_rows, VF_WIDTH);
    for (int i = 0; i < ROW_TILE; i++) {
        w->last[i] = earlier + (row + MIN(i, n_rows - 1)) / a->group;
        w->first[i] = w->last[i] >= a->window ? w->last[i] - a->window + 1 : 0;
    }
}

/* Looks at the keys key .. key + n_keys, or as many of them as some row sees; false if that is none. */
static int FN(view_keys)(FN(view) *w, int key, int n_keys) {
    n_keys = MIN(n_keys, w->last[ROW_TILE - 1] + 1 - key);
    if (n_keys <= 0 || key + n_keys <= w->first[0]) return 0;
    w->key = key;
    w->n_keys = n_keys;
    w->masked = key + ROUND_UP(n_keys, STRIP) - 1 > w->last[0] || key < w->first[ROW_TILE - 1];
    for (int i = 0; i < w->n_rows; i += STRIP) {
        const int begin = MAX(w->first[i] - key, 0), end = MIN(w->last[i + STRIP - 1] + 1 - key, n_keys);
        w->keys[i / STRIP] = (FN(span)){begin, MAX(begin, end)};
    }
    for (int j = 0, begin = 0, end = 0; j < n_keys; j += STRIP) {
        while (begin < w->n_rows && w->last[begin] < key + j) begin++;
        while (end < w->n_rows && w->first[end] < key + j + STRIP) end++;
        w->rows[j / STRIP] = (FN(span)){begin, MAX(begin, end)};
    }
    return 1;
}

/* For key j of the tile and the rows from lane on. */
VF_INLINE vi FN(sees)(const FN(view) *w, int j, int lane) {
    vi first, last;
    memcpy(&first, w->first + lane, sizeof first);
    memcpy(&last, w->last + lane, sizeof last);
    const vi key = (vi){0} + (w->key + j);
    return (key >= first) & (key <= last);
}

/* --- packing --- */

/* Rows of n floats, stride apart, padded with zeros, with rows of zeros up to a whole strip. */
static void FN(pack)(float *to, const float *from, ptrdiff_t stride, int n_rows, int n) {
    for (int i = 0; i < n_rows; i++) FN(pack_row)(to + i * PADDED(n), from + i * stride, n);
    memset(to + n_rows * PADDED(n), 0, sizeof(float) * PADDED(n) * (ROUND_UP(n_rows, STRIP) - n_rows));
}

/* n_rows rows of x (q or do, n floats each), from row on, as columns: to[d][lane] = factor x[row + lane][d], with zeros
 * in the lanes past n_rows. */
static void FN(pack_columns)(float *to, const attention *a, int seq, int head_kv, int row, int n_rows, const float *x,
                             int n, float factor) {
    for (int i = 0; i < n_rows; i += VF_WIDTH)
        for (int d = 0; d < n; d += VF_WIDTH) {
            const int width = MIN(VF_WIDTH, n - d);
            vf square[VF_WIDTH];
            for (int r = 0; r < VF_WIDTH; r++) {
                const float *x_r = x + attention_row(a, seq, head_kv, row + i + r) * n + d;
                if (i + r >= n_rows) square[r] = vf_set1(0);
                else square[r] = factor * (width == VF_WIDTH ? vf_load(x_r) : vf_load_part(x_r, width));
            }
            vf_transpose(square);
            for (int r = 0; r < width; r++) vf_store(to + (d + r) * ROW_TILE + i, square[r]);
        }
}

/* Part `part` of `parts` of fetching the keys and values of key .. key + n_keys. */
VF_INLINE void FN(prefetch_keys)(const attention *a, int seq, int head_kv, int key, int n_keys, int part, int parts) {
    const ptrdiff_t index = attention_key(a, seq, head_kv, key);
    const int bytes = sizeof(float) * a->head_size, v_bytes = sizeof(float) * a->value_size;
    prefetch_rows(a->k + index * a->head_size, (ptrdiff_t)a->n_head_kv * bytes, n_keys, bytes, part, parts);
    prefetch_rows(a->v + index * a->value_size, (ptrdiff_t)a->n_head_kv * v_bytes, n_keys, v_bytes, part, parts);
}

/* The same of rows row .. row + n_rows of x (q, o or their like, n floats each): a query's heads of a group lie together. */
VF_INLINE void FN(prefetch_queries)(const attention *a, const float *x, int n, int seq, int head_kv, int row, int n_rows,
                                    int part, int parts) {
    const int first = row / a->group, n_queries = n_rows ? (row + n_rows - 1) / a->group + 1 - first : 0;
    prefetch_rows(x + attention_row(a, seq, head_kv, first * a->group) * n, sizeof(float) * n * a->n_head, n_queries,
                  sizeof(float) * n * a->group, part, parts);
}

/* --- forward --- */

/* The scores of a tile, in units of log 2, under the soft cap. */
static void FN(cap_scores)(float *s, float soft_cap, const FN(view) *w) {
    for (int j = 0; j < ROUND_UP(w->n_keys, 2); j++)
        for (int i = 0; i < w->n_lanes; i += VF_WIDTH) {
            float *s_ji = s + j * ROW_TILE + i;
            vf_store(s_ji, vf_soft_cap(vf_load(s_ji), soft_cap * (float)M_LOG2E));
        }
}

/* One key tile of the online softmax: scores, in units of log 2, become probabilities relative to the new running
 * maximum. decay = 2^(old maximum - new maximum) is what sums over earlier keys have to be multiplied with. */
static void FN(online_softmax)(float *s, float *maximum, float *sum, float *decay, const FN(view) *w) {
    const int n_keys = ROUND_UP(w->n_keys, 2);
    for (int i = 0; i < w->n_lanes; i += VF_WIDTH) {
        if (w->masked)
            for (int j = 0; j < n_keys; j++) {
                float *s_ji = s + j * ROW_TILE + i;
                vf_store(s_ji, vf_select(FN(sees)(w, j, i), vf_load(s_ji), vf_set1(-INFINITY)));
            }
        const vf before = vf_load(maximum + i);
        vf even = before, odd = before;                 /* two chains, to hide the latency of the maximum */
        for (int j = 0; j < n_keys; j += 2) {
            even = vf_max(even, vf_load(s + j * ROW_TILE + i));
            odd = vf_max(odd, vf_load(s + (j + 1) * ROW_TILE + i));
        }
        const vf now = vf_max(even, odd), shrink = FN(exp2)(before - now);
        vf total = vf_set1(0);
        for (int j = 0; j < n_keys; j++) {
            const vf p = FN(exp2)(vf_load(s + j * ROW_TILE + i) - now);
            vf_store(s + j * ROW_TILE + i, p);
            total += p;
        }
        vf_store(maximum + i, now);
        vf_store(decay + i, shrink);
        vf_store(sum + i, shrink * vf_load(sum + i) + total);
    }
}

/* Rows row .. row + n_rows (at most ROW_BLOCK) of one sequence and kv head. */
static void FN(attention_forward_rows)(const attention *a, int seq, int head_kv, int row, int n_rows, float *scratch) {
    const int d = a->head_size, dv = a->value_size, d_padded = PADDED(d), dv_padded = PADDED(dv);
    float *q_t = scratch;                               /* (ROW_BLOCK / ROW_TILE, D, ROW_TILE) */
    float *k = q_t + ROW_BLOCK * d_padded;              /* (KEY_TILE, D) */
    float *v = k + KEY_TILE * d_padded;                 /* (KEY_TILE, Dv) */
    float *o = v + KEY_TILE * dv_padded;                /* (ROW_BLOCK, Dv) */
    float *p = o + ROW_BLOCK * dv_padded;               /* (KEY_TILE, ROW_TILE): scores, then probabilities */
    float maximum[ROW_BLOCK], sum[ROW_BLOCK], decay[ROW_TILE];
    FN(view) views[ROW_BLOCK / ROW_TILE];

    const int n_tiles = ROUND_UP(n_rows, ROW_TILE) / ROW_TILE;
    for (int t = 0; t < n_tiles; t++) {
        const int i = t * ROW_TILE, n = MIN(ROW_TILE, n_rows - i);
        FN(view_rows)(views + t, a, seq, row + i, n);
        FN(pack_columns)(q_t + i * d_padded, a, seq, head_kv, row + i, n, a->q, d, a->scale * (float)M_LOG2E);
    }
    for (int i = 0; i < n_tiles * ROW_TILE; i++)
        FN(begin_softmax)(a, head_kv * a->group + (row + i) % a->group, maximum + i, sum + i);
    memset(o, 0, sizeof(float) * n_tiles * ROW_TILE * dv_padded);

    const int key_end = views[n_tiles - 1].last[ROW_TILE - 1] + 1;
    for (int key = views[0].first[0]; key < key_end; key += KEY_TILE) {
        const int n_keys = MIN(KEY_TILE, key_end - key);
        const ptrdiff_t index = attention_key(a, seq, head_kv, key);
        FN(pack)(k, a->k + index * d, (ptrdiff_t)a->n_head_kv * d, n_keys, d);
        FN(pack)(v, a->v + index * dv, (ptrdiff_t)a->n_head_kv * dv, n_keys, dv);
        const int next = MIN(KEY_TILE, key_end - key - n_keys);
        for (int t = 0; t < n_tiles; t++) {
            FN(view) *w = views + t;
            const int i = t * ROW_TILE;
            FN(prefetch_keys)(a, seq, head_kv, key + n_keys, next, t, n_tiles);
            if (!next)                                  /* where the outputs will go */
                FN(prefetch_queries)(a, a->o_out, dv, seq, head_kv, row + i, MIN(ROW_TILE, n_rows - i), 0, 1);
            if (!FN(view_keys)(w, key, n_keys)) continue;
            FN(product_of_columns)(w->n_keys, w->n_lanes, d, w->rows, p, ROW_TILE, k, d_padded,
                                   q_t + i * d_padded, ROW_TILE);
            if (a->soft_cap > 0) FN(cap_scores)(p, a->soft_cap, w);
            FN(online_softmax)(p, maximum + i, sum + i, decay, w);
            FN(product)(FN(DECAY_AND_ADD), w->n_rows, dv_padded, w->keys, o + i * dv_padded, dv_padded, p, 1, ROW_TILE,
                        v, dv_padded, decay);
        }
    }
    for (int i = 0; i < n_rows; i++) {
        const ptrdiff_t index = attention_row(a, seq, head_kv, row + i);
        FN(scale_row)(a->o_out + index * dv, o + i * dv_padded, 1 / sum[i], dv);
        a->lse_out[index] = maximum[i] * (float)M_LN2 + logf(sum[i]);
    }
}

/* --- backward --- */

/* delta of one token, all heads. */
static void FN(attention_delta)(const attention *a, ptrdiff_t token) {
    const ptrdiff_t dv = a->value_size;
    for (ptrdiff_t i = token * a->n_head; i < (token + 1) * a->n_head; i++)
        a->delta[i] = FN(dot)(a->d_o + i * dv, a->o + i * dv, dv);
}

/* P^T = 2^(S^T - lse) and dS^T = scale P^T (dP^T - delta), in place of S^T and dP^T. With a soft cap, forward had
 * S = c tanh(S0 / c), so dS0 = dS (1 - (S / c)^2). */
VF_INLINE void FN(softmax_backward)(float *s, float *dp, const float *lse, const float *delta, float scale, int capped,
                                    float soft_cap, const FN(view) *w) {
    const float to_cap = capped ? 1 / (soft_cap * (float)M_LOG2E) : 0;
    for (int j = 0; j < ROUND_UP(w->n_keys, STRIP); j++)
        for (int i = 0; i < w->n_lanes; i += VF_WIDTH) {
            float *s_ji = s + j * ROW_TILE + i, *dp_ji = dp + j * ROW_TILE + i;
            vf score = vf_load(s_ji), tanh = vf_set1(0);
            if (capped) {
                tanh = vf_tanh(score * to_cap);
                score = soft_cap * (float)M_LOG2E * tanh;
            }
            vf p = FN(exp2)(score - vf_load(lse + i));
            vf ds = scale * p * (vf_load(dp_ji) - vf_load(delta + i));
            if (capped) ds *= 1 - tanh * tanh;
            if (w->masked) {
                const vi visible = FN(sees)(w, j, i);
                p = vf_select(visible, p, vf_set1(0));
                ds = vf_select(visible, ds, vf_set1(0));
            }
            vf_store(s_ji, p);
            vf_store(dp_ji, ds);
        }
}

/* The gradients that the queries query .. query + block and the keys key .. key + block of one sequence and kv head
 * owe each other. */
static void FN(attention_backward_block)(const attention *a, int seq, int head_kv, int query, int key, float *scratch) {
    const int block = a->block, d = a->head_size, dv = a->value_size, d_padded = PADDED(d), dv_padded = PADDED(dv);
    const int n_keys = MIN(block, attention_n_keys(a, seq) - key);
    const int row_end = MIN(query + block, attention_n_queries(a, seq)) * a->group;
    float *k = scratch;                                 /* (block, D) */
    float *v = k + block * d_padded;                    /* (block, Dv) */
    float *dk_sum = v + block * dv_padded;              /* (block, D) */
    float *dv_sum = dk_sum + block * d_padded;          /* (block, Dv) */
    float *q = dv_sum + block * dv_padded;              /* (ROW_TILE, D) */
    float *q_t = q + ROW_TILE * d_padded;               /* (D, ROW_TILE) */
    float *dq_sum = q_t + ROW_TILE * d_padded;          /* (ROW_TILE, D) */
    float *d_o = dq_sum + ROW_TILE * d_padded;          /* (ROW_TILE, Dv) */
    float *d_o_t = d_o + ROW_TILE * dv_padded;          /* (Dv, ROW_TILE) */
    float *p = d_o_t + ROW_TILE * dv_padded;            /* (KEY_TILE, ROW_TILE): scores, then probabilities */
    float *ds = p + KEY_TILE * ROW_TILE;                /* (KEY_TILE, ROW_TILE): dP, then dS */
    float lse[ROW_TILE], delta[ROW_TILE];
    FN(view) w;

    FN(view_rows)(&w, a, seq, row_end - 1, 1);
    if (w.last[0] < key) return;
    FN(view_rows)(&w, a, seq, query * a->group, 1);
    if (w.first[0] >= key + n_keys) return;

    const ptrdiff_t k_index = attention_key(a, seq, head_kv, key);
    FN(pack)(k, a->k + k_index * d, (ptrdiff_t)a->n_head_kv * d, n_keys, d);
    FN(pack)(v, a->v + k_index * dv, (ptrdiff_t)a->n_head_kv * dv, n_keys, dv);
    memset(dk_sum, 0, sizeof(float) * block * (d_padded + dv_padded));

    for (int row = query * a->group; row < row_end; row += ROW_TILE) {
        const int n_rows = MIN(ROW_TILE, row_end - row);
        FN(view_rows)(&w, a, seq, row, n_rows);
        for (int i = 0; i < n_rows; i++) {
            const ptrdiff_t index = attention_row(a, seq, head_kv, row + i);
            FN(pack_row)(q + i * d_padded, a->q + index * d, d);
            FN(pack_row)(d_o + i * dv_padded, a->d_o + index * dv, dv);
            lse[i] = a->lse[index] * (float)M_LOG2E;
            delta[i] = a->delta[index];
        }
        for (int i = n_rows; i < w.n_lanes; i++) lse[i] = delta[i] = 0;
        FN(pack_columns)(q_t, a, seq, head_kv, row, n_rows, a->q, d, a->scale * (float)M_LOG2E);
        FN(pack_columns)(d_o_t, a, seq, head_kv, row, n_rows, a->d_o, dv, 1);
        memset(dq_sum, 0, sizeof(float) * ROW_TILE * d_padded);

        const int next = MIN(ROW_TILE, row_end - row - n_rows), tiles = ROUND_UP(n_keys, KEY_TILE) / KEY_TILE;
        for (int j = 0; j < n_keys; j += KEY_TILE) {
            FN(prefetch_queries)(a, a->q, d, seq, head_kv, row + n_rows, next, j / KEY_TILE, tiles);
            FN(prefetch_queries)(a, a->d_o, dv, seq, head_kv, row + n_rows, next, j / KEY_TILE, tiles);
            FN(prefetch_queries)(a, a->dq, d, seq, head_kv, row, n_rows, j / KEY_TILE, tiles);
            if (!FN(view_keys)(&w, key + j, MIN(KEY_TILE, n_keys - j))) continue;
            const float *k_j = k + j * d_padded, *v_j = v + j * dv_padded;
            float *dk_j = dk_sum + j * d_padded, *dv_j = dv_sum + j * dv_padded;
            /* s = scale q . k;  o = p v */
            FN(product_of_columns)(w.n_keys, w.n_lanes, d, w.rows, p, ROW_TILE, k_j, d_padded, q_t, ROW_TILE);
            FN(product_of_columns)(w.n_keys, w.n_lanes, dv, w.rows, ds, ROW_TILE, v_j, dv_padded, d_o_t, ROW_TILE);
            if (a->soft_cap > 0) FN(softmax_backward)(p, ds, lse, delta, a->scale, 1, a->soft_cap, &w);
            else FN(softmax_backward)(p, ds, lse, delta, a->scale, 0, 0, &w);
            FN(product)(FN(ADD), w.n_keys, dv_padded, w.rows, dv_j, dv_padded, p, ROW_TILE, 1, d_o, dv_padded, NULL);
            FN(product)(FN(ADD), w.n_keys, d_padded, w.rows, dk_j, d_padded, ds, ROW_TILE, 1, q, d_padded, NULL);
            FN(product)(FN(ADD), n_rows, d_padded, w.keys, dq_sum, d_padded, ds, 1, ROW_TILE, k_j, d_padded, NULL);
        }
        for (int i = 0; i < n_rows; i++)
            FN(add_row)(a->dq + attention_row(a, seq, head_kv, row + i) * d, dq_sum + i * d_padded, d);
    }
    for (int j = 0; j < n_keys; j++) {
        const ptrdiff_t index = attention_key(a, seq, head_kv, key + j);
        FN(add_row)(a->dk + index * d, dk_sum + j * d_padded, d);
        FN(add_row)(a->dv + index * dv, dv_sum + j * dv_padded, dv);
    }
}
#undef STRIP
#undef PANEL
#undef QUERY_KEYS
