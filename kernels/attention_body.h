/* One work item of attention, forward and backward; see attention.h. Compiled once per instruction set. */
#include "attention_tile.h"

/* --- what a tile of rows sees --- */

typedef struct {
    int n_rows, n_lanes;                    /* rows in use, and rounded up to whole vectors */
    int first[ROW_TILE], last[ROW_TILE];    /* keys that each row sees, both ends included; both ascend; lanes past n_rows see what the last row sees */
    int n_keys, key;                        /* the key tile: keys key .. key + n_keys */
    int masked;                             /* some row doesn't see some key (padding of the last strip included) */
    span keys[ROW_TILE / STRIP];            /* for each strip of rows, the keys (counted in the tile) that some row of it sees */
    span rows[KEY_TILE / STRIP];            /* for each strip of keys, the rows that see some key of it */
} FN(view);

static void FN(view_rows)(FN(view) *w, const attention *a, int seq, int row, int n_rows) {
    const int n_queries = a->q_begin[seq + 1] - a->q_begin[seq], n_keys = a->k_begin[seq + 1] - a->k_begin[seq];
    w->n_rows = n_rows;
    w->n_lanes = (n_rows + VF_WIDTH - 1) / VF_WIDTH * VF_WIDTH;
    for (int i = 0; i < ROW_TILE; i++) {
        const int query = (row + (i < n_rows ? i : n_rows - 1)) / a->group;
        w->last[i] = query + n_keys - n_queries;
        w->first[i] = w->last[i] >= a->window ? w->last[i] - a->window + 1 : 0;
    }
}

/* Looks at the keys key .. key + n_keys, or as many of them as some row sees; false if that is none. */
static int FN(view_keys)(FN(view) *w, int key, int n_keys) {
    if (n_keys > w->last[ROW_TILE - 1] + 1 - key) n_keys = w->last[ROW_TILE - 1] + 1 - key;
    if (n_keys <= 0 || key + n_keys <= w->first[0]) return 0;
    w->key = key;
    w->n_keys = n_keys;
    const int end = key + (n_keys + STRIP - 1) / STRIP * STRIP;
    w->masked = end - 1 > w->last[0] || key < w->first[w->n_rows - 1];
    for (int i = 0; i < w->n_rows; i += STRIP) {
        const int i_last = i + STRIP < w->n_rows ? i + STRIP - 1 : w->n_rows - 1;
        int begin = w->first[i] - key, stop = w->last[i_last] + 1 - key;
        if (begin < 0) begin = 0;
        if (stop > n_keys) stop = n_keys;
        w->keys[i / STRIP] = (span){begin, stop < begin ? begin : stop};
    }
    int begin = 0, stop = 0;
    for (int j = 0; j < n_keys; j += STRIP) {
        while (begin < w->n_rows && w->last[begin] < key + j) begin++;
        while (stop < w->n_rows && w->first[stop] < key + j + STRIP) stop++;
        w->rows[j / STRIP] = (span){begin, stop < begin ? begin : stop};
    }
    return 1;
}

/* Lanes of the score tile, for key number j of the tile and the rows from lane on: does the row see the key? */
VF_INLINE vi FN(sees)(const FN(view) *w, int j, int lane) {
    vi first, last;
    __builtin_memcpy(&first, w->first + lane, sizeof first);
    __builtin_memcpy(&last, w->last + lane, sizeof last);
    const vi key = (vi){0} + (w->key + j);
    return (key >= first) & (key <= last);
}

/* --- copies in and out --- */

/* n floats, then zeros up to PADDED(n). */
VF_INLINE void FN(pack_row)(float *to, const float *from, int n) {
    int d = 0;
    for (; d + VF_WIDTH <= n; d += VF_WIDTH) vf_store(to + d, vf_load(from + d));
    for (; d < PADDED(n); d++) to[d] = d < n ? from[d] : 0;
}

/* to[d] += from[d], and to[d] = factor from[d]. */
VF_INLINE void FN(add_row)(float *restrict to, const float *restrict from, int n) {
    int d = 0;
    for (; d + VF_WIDTH <= n; d += VF_WIDTH) vf_store(to + d, vf_load(to + d) + vf_load(from + d));
    for (; d < n; d++) to[d] += from[d];
}
VF_INLINE void FN(scale_row)(float *restrict to, const float *restrict from, float factor, int n) {
    int d = 0;
    for (; d + VF_WIDTH <= n; d += VF_WIDTH) vf_store(to + d, factor * vf_load(from + d));
    for (; d < n; d++) to[d] = factor * from[d];
}

