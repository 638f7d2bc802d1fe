/* The core for few tokens, which generation has: y = x . W^T row by row.
 *
 * With one token each weight is used once, so the product takes as long as W takes to come from memory, if unpacking
 * keeps up. Tiles as the other cores have them would waste most of their lanes on tokens that are not there. Here lanes
 * run along K, in float32:
 *     y[t][n] = sum_blocks scale[n][block] (q[n][block] . x[t][block])
 *             - sum_halves min[n][half] (sum of x[t] over the half block)
 * Rows of Q8_0 and F32 go straight from memory to registers; the other types make a stop on the way, as 256 int16 or
 * float32 in the first-level cache.
 */
#ifndef GEMV_BODY_H
#define GEMV_BODY_H
#define GEMV_TOKENS 4           /* at most; their sums stay in registers */
#define GEMV_AHEAD 4096         /* bytes fetched ahead; half as many or twice as many are slower */
#define GEMV_INLINE static inline __attribute__((always_inline, unused))

/* Fetches the n bytes that come GEMV_AHEAD after p into the second-level cache. The processor's own prefetching stops
 * at the end of each page and keeps too little on its way: with it alone, Q8_0 comes at little more than half the
 * speed. */
GEMV_INLINE void gemv_prefetch(const void *p, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i += 64) __builtin_prefetch((const char *)p + GEMV_AHEAD + i, 0, 2);
}
#endif

/* VF_WIDTH int8 as float32. */
GEMV_INLINE vf FN(load_q8)(const int8_t *q) {
#if SIMD_IS_AVX512
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)q)));
#elif SIMD_IS_AVX2
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)q)));
#elif SIMD_IS_NEON
    int32_t four;
    memcpy(&four, q, 4);
    return (vf)vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
#else
    int8_t v __attribute__((vector_size(VF_WIDTH)));
    memcpy(&v, q, sizeof v);
    return __builtin_convertvector(v, vf);
#endif
}

/* Packed x: T rows of x, zeros up to whole 256 values, and then T rows of sums over 16 values each, which the minima
 * multiply. */
#define PADDED(K) (ptrdiff_t)ROUND_UP(K, QK)
static ptrdiff_t FN(gemv_packed_floats)(int T, int K) { return T * (PADDED(K) + PADDED(K) / 16); }

static void FN(gemv_pack)(float *packed, const float *x, int T, int K, int tile) {
    float *sums = packed + T * PADDED(K);
    for (int t = 0; t < T; t++, x += K, packed += PADDED(K)) {
        memcpy(packed, x, sizeof *x * K);
        memset(packed + K, 0, sizeof *x * (PADDED(K) - K));
        for (ptrdiff_t k = 0; k < PADDED(K); k += 16) {
            vf sum = vf_load(packed + k);
            for (int i = VF_WIDTH; i < 16; i += VF_WIDTH) sum += vf_load(packed + k + i);
            *sums++ = vf_sum(sum);
        }
    }
}

/* sum[t] += scale (q . x[t]) over a block of 32 values. x has rows of ldx floats. */
GEMV_INLINE void FN(gemv_block)(vf *sum, const vf q[32 / VF_WIDTH], float scale, const float *x, ptrdiff_t ldx, int T) {
    for (int t = 0; t < T; t++, x += ldx) {
        vf even = {0}, odd = {0};
#pragma GCC unroll 8
        for (int i = 0; i < 32 / VF_WIDTH; i += 2)
            even += q[i] * vf_load(x + i * VF_WIDTH), odd += q[i + 1] * vf_load(x + (i + 1) * VF_WIDTH);
        sum[t] += scale * (even + odd);
    }
}

/* sum[t] += scale (q . x[t]) for one block of Q8_0. */
GEMV_INLINE void FN(gemv_block_q8_0)(vf *sum, const block_q8_0 *b, const float *x, ptrdiff_t ldx, int T) {
    vf q[32 / VF_WIDTH];
#pragma GCC unroll 8
    for (int i = 0; i < 32 / VF_WIDTH; i++) q[i] = FN(load_q8)(b->q + i * VF_WIDTH);
    FN(gemv_block)(sum, q, FN(f16)(b->d), x, ldx, T);
}

/* Q8_0 takes the least work a byte, so memory has to be quickest for it: two rows at a time, far apart, come faster
 * than one. */
GEMV_INLINE void FN(gemv_rows_q8_0)(const projection *p, const float *x, int T, int K, int n0, int n_rows) {
    const int half = (n_rows + 1) / 2, last = n0 + n_rows - 1;
    for (int n = n0; n < n0 + half; n++) {
        const int m = MIN(n + half, last);              /* of an odd number of rows, the last is computed twice */
        const block_q8_0 *a = (const block_q8_0 *)(p->weight + n * p->row_bytes);
        const block_q8_0 *b = (const block_q8_0 *)(p->weight + m * p->row_bytes);
        vf sum_a[GEMV_TOKENS] = {{0}}, sum_b[GEMV_TOKENS] = {{0}};
        for (int k = 0; k < K; k += QK) {
            gemv_prefetch(a, QK / 32 * sizeof *a);
            gemv_prefetch(b, QK / 32 * sizeof *b);
            for (int i = k; i < MIN(k + QK, K); i += 32, a++, b++) {
                FN(gemv_block_q8_0)(sum_a, a, x + i, PADDED(K), T);
                FN(gemv_block_q8_0)(sum_b, b, x + i, PADDED(K), T);
            }
        }
        for (ptrdiff_t t = 0; t < T; t++)
            p->y[t * p->N + n] = vf_sum(sum_a[t]), p->y[t * p->N + m] = vf_sum(sum_b[t]);
    }
}

