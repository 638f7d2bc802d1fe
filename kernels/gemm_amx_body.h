/* An AMX core for values in PIECES bfloat16 each (gemm_amx.h).
 *
 * "Step": what 32 rows (or lanes) x 32 values along the sum take, PIECES pairs of tiles, the high pieces last.
 */
#define AMX(name) SIMD_PASTE(SIMD_PASTE(amx, name), PIECES)
#define HIGH ((PIECES - 1) * 2 * AMX_TILE)      /* where a step has the high pieces; the low ones are at 0 */
#define STEP (PIECES * 2 * AMX_TILE)            /* bfloat16 values from step to step */
#define W_FLOATS (PIECES * AMX_DEPTH * MAX(AMX_ROWS, AMX_COLUMNS) / 2)      /* what tiles of W take, in floats */

/* 32 values into row i of a step of A. */
VF_INLINE void AMX(store_row)(bf16 *step, int i, const amx_vf v[2]) {
    const amx_pieces split = amx_split(v[0], v[1], PIECES);
    bf16 *row = step + (i / 16) * AMX_TILE + (i % 16) * 32;
    amx_store(row + HIGH, split.high);
    if (PIECES == 2) amx_store(row, split.low);
}

/* 32 columns of rows i and i + 1 into a step of B. */
VF_INLINE void AMX(store_pairs)(bf16 *step, int i, const amx_vf even[2], const amx_vf odd[2]) {
    for (int half = 0; half < 2; half++) {
        const amx_pieces split = amx_split(even[half], odd[half], PIECES);
        bf16 *row = step + half * AMX_TILE + i / 2 * 32;
        amx_store(row + HIGH, amx_pairs(split.high));
        if (PIECES == 2) amx_store(row, amx_pairs(split.low));
    }
}

/* Two rows, the first of which is row i, into tiles: w[row / 32][step] forward, w[column / 32][step] backward. */
VF_INLINE void AMX(into_tiles)(bf16 *w, const amx_row *rows, int i, int n_values, int steps, int is_forward,
                               int is_q8_0, int has_min) {
    bf16 *step = w + (ptrdiff_t)(i / 32) * (is_forward ? steps : 1) * STEP;
    const ptrdiff_t next = (is_forward ? 1 : steps) * STEP;
    for (int block = 0; block < n_values / 32; block++, step += next) {
        amx_vf even[2], odd[2];
        amx_row_32(&rows[0], is_q8_0, has_min, block, even);
        amx_row_32(&rows[1], is_q8_0, has_min, block, odd);
        if (is_forward) AMX(store_row)(step, i % 32, even), AMX(store_row)(step, i % 32 + 1, odd);
        else AMX(store_pairs)(step, i % 32, even, odd);
    }
}

#define ROWS 8      /* unpacked at a time: what was just written, read in vectors of another size, is waited for */

/* n_rows rows of W from n0 on, n_values of each from column k0 on, become the tiles of `steps` steps along the sum. Up to
 * a multiple of 32 the last row comes again, times zero. */
VF_INLINE void AMX(unpack)(bf16 *w, const projection *p, int n0, int n_rows, int k0, int n_values, int steps,
                           int is_forward) {
    const int has_min = ggml_formats[p->type].min_every;
    for (int i0 = 0; i0 < ROUND_UP(n_rows, 32); i0 += ROWS) {
        amx_row rows[ROWS];
        for (int i = 0; i < ROWS; i++) {
            amx_unpack_row(&rows[i], p, n0 + MIN(i0 + i, n_rows - 1), k0, n_values);
            if (i0 + i < n_rows) continue;
            memset(rows[i].scale, 0, sizeof rows[i].scale);
            memset(rows[i].min, 0, sizeof rows[i].min);
        }
        for (int i = 0; i < ROWS; i += 2)
            if (p->type == GGML_Q8_0) AMX(into_tiles)(w, rows + i, i0 + i, n_values, steps, is_forward, 1, 0);
            else if (has_min) AMX(into_tiles)(w, rows + i, i0 + i, n_values, steps, is_forward, 0, 1);
            else AMX(into_tiles)(w, rows + i, i0 + i, n_values, steps, is_forward, 0, 0);
    }
}

