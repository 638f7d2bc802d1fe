/* The float32 core: any weight type, any instruction set. Weights are unpacked to float32 a piece at a time, in cache.
 *
 * One register tile serves both directions:   c[i][lane] += sum_d a[i][d] b[d][lane]
 *   forward    a = rows of W (broadcast)     b = x^T          lanes = tokens
 *   backward   a = rows of dy (broadcast)    b = rows of W    lanes = columns
 */
#if VF_WIDTH == 16
#define MR 12                   /* 24 accumulators, 2 vectors of b: 26 of 32 registers */
#elif SIMD_IS_NEON
#define MR 8                    /* 16 accumulators, 8 vectors of b, 1 of a: 25 of 32 registers */
#else
#define MR 6                    /* 12 accumulators, 2 vectors of b, 1 broadcast: 15 of 16 registers */
#endif
#define LANES (2 * VF_WIDTH)
#define F32_ROWS 96             /* rows of W in a panel (forward): a multiple of MR */
#define F32_DEPTH 256           /* values along K unpacked at a time: 96 x 256 float32 is 96 KB of L2 */
#define F32_LDW (F32_DEPTH + 16)  /* padded, so that the rows of a panel don't fall on the same cache sets */
#define F32_COLUMNS 256         /* columns of W in a slice (backward): a multiple of every block size */
#define F32_CHUNK 128           /* rows of W unpacked at a time (backward) */
#define F32_LDC (F32_COLUMNS + 16)  /* floats from row to row of the sums of dx (backward) */

/* c (MR x LANES, row stride ldc) += a (MR x depth, row stride lda) . b (depth x LANES, row stride ldb). */
static void FN(f32_tile)(float *restrict c, ptrdiff_t ldc, const float *restrict a, ptrdiff_t lda,
                         const float *restrict b, ptrdiff_t ldb, int depth) {
    vf acc[MR][2];
#pragma GCC unroll 12
    for (int i = 0; i < MR; i++) {
        acc[i][0] = vf_load(c + i * ldc);
        acc[i][1] = vf_load(c + i * ldc + VF_WIDTH);
    }
    int d = 0;
#if SIMD_IS_NEON                /* multiplies by any element of a vector: 4 values of a take one load, no broadcast */
    for (; d + 4 <= depth; d += 4, b += 4 * ldb) {
        float32x4_t b0[4], b1[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) b0[j] = vld1q_f32(b + j * ldb), b1[j] = vld1q_f32(b + j * ldb + VF_WIDTH);
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++) {
            const float32x4_t row = vld1q_f32(a + i * lda + d);
            float32x4_t c0 = (float32x4_t)acc[i][0], c1 = (float32x4_t)acc[i][1];
            c0 = vfmaq_laneq_f32(c0, b0[0], row, 0), c1 = vfmaq_laneq_f32(c1, b1[0], row, 0);
            c0 = vfmaq_laneq_f32(c0, b0[1], row, 1), c1 = vfmaq_laneq_f32(c1, b1[1], row, 1);
            c0 = vfmaq_laneq_f32(c0, b0[2], row, 2), c1 = vfmaq_laneq_f32(c1, b1[2], row, 2);
            c0 = vfmaq_laneq_f32(c0, b0[3], row, 3), c1 = vfmaq_laneq_f32(c1, b1[3], row, 3);
            acc[i][0] = (vf)c0, acc[i][1] = (vf)c1;
        }
    }
    for (; d < depth; d++, b += ldb)
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++) {
            const float x = a[i * lda + d];
            acc[i][0] += x * vf_load(b), acc[i][1] += x * vf_load(b + VF_WIDTH);
        }
#else
    for (; d < depth; d++, b += ldb) {
        const vf b0 = vf_load(b), b1 = vf_load(b + VF_WIDTH);
        const float *row = a + d;
#pragma GCC unroll 12
        for (int i = 0; i < MR; i += 3, row += 3 * lda) {
            acc[i][0] += row[0] * b0, acc[i][1] += row[0] * b1;
            acc[i + 1][0] += row[lda] * b0, acc[i + 1][1] += row[lda] * b1;
            acc[i + 2][0] += row[2 * lda] * b0, acc[i + 2][1] += row[2 * lda] * b1;
        }
    }
#endif
#pragma GCC unroll 12
    for (int i = 0; i < MR; i++) {
        vf_store(c + i * ldc, acc[i][0]);
        vf_store(c + i * ldc + VF_WIDTH, acc[i][1]);
    }
}

/* --- forward --- */

static ptrdiff_t FN(f32_packed_floats)(int T, int K) { return (ptrdiff_t)ROUND_UP(T, LANES) * K; }

/* Tokens tile*LANES .. of x (T, K) become packed[tile][k][lane]; lanes beyond T are zero. */
static void FN(f32_pack_tokens)(float *packed, const float *x, int T, int K, int tile) {
    packed += (ptrdiff_t)tile * K * LANES;
    for (int half = 0; half < 2; half++) {
        const int t0 = tile * LANES + half * VF_WIDTH, n = MIN(VF_WIDTH, T - t0);
        for (int k = 0; k < K; k += VF_WIDTH) {
            const int width = MIN(VF_WIDTH, K - k);
            vf square[VF_WIDTH];
            for (int i = 0; i < VF_WIDTH; i++)
                square[i] = i < n ? vf_load_part(x + (ptrdiff_t)(t0 + i) * K + k, width) : vf_set1(0);
            vf_transpose(square);
            for (int i = 0; i < width; i++) vf_store(packed + (ptrdiff_t)(k + i) * LANES + half * VF_WIDTH, square[i]);
        }
    }
}

