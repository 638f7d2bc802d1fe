/* A core of the int8 kind, from what gemm_i8_body.h has packed and with the tile of gemm_i8_tile_body.h. Included once
 * for each I8_KIND, whose functions are called I8(...).
 */
#include "gemm_i8_tile_body.h"

/* ---- forward ---- */

static void I8(i8_pack_x)(float *packed, const float *x, int T, int K, int tile) {
    FN(i8_pack_tokens)(packed, x, T, K, tile, PER_LANE);
}

/* c (MR x LANES, row stride ldc) += MR rows of W times LANES tokens, over n_blocks (at most 8) blocks of 32 k. The
 * first ones find nothing in c. */
I8_INLINE void I8(i8_forward_tile)(float *restrict c, ptrdiff_t ldc, const uint8_t *restrict w,
                                   const float *restrict scale, const float *restrict min, const float *restrict x,
                                   int n_blocks, int has_min, int offset, int steps, int is_first) {
    const float *base = x + 8 * X_BLOCK;
    vf sum[MR][2];
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) sum[i][0] = sum[i][1] = vf_set1(0);
    for (int block = 0; block < n_blocks; block++, w += 32, x += X_BLOCK, scale++, min += 2) {
        const vi e0 = FN(i8_load)(x + 8 * LANES), e1 = FN(i8_load)(x + 8 * LANES + VF_WIDTH);
        const vi s0 = FN(i8_load)(x + 9 * LANES), s1 = FN(i8_load)(x + 9 * LANES + VF_WIDTH);
        vi acc[MR][2];
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++) acc[i][0] = s0 * -offset, acc[i][1] = s1 * -offset;
        I8(i8_tile)(acc, w, LDA, (const uint8_t *)x, 32, 1, steps);
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++) {
            sum[i][0] += (vf)((vi)__builtin_convertvector(acc[i][0], vf) + e0) * scale[i * DEPTH / 32];
            sum[i][1] += (vf)((vi)__builtin_convertvector(acc[i][1], vf) + e1) * scale[i * DEPTH / 32];
        }
        if (!has_min) continue;
        /* The sum of x as rounded: the errors of d q x and of min x cancel where the weight is small. */
        const vf x0 = (vf)((vi)__builtin_convertvector(s0, vf) + e0);
        const vf x1 = (vf)((vi)__builtin_convertvector(s1, vf) + e1);
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++) sum[i][0] -= min[i * DEPTH / 16] * x0, sum[i][1] -= min[i * DEPTH / 16] * x1;
    }
    const vf b0 = vf_load(base), b1 = vf_load(base + VF_WIDTH);
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++, c += ldc) {
        vf_store(c, (is_first ? vf_set1(0) : vf_load(c)) + b0 * sum[i][0]);
        vf_store(c + VF_WIDTH, (is_first ? vf_set1(0) : vf_load(c + VF_WIDTH)) + b1 * sum[i][1]);
    }
}

/* Rows n0 .. n0+n_rows (at most PANEL_ROWS) of W times all T tokens. */
static void I8(i8_forward_panel)(const projection *p, const float *packed, int T, int K, int n0, int n_rows,
                                 float *scratch) {
    const ggml_format *format = &ggml_formats[p->type];
    const int padded = ROUND_UP(n_rows, MR), tiles = ROUND_UP(T, LANES) / LANES, ldc = tiles * LANES + 16;
    const int has_min = KEEPS_MIN(format), offset = OFFSET(format), steps = STEPS(format);
    const ptrdiff_t x_tile = (ptrdiff_t)(ROUND_UP(K, DEPTH) / DEPTH) * X_DEPTH;
    uint8_t *w = (uint8_t *)scratch;
    float *scale = scratch + PANEL_ROWS * LDA / 4, *min = scale + PANEL_ROWS * DEPTH / 32;
    float *c = min + PANEL_ROWS * DEPTH / 16;
    for (int k0 = 0; k0 < K; k0 += DEPTH, packed += X_DEPTH) {
        const int depth = MIN(DEPTH, K - k0), next = MIN(DEPTH, K - k0 - depth);
        const uint8_t *next_row =
            p->weight + n0 * p->row_bytes + (ptrdiff_t)(k0 + depth) / format->block_size * format->type_size;
        FN(i8_unpack_panel)(w, scale, min, p, n0, n_rows, padded, k0, depth, has_min, offset);
        for (int tile = 0; tile < tiles; tile++) {
            const float *x = packed + tile * x_tile;
            prefetch_rows(next_row, p->row_bytes, n_rows, next / format->block_size * format->type_size, tile,
                          tiles);
            if (k0 + depth == K)                        /* where the outputs will go */
                prefetch_rows(p->y + n0, sizeof(float) * p->N, T, sizeof(float) * n_rows, tile, tiles);
            for (int i = 0; i < padded; i += MR) {
                float *to = c + (ptrdiff_t)i * ldc + tile * LANES;
                const float *s = scale + i * DEPTH / 32, *m = min + i * DEPTH / 16;
#define TILE(has_min, steps) \
    I8(i8_forward_tile)(to, ldc, w + i * LDA, s, m, x, depth / 32, has_min, offset, steps, k0 == 0)
                if (has_min) steps == 8 ? TILE(1, 8) : TILE(1, 4);
                else steps == 8 ? TILE(0, 8) : TILE(0, 4);
#undef TILE
            }
        }
    }
    FN(write_outputs)(p, c, ldc, n0, n_rows, T);
}