/* sum += A . B of one tile each, the pieces of A being in tiles 4 (high) and 5 (low), those of B at b. */
#if PIECES == 2
#define PRODUCTS(sum, b)                /* low . high + high . high + high . low */ \
    TILE_LOAD(6, (b) + HIGH, 64); \
    TILE_PRODUCTS(sum, 5, 6); \
    TILE_PRODUCTS(sum, 4, 6); \
    TILE_LOAD(6, b, 64); \
    TILE_PRODUCTS(sum, 4, 6)
#else
#define PRODUCTS(sum, b) \
    TILE_LOAD(6, b, 64); \
    TILE_PRODUCTS(sum, 4, 6)
#endif

/* C (16 x 32 float32, two tiles) = or += A . B over n steps. */
static void AMX(tile_product)(float *c, ptrdiff_t ldc, const bf16 *a, const bf16 *b, int n, int accumulate) {
    const ptrdiff_t stride = ldc * sizeof(float);
    if (accumulate) {
        TILE_LOAD(0, c, stride);
        TILE_LOAD(1, c + 16, stride);
    } else {
        TILE_ZERO(0);
        TILE_ZERO(1);
    }
    for (int i = 0; i < n; i++, a += STEP, b += STEP) {
        TILE_LOAD(4, a + HIGH, 64);
        if (PIECES == 2) TILE_LOAD(5, a, 64);
        PRODUCTS(0, b);
        PRODUCTS(1, b + AMX_TILE);
    }
    TILE_STORE(0, c, stride);
    TILE_STORE(1, c + 16, stride);
}

/* --- forward --- */

static ptrdiff_t AMX(packed_floats)(int T, int K) {
    return (ptrdiff_t)ROUND_UP(T, 32) / 32 * (ROUND_UP(K, 32) / 32) * (STEP / 2);
}

/* Tokens 32 tile .. 32 tile + 32 of x (T, K) become steps of B, packed[tile][k / 32]; tokens beyond T are zero. */
static void AMX(pack_tokens)(float *packed, const float *x, int T, int K, int tile) {
    bf16 *step = (bf16 *)packed + (ptrdiff_t)tile * (ROUND_UP(K, 32) / 32) * STEP;
    for (int k = 0; k < K; k += 32, step += STEP)
        for (int half = 0; half < 2; half++) {
            amx_vf high[16], low[16];                   /* row = token, each 32 bits a pair along k */
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) {
                const int t = tile * 32 + half * 16 + i;
                amx_vf v[2];
                amx_load_32(x + (ptrdiff_t)t * K + k, t < T ? K - k : 0, v);
                const amx_pieces split = amx_split(v[0], v[1], PIECES);
                high[i] = (amx_vf)split.high, low[i] = (amx_vf)split.low;
            }
            vf_transpose__avx512(high);
            if (PIECES == 2) vf_transpose__avx512(low);
            bf16 *to = step + half * AMX_TILE;
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++, to += 32) {
                amx_store(to + HIGH, (amx_vi)high[i]);
                if (PIECES == 2) amx_store(to, (amx_vi)low[i]);
            }
        }
}

static ptrdiff_t AMX(forward_scratch)(int T) {
    return W_FLOATS + (ptrdiff_t)AMX_ROWS * (ROUND_UP(T, 32) + 16);
}

/* Rows n0 .. n0+n_rows (at most AMX_ROWS) of W times all T tokens. */
static void AMX(forward_panel)(const projection *p, const float *packed, int T, int K, int n0, int n_rows,
                               float *scratch) {
    const ggml_format *format = &ggml_formats[p->type];
    const int padded = ROUND_UP(n_rows, 32), ldc = ROUND_UP(T, 32) + 16, tiles = ROUND_UP(T, 32) / 32;
    bf16 *w = (bf16 *)scratch;                          /* [row / 32][step] */
    float *c = scratch + W_FLOATS;
    amx_begin();
    for (int k0 = 0; k0 < K; k0 += AMX_DEPTH) {
        const int depth = MIN(AMX_DEPTH, K - k0), steps = depth / 32, next = MIN(AMX_DEPTH, K - k0 - depth);
        const uint8_t *next_row =
            p->weight + n0 * p->row_bytes + (ptrdiff_t)(k0 + depth) / format->block_size * format->type_size;
        AMX(unpack)(w, p, n0, n_rows, k0, depth, steps, 1);
        prefetch_rows(next_row, p->row_bytes, MIN(AMX_AHEAD, n_rows),
                      next / format->block_size * format->type_size, 0, 1);
        for (int t = 0; t < tiles; t++) {
            const bf16 *x = (const bf16 *)packed + ((ptrdiff_t)t * (K / 32) + k0 / 32) * STEP;
            for (int i = 0; i < padded; i += 16) {
                AMX(tile_product)(c + (ptrdiff_t)i * ldc + 32 * t, ldc,
                                  w + (ptrdiff_t)(i / 32) * steps * STEP + i / 16 % 2 * AMX_TILE, x, steps, k0 > 0);
            }
        }
    }
    amx_end();
    write_outputs_avx512(p, c, ldc, n0, n_rows, T);
}