/* Rows of n floats, stride apart; rows past n_rows up to a whole strip are zero. */
static void FN(pack)(float *to, const float *from, long stride, int n_rows, int n) {
    const int end = (n_rows + STRIP - 1) / STRIP * STRIP;
    for (int i = 0; i < n_rows; i++) FN(pack_row)(to + i * PADDED(n), from + i * stride, n);
    memset(to + n_rows * PADDED(n), 0, sizeof(float) * PADDED(n) * (end - n_rows));
}

/* n_rows rows of x (q or do, of n floats), from row on, as columns: to[d][row] = factor * x[row][d]; lanes past n_rows are zero. */
static void FN(pack_transposed_rows)(float *to, const attention *a, int seq, int head_kv, int row, int n_rows, const float *x, int n,
                                     float factor) {
    for (int i = 0; i < n_rows; i += VF_WIDTH)
        for (int d = 0; d < n; d += VF_WIDTH) {
            const int n_d = n - d < VF_WIDTH ? n - d : VF_WIDTH;
            vf square[VF_WIDTH];
            for (int r = 0; r < VF_WIDTH; r++) {
                const float *x_r = x + attention_row(a, seq, head_kv, row + i + r) * n + d;
                if (i + r >= n_rows) square[r] = vf_set1(0);
                else square[r] = factor * (n_d == VF_WIDTH ? vf_load(x_r) : vf_load_part(x_r, n_d));
            }
            FN(transpose)(square);
            for (int r = 0; r < n_d; r++) vf_store(to + (d + r) * ROW_TILE + i, square[r]);
        }
}

/* --- forward --- */

/* One key tile of the online softmax, in units of log2: scores become probabilities relative to the new running maximum.
 * decay = 2^(old maximum - new maximum) is what sums over earlier keys must be multiplied with. */
static void FN(online_softmax)(float *s, float *maximum, float *sum, float *decay, const FN(view) *w) {
    const int n_keys = (w->n_keys + 1) / 2 * 2;
    for (int i = 0; i < w->n_lanes; i += VF_WIDTH) {
        if (w->masked)
            for (int j = 0; j < n_keys; j++)
                vf_store(s + j * ROW_TILE + i, vf_select(FN(sees)(w, j, i), vf_load(s + j * ROW_TILE + i), vf_set1(-INFINITY)));
        vf even = vf_load(maximum + i), odd = even;
        const vf before = even;
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
        vf_store(sum + i, vf_load(sum + i) * shrink + total);
    }
}