static ptrdiff_t FN(f32_forward_scratch)(int T) {
    return F32_ROWS * F32_LDW + (ptrdiff_t)F32_ROWS * (ROUND_UP(T, LANES) + 16);
}

/* Rows n0 .. n0+n_rows (at most F32_ROWS) of W times all T tokens. */
static void FN(f32_forward_panel)(const projection *p, const float *packed, int T, int K, int n0, int n_rows,
                                  float *scratch) {
    const ggml_format *format = &ggml_formats[p->type];
    const int padded = ROUND_UP(n_rows, MR), tiles = ROUND_UP(T, LANES) / LANES, ldc = tiles * LANES + 16;
    float *w = scratch, *c = scratch + F32_ROWS * F32_LDW;
    memset(c, 0, sizeof(float) * padded * ldc);
    for (int k0 = 0; k0 < K; k0 += F32_DEPTH) {
        const int depth = MIN(F32_DEPTH, K - k0);
        for (int i = 0; i < padded; i++)
            if (i < n_rows) FN(unpack_to_f32)(p->type, p->weight + (n0 + i) * p->row_bytes, k0, depth, w + i * F32_LDW);
            else memset(w + i * F32_LDW, 0, sizeof(float) * depth);
        const uint8_t *next = p->weight + n0 * p->row_bytes +
                              (ptrdiff_t)(k0 + depth) / format->block_size * format->type_size;
        const int next_bytes = MIN(F32_DEPTH, K - k0 - depth) / format->block_size * format->type_size;
        for (int tile = 0; tile < tiles; tile++) {
            prefetch_rows(next, p->row_bytes, n_rows, next_bytes, tile, tiles);
            for (int i = 0; i < padded; i += MR)
                FN(f32_tile)(c + (ptrdiff_t)i * ldc + tile * LANES, ldc, w + i * F32_LDW, F32_LDW,
                             packed + ((ptrdiff_t)tile * K + k0) * LANES, LANES, depth);
        }
    }
    FN(write_outputs)(p, c, ldc, n0, n_rows, T);
}

/* --- backward --- */

static ptrdiff_t FN(f32_backward_scratch)(int T) {
    return F32_CHUNK * F32_COLUMNS + F32_COLUMNS + MR * F32_CHUNK + (ptrdiff_t)ROUND_UP(T, MR) * F32_LDC;
}

/* dx[t0 .. t1][k0 .. k0+n_columns] += dy[.][n0 .. n0+n] . W for one projection; n_columns is at most F32_COLUMNS. All
 * that a tile touches is copied together first: rows of dx and dy often lie a power of two apart and would fall on the
 * same cache sets. */
static void FN(f32_backward_slice)(float *dx, int K, const projection *p, const float *packed, int all_T, int n0, int n,
                                   int k0, int n_columns, int t0, int t1, float *scratch) {
    float *w = scratch, *row = w + F32_CHUNK * F32_COLUMNS, *a = row + F32_COLUMNS, *c = a + MR * F32_CHUNK;
    const ggml_format *format = &ggml_formats[p->type];
    const int tiles = ROUND_UP(n_columns, LANES) / LANES, T = t1 - t0;
    const int bytes = n_columns / format->block_size * format->type_size;
    memset(c, 0, sizeof(float) * ROUND_UP(T, MR) * F32_LDC);
    memset(row, 0, sizeof(float) * F32_COLUMNS);
    memset(a, 0, sizeof(float) * MR * F32_CHUNK);
    for (const int end = n0 + n; n0 < end; n0 += F32_CHUNK) {
        const int depth = MIN(F32_CHUNK, end - n0), next_rows = MIN(F32_CHUNK, end - n0 - depth);
        const uint8_t *blocks = p->weight + n0 * p->row_bytes + k0 / format->block_size * format->type_size;
        for (int i = 0; i < depth; i++) {               /* w[column / LANES][row][LANES] */
            FN(unpack_to_f32)(p->type, p->weight + (n0 + i) * p->row_bytes, k0, n_columns, row);
            for (int tile = 0; tile < tiles; tile++)
                memcpy(w + (tile * F32_CHUNK + i) * LANES, row + tile * LANES, sizeof(float) * LANES);
        }
        for (int t = 0; t < T; t += MR) {
            prefetch_rows(blocks + depth * p->row_bytes, p->row_bytes, next_rows, bytes, t / MR,
                          ROUND_UP(T, MR) / MR);
            for (int i = 0; i < MIN(MR, T - t); i++)
                memcpy(a + i * F32_CHUNK, p->dy + (ptrdiff_t)(t0 + t + i) * p->N + n0, sizeof(float) * depth);
            for (int tile = 0; tile < tiles; tile++)
                FN(f32_tile)(c + (ptrdiff_t)t * F32_LDC + tile * LANES, F32_LDC, a, F32_CHUNK,
                             w + tile * F32_CHUNK * LANES, LANES, depth);
        }
    }
    FN(add_sums)(dx, K, c, F32_LDC, k0, n_columns, t0, t1);
}
#undef MR
#undef LANES

static const gemm_core FN(f32_core) = {
    .arithmetic = "float32",
    .token_tile = 2 * VF_WIDTH, .panel_rows = F32_ROWS, .panel_unit = 12, .slice_columns = F32_COLUMNS,
    .packed_x = FN(f32_packed_floats), .pack_x = FN(f32_pack_tokens),
    .forward_scratch = FN(f32_forward_scratch), .forward_panel = FN(f32_forward_panel),
    .backward_scratch = FN(f32_backward_scratch), .backward_slice = FN(f32_backward_slice),
};