/* --- backward --- */

/* Tokens 32 tile .. of dy (T, N), columns n0 .. n0+n, become steps of A, packed[tile][n / 32]. */
static void AMX(pack_dy)(float *packed, const float *dy, int T, int N, int n0, int n, int tile) {
    const int steps = ROUND_UP(n, 32) / 32;
    bf16 *step = (bf16 *)packed + (ptrdiff_t)tile * steps * STEP;
    for (int i = 0; i < 32; i++) {
        const ptrdiff_t t = tile * 32 + i;
        for (int s = 0; s < steps; s++) {
            amx_vf v[2];
            amx_load_32(dy + t * N + n0 + 32 * s, t < T ? n - 32 * s : 0, v);
            AMX(store_row)(step + s * STEP, i, v);
        }
    }
}

static ptrdiff_t AMX(backward_scratch)(int T) {
    return W_FLOATS + (ptrdiff_t)ROUND_UP(T, 32) * AMX_LDC;
}

/* dx[t0 .. t1][k0 .. k0+n_columns] += dy[.][n0 .. n0+n] . W for one projection; t0 is a multiple of 32. The sum is made
 * in scratch: rows of dx often lie a power of two apart and would fall on the same cache sets. */
static void AMX(backward_slice)(float *dx, int K, const projection *p, const float *packed, int all_T, int n0, int n,
                                int k0, int n_columns, int t0, int t1, float *scratch) {
    const int packed_steps = ROUND_UP(n, 32) / 32, tokens = ROUND_UP(t1 - t0, 32), groups = ROUND_UP(n_columns, 32) / 32;
    bf16 *w = (bf16 *)scratch;                          /* [column / 32][step] */
    float *c = scratch + W_FLOATS;
    amx_begin();
    for (int j = 0; j < n; j += AMX_DEPTH) {
        const int n_rows = MIN(AMX_DEPTH, n - j), steps = ROUND_UP(n_rows, 32) / 32;
        AMX(unpack)(w, p, n0 + j, n_rows, k0, n_columns, steps, 0);
        for (int group = 0; group < groups; group++) {  /* 32 columns of W stay in L1 for all tokens */
            for (int i = 0; i < tokens; i += 16) {
                const bf16 *a = (const bf16 *)packed + ((ptrdiff_t)(t0 + i) / 32 * packed_steps + j / 32) * STEP;
                AMX(tile_product)(c + (ptrdiff_t)i * AMX_LDC + 32 * group, AMX_LDC, a + i / 16 % 2 * AMX_TILE,
                                  w + (ptrdiff_t)group * steps * STEP, steps, j > 0);
            }
        }
    }
    amx_end();
    add_sums_avx512(dx, K, c, AMX_LDC, k0, n_columns, t0, t1);
}

static const gemm_core AMX(core) = {
    .arithmetic = PIECES == 1 ? "bfloat16" : "bfloat16 pieces",
    .token_tile = 32, .panel_rows = AMX_ROWS, .panel_unit = 32, .slice_columns = AMX_COLUMNS,
    .packed_x = AMX(packed_floats), .pack_x = AMX(pack_tokens),
    .forward_scratch = AMX(forward_scratch), .forward_panel = AMX(forward_panel),
    .packed_dy = AMX(packed_floats), .pack_dy = AMX(pack_dy),
    .backward_scratch = AMX(backward_scratch), .backward_slice = AMX(backward_slice),
};

#undef AMX
#undef HIGH
#undef STEP
#undef W_FLOATS
#undef PRODUCTS
#undef ROWS