/* Rows row .. row + n_rows (at most ROW_BLOCK) of one sequence and kv head. */
static void FN(attention_forward_rows)(const attention *a, int seq, int head_kv, int row, int n_rows, float *scratch) {
    const int d = a->head_size, dv = a->value_size, d_padded = PADDED(d), dv_padded = PADDED(dv);
    float *q_t = aligned(scratch);                          /* (ROW_BLOCK / ROW_TILE, D, ROW_TILE) */
    float *k = q_t + ROW_BLOCK * d_padded;                  /* (KEY_TILE, D) */
    float *v = k + KEY_TILE * d_padded;                     /* (KEY_TILE, Dv) */
    float *o = v + KEY_TILE * dv_padded;                    /* (ROW_BLOCK, Dv) */
    float *p = o + ROW_BLOCK * dv_padded;                   /* (KEY_TILE, ROW_TILE): scores, then probabilities */
    _Alignas(64) float maximum[ROW_BLOCK], sum[ROW_BLOCK], decay[ROW_TILE];
    FN(view) views[ROW_BLOCK / ROW_TILE];

    const int n_tiles = (n_rows + ROW_TILE - 1) / ROW_TILE;
    for (int t = 0; t < n_tiles; t++) {
        const int first = t * ROW_TILE, n = n_rows - first < ROW_TILE ? n_rows - first : ROW_TILE;
        FN(view_rows)(views + t, a, seq, row + first, n);
        FN(pack_transposed_rows)(q_t + first * d_padded, a, seq, head_kv, row + first, n, a->q, d, a->scale * (float)M_LOG2E);
    }
    for (int i = 0; i < n_tiles * ROW_TILE; i++) maximum[i] = -FLT_MAX, sum[i] = 0;
    memset(o, 0, sizeof(float) * n_tiles * ROW_TILE * dv_padded);

    const int key_end = views[n_tiles - 1].last[ROW_TILE - 1] + 1;
    for (int key = views[0].first[0]; key < key_end; key += KEY_TILE) {
        const int n_keys = key_end - key < KEY_TILE ? key_end - key : KEY_TILE;
        const long index = (a->k_begin[seq] + key) * a->n_head_kv + head_kv;
        FN(pack)(k, a->k + index * d, a->n_head_kv * d, n_keys, d);
        FN(pack)(v, a->v + index * dv, a->n_head_kv * dv, n_keys, dv);
        for (int t = 0; t < n_tiles; t++) {
            FN(view) *w = views + t;
            const int first = t * ROW_TILE;
            if (!FN(view_keys)(w, key, n_keys)) continue;
            FN(product_of_columns)(w->n_keys, w->n_lanes, d, w->rows, p, ROW_TILE, k, d_padded, q_t + first * d_padded, ROW_TILE);
            FN(online_softmax)(p, maximum + first, sum + first, decay, w);
            FN(product)(FN(DECAY_AND_ADD), w->n_rows, dv_padded, w->keys, o + first * dv_padded, dv_padded, p, 1, ROW_TILE,
                        v, dv_padded, decay);
        }
    }
    for (int i = 0; i < n_rows; i++) {
        const long index = attention_row(a, seq, head_kv, row + i);
        FN(scale_row)(a->o_out + index * dv, o + i * dv_padded, 1 / sum[i], dv);
        a->lse_out[index] = maximum[i] * (float)M_LN2 + logf(sum[i]);
    }
}

/* --- backward --- */

/* P^T = 2^(S^T - lse) and dS^T = scale P^T (dP^T - delta), in place of S^T and dP^T. */
static void FN(softmax_backward)(float *s, float *dp, const float *lse, const float *delta, float scale, const FN(view) *w) {
    const int n_keys = (w->n_keys + STRIP - 1) / STRIP * STRIP;
    for (int j = 0; j < n_keys; j++)
        for (int i = 0; i < w->n_lanes; i += VF_WIDTH) {
            float *s_ij = s + j * ROW_TILE + i, *dp_ij = dp + j * ROW_TILE + i;
            vf p = FN(exp2)(vf_load(s_ij) - vf_load(lse + i));
            vf ds = p * (vf_load(dp_ij) - vf_load(delta + i)) * scale;
            if (w->masked) {
                const vi visible = FN(sees)(w, j, i);
                p = vf_select(visible, p, vf_set1(0));
                ds = vf_select(visible, ds, vf_set1(0));
            }
            vf_store(s_ij, p);
            vf_store(dp_ij, ds);
        }
}

VF_INLINE float FN(dot)(const float *x, const float *y, int n) {
    vf sums = {0};
    int i = 0;
    for (; i + VF_WIDTH <= n; i += VF_WIDTH) sums += vf_load(x + i) * vf_load(y + i);
    float sum = vf_sum(sums);
    for (; i < n; i++) sum += x[i] * y[i];
    return sum;
}

/* delta of one token, all heads. */
static void FN(attention_delta)(const attention *a, long token) {
    const long dv = a->value_size;
    for (long i = token * a->n_head; i < (token + 1) * a->n_head; i++) a->delta[i] = FN(dot)(a->o + i * dv, a->d_o + i * dv, dv);
}