/* Other integers. Behind the last block of a row, min is left over from the 256 values before, and x_sums are zero. */
GEMV_INLINE void FN(gemv_row_int)(vf *sum, int type, const uint8_t *row, const float *x, const float *x_sums, int K,
                                  int T) {
    const ggml_format *format = &ggml_formats[type];
    int16_t values[QK];
    float scale[QK / 32], min[QK / 16] = {0};
    for (int k = 0; k < K; k += QK, x += QK, x_sums += QK / 16) {
        const int n = MIN(QK, K - k), n_blocks = n / format->block_size;
        gemv_prefetch(row, n_blocks * format->type_size);
        FN(unpackers)[type](row, n_blocks, values, scale, min);
        row += n_blocks * format->type_size;
        for (int block = 0; block < n / 32; block++) {
            vf q[32 / VF_WIDTH];
#pragma GCC unroll 8
            for (int i = 0; i < 32 / VF_WIDTH; i++) q[i] = FN(load_q)(values + 32 * block + i * VF_WIDTH);
            FN(gemv_block)(sum, q, scale[block], x + 32 * block, PADDED(K), T);
        }
        if (!format->min_every) continue;
        for (int t = 0; t < T; t++)
#pragma GCC unroll 4
            for (int i = 0; i < QK / 16; i += VF_WIDTH)
                sum[t] -= vf_load(min + i) * vf_load(x_sums + t * PADDED(K) / 16 + i);
    }
}

/* Floats, whose rows may end anywhere. */
GEMV_INLINE void FN(gemv_row_float)(vf *sum, int type, const uint8_t *row, const float *x, int K, int T) {
    float unpacked[QK];
    for (int k = 0; k < K; k += QK, x += QK) {
        const int n = MIN(QK, K - k), bytes = n / ggml_formats[type].block_size * ggml_formats[type].type_size;
        const float *w = unpacked;
        gemv_prefetch(row, bytes);
        if (type == GGML_F32) w = (const float *)row;
        else FN(unpack_to_f32)(type, row, 0, n, unpacked);
        int i = 0;
        for (; i + VF_WIDTH <= n; i += VF_WIDTH)
            for (int t = 0; t < T; t++) sum[t] += vf_load(w + i) * vf_load(x + t * PADDED(K) + i);
        if (i < n)
            for (int t = 0; t < T; t++) sum[t] += vf_load_part(w + i, n - i) * vf_load(x + t * PADDED(K) + i);
        row += bytes;
    }
}

GEMV_INLINE void FN(gemv_rows)(const projection *p, const float *x, int T, int K, int n0, int n_rows) {
    if (p->type == GGML_Q8_0) {
        FN(gemv_rows_q8_0)(p, x, T, K, n0, n_rows);
        return;
    }
    for (int n = n0; n < n0 + n_rows; n++) {
        const uint8_t *row = p->weight + n * p->row_bytes;
        vf sum[GEMV_TOKENS] = {{0}};
        if (ggml_is_float(p->type)) FN(gemv_row_float)(sum, p->type, row, x, K, T);
        else FN(gemv_row_int)(sum, p->type, row, x, x + T * PADDED(K), K, T);
        for (ptrdiff_t t = 0; t < T; t++) p->y[t * p->N + n] = vf_sum(sum[t]);
    }
}

/* Adds residual and rank-R update to rows n0 .. n0+n_rows of y^T. */
GEMV_INLINE void FN(gemv_finish)(const projection *p, int T, int n0, int n_rows) {
    for (ptrdiff_t t = 0; t < T; t++) {
        float *y = p->y + t * p->N + n0;
        if (p->residual)
            for (int j = 0; j < n_rows; j++) y[j] += p->residual[t * p->N + n0 + j];
        if (p->R) FN(add_low_rank_row)(y, n_rows, p->R, p->c + t * p->R, p->v + n0, p->N);
    }
}

/* Rows n0 .. n0+n_rows of W times all T tokens. */
static void FN(gemv_forward_panel)(const projection *p, const float *packed, int T, int K, int n0, int n_rows,
                                   float *scratch) {
    switch (T) {                /* constants, so that sum[T] are registers */
    case 1: FN(gemv_rows)(p, packed, 1, K, n0, n_rows); break;
    case 2: FN(gemv_rows)(p, packed, 2, K, n0, n_rows); break;
    case 3: FN(gemv_rows)(p, packed, 3, K, n0, n_rows); break;
    default: FN(gemv_rows)(p, packed, GEMV_TOKENS, K, n0, n_rows);
    }
    FN(gemv_finish)(p, T, n0, n_rows);
}

static ptrdiff_t FN(gemv_forward_scratch)(int T) { return 0; }

static const gemm_core FN(gemv_core) = {
    .token_tile = GEMV_TOKENS, .panel_rows = 64, .panel_unit = 16,
    .packed_x = FN(gemv_packed_floats), .pack_x = FN(gemv_pack),
    .forward_scratch = FN(gemv_forward_scratch), .forward_panel = FN(gemv_forward_panel),
};
