/* A core of the int8 kind, from what gemm_i8_body.h has packed and with the tile of gemm_i8_tile_body.h. Included once
 * for each I8_KIND, whose functions are called I8(...).
 */
#include "gemm_i8_tile_body.h"

/* ---- forward ---- */

/* c (MR x LANES, row stride ldc) += MR rows of W times LANES tokens, over n_blocks (at most 8) blocks of 32 k. */
I8_INLINE void I8(i8_forward_tile)(float *restrict c, ptrdiff_t ldc, const uint8_t *restrict w,
                                   const float *restrict scale, const float *restrict min, const float *restrict x,
                                   int n_blocks, int n_min, int offset, int steps) {
    const float *base = x + 8 * X_BLOCK;
    vf sum[MR][2];
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) sum[i][0] = sum[i][1] = vf_set1(0);
    for (int block = 0; block < n_blocks; block++, w += 32, x += X_BLOCK, scale++, min += 2) {
        const vi e0 = FN(i8_load)(x + 8 * LANES), e1 = FN(i8_load)(x + 8 * LANES + VF_WIDTH);
        const vi s0 = FN(i8_load)(x + 9 * LANES) * -offset, s1 = FN(i8_load)(x + 9 * LANES + VF_WIDTH) * -offset;
        vi acc[MR][2];
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++) acc[i][0] = s0, acc[i][1] = s1;
        I8(i8_tile)(acc, w, LDA, (const uint8_t *)x, 32, 1, steps);
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++) {
            sum[i][0] += (vf)((vi)__builtin_convertvector(acc[i][0], vf) + e0) * scale[i * DEPTH / 32];
            sum[i][1] += (vf)((vi)__builtin_convertvector(acc[i][1], vf) + e1) * scale[i * DEPTH / 32];
        }
        if (n_min == 0) continue;
        for (int half = 0; half < n_min; half++) {
            vf x0 = vf_load(x + (10 + half) * LANES), x1 = vf_load(x + (10 + half) * LANES + VF_WIDTH);
            if (n_min == 1) x0 += vf_load(x + 11 * LANES), x1 += vf_load(x + 11 * LANES + VF_WIDTH);
#pragma GCC unroll 8
            for (int i = 0; i < MR; i++)
                sum[i][0] -= min[i * DEPTH / 16 + half] * x0, sum[i][1] -= min[i * DEPTH / 16 + half] * x1;
        }
    }
    const vf b0 = vf_load(base), b1 = vf_load(base + VF_WIDTH);
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++, c += ldc) {
        vf_store(c, vf_load(c) + b0 * sum[i][0]);
        vf_store(c + VF_WIDTH, vf_load(c + VF_WIDTH) + b1 * sum[i][1]);
    }
}

/* Rows n0 .. n0+n_rows (at most PANEL_ROWS) of W times all T tokens. */
static void I8(i8_forward_panel)(const projection *p, const float *packed, int T, int K, int n0, int n_rows,
                                 float *scratch) {
    const ggml_format *format = &ggml_formats[p->type];
    const int padded = ROUND_UP(n_rows, MR), tiles = ROUND_UP(T, LANES) / LANES, ldc = tiles * LANES + 16;
    const int n_min = format->min_every ? 32 / format->min_every : 0, offset = OFFSET(format);
    const int steps = STEPS(format);
    const ptrdiff_t x_tile = (ptrdiff_t)(ROUND_UP(K, DEPTH) / DEPTH) * X_DEPTH;
    uint8_t *w = (uint8_t *)scratch;
    float *scale = scratch + PANEL_ROWS * LDA / 4, *min = scale + PANEL_ROWS * DEPTH / 32;
    float *c = min + PANEL_ROWS * DEPTH / 16;
    memset(c, 0, sizeof(float) * padded * ldc);
    I8(i8_begin)(32);
    for (int k0 = 0; k0 < K; k0 += DEPTH, packed += X_DEPTH) {
        const int depth = MIN(DEPTH, K - k0), next = MIN(DEPTH, K - k0 - depth);
        const uint8_t *next_row =
            p->weight + n0 * p->row_bytes + (ptrdiff_t)(k0 + depth) / format->block_size * format->type_size;
        FN(i8_unpack_panel)(w, scale, min, p, n0, n_rows, padded, k0, depth, offset);
        for (int tile = 0; tile < tiles; tile++) {
            const float *x = packed + tile * x_tile;
            FN(prefetch_rows)(next_row, p->row_bytes, n_rows, next / format->block_size * format->type_size, tile,
                              tiles);
            const float *next_x = tile + 1 < tiles ? x + x_tile : packed + X_DEPTH;
            for (int i = 0; i < padded; i += MR) {
                FN(prefetch_rows)(next_x, 64, X_DEPTH / 16, 64, i / MR, padded / MR);
                float *to = c + (ptrdiff_t)i * ldc + tile * LANES;
                const float *s = scale + i * DEPTH / 32, *m = min + i * DEPTH / 16;
#define TILE(n_min, steps) \
    I8(i8_forward_tile)(to, ldc, w + i * LDA, s, m, x, depth / 32, n_min, offset, steps)
                if (n_min == 0) steps == 8 ? TILE(0, 8) : TILE(0, 4);
                else if (n_min == 1) steps == 8 ? TILE(1, 8) : TILE(1, 4);
                else TILE(2, 8);
#undef TILE
            }
        }
    }
    I8(i8_end)();
    FN(write_outputs)(p, c, ldc, n0, n_rows, T);
}