/* What the queries query .. query + block and the keys key .. key + block give each other. */
static void FN(attention_backward_block)(const attention *a, int seq, int head_kv, int query, int key, float *scratch) {
    const int block = a->block, n_queries = a->q_begin[seq + 1] - a->q_begin[seq], n_keys_all = a->k_begin[seq + 1] - a->k_begin[seq];
    const int n_keys = n_keys_all - key < block ? n_keys_all - key : block;
    const int query_end = query + block < n_queries ? query + block : n_queries;
    const int d = a->head_size, dv_ = a->value_size, d_padded = PADDED(d), dv_padded = PADDED(dv_);
    float *k = aligned(scratch);                            /* (block, D) */
    float *v = k + block * d_padded;                        /* (block, Dv) */
    float *dk = v + block * dv_padded;                      /* (block, D) */
    float *dv = dk + block * d_padded;                      /* (block, Dv) */
    float *q = dv + block * dv_padded;                      /* (ROW_TILE, D) */
    float *q_t = q + ROW_TILE * d_padded;                   /* (D, ROW_TILE) */
    float *dq = q_t + ROW_TILE * d_padded;                  /* (ROW_TILE, D) */
    float *d_o = dq + ROW_TILE * d_padded;                  /* (ROW_TILE, Dv) */
    float *d_o_t = d_o + ROW_TILE * dv_padded;              /* (Dv, ROW_TILE) */
    float *p = d_o_t + ROW_TILE * dv_padded;                /* (KEY_TILE, ROW_TILE): scores, then probabilities */
    float *ds = p + KEY_TILE * ROW_TILE;                    /* (KEY_TILE, ROW_TILE): dP, then dS */
    _Alignas(64) float lse[ROW_TILE], delta[ROW_TILE];
    FN(view) w;

    const long k_index = (a->k_begin[seq] + key) * a->n_head_kv + head_kv;
    FN(pack)(k, a->k + k_index * d, a->n_head_kv * d, n_keys, d);
    FN(pack)(v, a->v + k_index * dv_, a->n_head_kv * dv_, n_keys, dv_);
    memset(dk, 0, sizeof(float) * block * (d_padded + dv_padded));

    for (int row = query * a->group; row < query_end * a->group; row += ROW_TILE) {
        const int n_rows = query_end * a->group - row < ROW_TILE ? query_end * a->group - row : ROW_TILE;
        FN(view_rows)(&w, a, seq, row, n_rows);
        memset(lse, 0, sizeof lse);
        memset(delta, 0, sizeof delta);
        for (int i = 0; i < n_rows; i++) {
            const long index = attention_row(a, seq, head_kv, row + i);
            FN(pack_row)(q + i * d_padded, a->q + index * d, d);
            FN(pack_row)(d_o + i * dv_padded, a->d_o + index * dv_, dv_);
            lse[i] = a->lse[index] * (float)M_LOG2E;
            delta[i] = a->delta[index];
        }
        FN(pack_transposed_rows)(q_t, a, seq, head_kv, row, n_rows, a->q, d, a->scale * (float)M_LOG2E);
        FN(pack_transposed_rows)(d_o_t, a, seq, head_kv, row, n_rows, a->d_o, dv_, 1);
        memset(dq, 0, sizeof(float) * ROW_TILE * d_padded);

        for (int j = 0; j < n_keys; j += KEY_TILE) {
            if (!FN(view_keys)(&w, key + j, n_keys - j < KEY_TILE ? n_keys - j : KEY_TILE)) continue;
            const float *k_j = k + j * d_padded, *v_j = v + j * dv_padded;
            FN(product_of_columns)(w.n_keys, w.n_lanes, d, w.rows, p, ROW_TILE, k_j, d_padded, q_t, ROW_TILE);
            FN(product_of_columns)(w.n_keys, w.n_lanes, dv_, w.rows, ds, ROW_TILE, v_j, dv_padded, d_o_t, ROW_TILE);
            FN(softmax_backward)(p, ds, lse, delta, a->scale, &w);
            FN(product)(FN(ADD), w.n_keys, dv_padded, w.rows, dv + j * dv_padded, dv_padded, p, ROW_TILE, 1, d_o, dv_padded, 0);
            FN(product)(FN(ADD), w.n_keys, d_padded, w.rows, dk + j * d_padded, d_padded, ds, ROW_TILE, 1, q, d_padded, 0);
            FN(product)(FN(ADD), n_rows, d_padded, w.keys, dq, d_padded, ds, 1, ROW_TILE, k_j, d_padded, 0);
        }
        for (int i = 0; i < n_rows; i++) FN(add_row)(a->dq + attention_row(a, seq, head_kv, row + i) * d, dq + i * d_padded, d);
    }
    for (int j = 0; j < n_keys; j++) {
        const long index = k_index + j * a->n_head_kv;
        FN(add_row)(a->dk + index * d, dk + j * d_padded, d);
        FN(add_row)(a->dv + index * dv_, dv + j * dv_padded, dv_);
    }
}
#undef STRIP
#undef PANEL