/* ---- backward ---- */
#if I8_KIND != I8_SMALL

/* c (MR x LANES, row stride LDC) += sum over n_chunks chunks of S unit (dy . W'). A chunk of dy, of S and of what sums
 * start from is `rows` rows long. */
I8_INLINE void I8(i8_backward_tile)(float *restrict c, const int8_t *restrict dy, const float *S, const int32_t *start,
                                    ptrdiff_t rows, const uint8_t *restrict w, const float *unit, int n_chunks) {
    vf sum[MR][2];
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) sum[i][0] = sum[i][1] = vf_set1(0);
    for (int chunk = 0; chunk < n_chunks; chunk++, dy += rows * CHUNK, S += rows, start += rows, w += CHUNK * LANES) {
        vi acc[MR][2];
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++) acc[i][0] = acc[i][1] = (OFFSET(0) ? start[i] : 0) - (vi){0};
        I8(i8_tile)(acc, (const uint8_t *)dy, CHUNK, w, CHUNK, 0, 8);
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++) {
            const float scale = S[i] * unit[chunk * COLUMNS / 32];
            sum[i][0] += scale * __builtin_convertvector(acc[i][0], vf);
            sum[i][1] += scale * __builtin_convertvector(acc[i][1], vf);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++, c += LDC) {
        vf_store(c, vf_load(c) + sum[i][0]);
        vf_store(c + VF_WIDTH, vf_load(c + VF_WIDTH) + sum[i][1]);
    }
}

/* dx[t0 .. t1][k0 .. k0+n_columns] += dy[.][n0 .. n0+n] . W for one projection. */
static void I8(i8_backward_slice)(float *dx, int K, const projection *p, const float *packed, int all_T, int n0, int n,
                                  int k0, int n_columns, int t0, int t1, float *scratch) {
    FN(i8_slice) *s = (FN(i8_slice) *)scratch;
    const ggml_format *format = &ggml_formats[p->type];
    const ptrdiff_t rows = all_T + GROUP, all_rows = FN(i8_dy_rows)(all_T, n);
    const int groups = ROUND_UP(t1 - t0, GROUP) / GROUP;
    float *c = scratch + sizeof *s / sizeof(float);
    const float *S = packed + all_rows * CHUNK / 4 + t0;
    const int32_t *start = (const int32_t *)(S + all_rows);
    const int8_t *dy = (const int8_t *)packed + (ptrdiff_t)t0 * CHUNK;
    memset(c, 0, sizeof(float) * groups * GROUP * LDC);
    for (int j = 0; j < n; j += DEPTH, dy += CHUNKS * rows * CHUNK, S += CHUNKS * rows, start += CHUNKS * rows) {
        const int n_rows = MIN(DEPTH, n - j), n_chunks = ROUND_UP(n_rows, CHUNK) / CHUNK;
        const int next_rows = MIN(DEPTH, n - j - n_rows), bytes = n_columns / format->block_size * format->type_size;
        const uint8_t *next_blocks =
            p->weight + (n0 + j + n_rows) * p->row_bytes + k0 / format->block_size * format->type_size;
        for (int chunk = 0; chunk < n_chunks; chunk++)
            FN(i8_unpack_chunk)(s, p, n0 + j + chunk * CHUNK, MIN(CHUNK, n_rows - chunk * CHUNK), k0, n_columns, chunk,
                                OFFSET(format), PER_LANE);
        for (int k = 0; k < n_columns; k += LANES)      /* LANES columns of W' stay in L1 for all tokens */
            for (int t = 0; t < t1 - t0; t += GROUP) {
                prefetch_rows(next_blocks, p->row_bytes, next_rows, bytes, k / LANES * groups + t / GROUP,
                              groups * (n_columns / LANES));
                for (int i = t; i < t + GROUP; i += MR)
                    I8(i8_backward_tile)(c + (ptrdiff_t)i * LDC + k, dy + i * CHUNK, S + i, start + i, rows,
                                         s->w + k / LANES * LDB, s->unit + k / 32, n_chunks);
            }
    }
    FN(add_sums)(dx, K, c, LDC, k0, n_columns, t0, t1);
}
#endif

static const gemm_core I8(i8_core) = {
    .arithmetic = "int8",
    .token_tile = LANES, .panel_rows = PANEL_ROWS, .panel_unit = 12, .slice_columns = COLUMNS,
    .packed_x = FN(i8_packed_floats), .pack_x = I8(i8_pack_x),
    .forward_scratch = FN(i8_forward_scratch), .forward_panel = I8(i8_forward_panel),
#if I8_KIND == I8_SMALL
    .packed_dy = FN(i8_small_packed_dy_floats), .pack_dy = FN(i8_small_pack_dy),
    .backward_scratch = FN(i8_small_backward_scratch), .backward_slice = FN(i8_small_backward_slice),
#else
    .packed_dy = FN(i8_packed_dy_floats), .pack_dy = FN(i8_pack_dy),
    .backward_scratch = FN(i8_backward_scratch), .backward_slice = I8(i8_backward_slice),
#endif
};

#undef MR
#undef PER_LANE
#undef OFFSET
#undef KEEPS_MIN
#undef STEPS