/* ---- backward ---- */
#if I8_KIND != I8_SMALL

/* c (MR x LANES, row stride LDC) += sum over n_chunks chunks of S unit (dy . W'), minus `minus`. A chunk of dy, of S
 * and of the sums of dy is `rows` rows long. */
I8_INLINE void I8(i8_backward_tile)(float *restrict c, const int8_t *restrict dy, const float *S, const int32_t *dy_sum,
                                    ptrdiff_t rows, const uint8_t *restrict w, const float *unit, int n_chunks,
                                    const float *minus, int next_minus) {
    vf sum[MR][2];
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++)
        sum[i][0] = vf_set1(-minus[i * MINIMA]), sum[i][1] = vf_set1(-minus[i * MINIMA + next_minus]);
    for (int chunk = 0; chunk < n_chunks; chunk++, dy += rows * CHUNK, S += rows, dy_sum += rows, w += CHUNK * LANES) {
        vi acc[MR][2];
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++) acc[i][0] = acc[i][1] = -OFFSET(0) * dy_sum[i] - (vi){0};
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
    float *c = scratch + sizeof *s / sizeof(float);
    const ggml_format *format = &ggml_formats[p->type];
    const ptrdiff_t rows = all_T + GROUP, all_rows = FN(i8_dy_rows)(all_T, n);
    const float *S = packed + all_rows * CHUNK / 4 + t0;
    const int32_t *dy_sum = (const int32_t *)(S + all_rows);
    const int8_t *dy = (const int8_t *)packed + (ptrdiff_t)t0 * CHUNK;
    const int min_columns = format->min_every ? format->min_every : 32, next_minus = VF_WIDTH / min_columns;
    memset(s->min, 0, sizeof s->min);
    memset(s->minus, 0, sizeof s->minus);
    memset(c, 0, sizeof(float) * ROUND_UP(t1 - t0, GROUP) * LDC);
    I8(i8_begin)(CHUNK);
    for (int j = 0; j < n; j += DEPTH, dy += CHUNKS * rows * CHUNK, S += CHUNKS * rows, dy_sum += CHUNKS * rows) {
        const int n_rows = MIN(DEPTH, n - j), n_chunks = ROUND_UP(n_rows, CHUNK) / CHUNK;
        for (int chunk = 0; chunk < n_chunks; chunk++)
            FN(i8_unpack_chunk)(s, p, n0 + j + chunk * CHUNK, MIN(CHUNK, n_rows - chunk * CHUNK), k0, n_columns, chunk,
                                OFFSET(format));
        for (int t = 0; t < t1 - t0; t += GROUP) {
            if (format->min_every) FN(i8_minima)(s, p, all_T, t0 + t, n0 + j, n_rows, n_columns / min_columns);
            for (int k = 0; k < n_columns; k += LANES)
                for (int i = t; i < t + GROUP; i += MR)
                    I8(i8_backward_tile)(c + (ptrdiff_t)i * LDC + k, dy + i * CHUNK, S + i, dy_sum + i, rows,
                                         s->w + k / LANES * LDB, s->unit + k / 32, n_chunks,
                                         s->minus + (i - t) * MINIMA + k / min_columns, next_minus);
        }
    }
    I8(i8_end)();
    FN(add_sums)(dx, K, c, LDC, k0, n_columns, t0, t1);
}
#endif

static const gemm_core I8(i8_core) = {
    .arithmetic = "int8",
    .token_tile = LANES, .panel_rows = PANEL_ROWS, .panel_unit = 12, .slice_columns = COLUMNS,
    .packed_x = FN(i8_packed_floats), .pack_x = FN(i8_pack_tokens),
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
#undef OFFSET
#undef STEPS
