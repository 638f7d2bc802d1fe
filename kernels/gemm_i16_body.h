/* The int16 core: integer weights times activations or gradients rounded to int16, summed exactly in int32. A
 * multiply-add of int16 pairs does twice the work of a float32 FMA, and more precisely than it sounds: NMSE about 1e-9
 * (kernels/README.md).
 *
 * One register tile serves both directions:   acc[i][lane] = sum_d a[i][d] b[d][lane],   in int32
 *
 *   forward    a = q of rows of W, as unpacked    b = x^T rounded        lanes = tokens
 *              Summed over blocks of 32 values of k, which share a scale of x and one of W:
 *              y[t][n] = sum_blocks (scale of x[t]) (scale of W[n]) acc - (min of W[n]) (sum of x[t] over the block)
 *   backward   a = dy d rounded                   b = q of rows of W     lanes = columns
 *              Summed over chunks of 256 rows n of W. Their scales d[n][k / 32] change along this sum, so they go into
 *              a = (dy[t][n] / S) (d[n][k / 32] / D), S being the largest |dy[t][n]| of the chunk over 32767 and D the
 *              largest |d|. dy / S is rounded to int16 once for all columns, d / D to a 16-bit fraction for every 32
 *              columns, and their product is rounded again:
 *              dx[t][k] += sum_chunks S (D acc - sum_n (dy[t][n] / S) min[n][k / 32])
 * (Q2_K has a min for every 16 values of k.)
 *
 * The sums fit: |q| <= q_max, and x and dy are rounded to +-32767; sums of 32 stay below 2^31 for q_max <= 2048, sums
 * of 256 for q_max <= 256. For Q6_K (q_max = 4096) +-16383 are used, and backward goes to float32 after every 32.
 *
 * b has two values of d for each lane side by side, as the multiply-add wants them: b[d / 2][lane][2]. (NEON multiplies
 * by a single value: b[d][lane].)
 */
#if SIMD_IS_AVX512 || SIMD_IS_NEON || SIMD_IS_AVX2
#define MR 6        /* 12 int32 sums, 2 vectors of b, a broadcast (AVX2: and a product, which makes 16 of 16 registers);
                       of 32 registers, 12 hold the float32 sums, which AVX2 keeps in L1 */
#else
#define MR 4
#endif
#define LANES (2 * VF_WIDTH)
#define DEPTH 256               /* values along the sum unpacked at a time: forward k, backward n, a chunk */
#define LDA (DEPTH + 32)        /* int16 values from row to row of a: padded, to spread rows over cache sets */
#define PANEL_ROWS 96           /* rows of W in a panel (forward): a multiple of MR */
#define COLUMNS MAX(256, 32 * VF_WIDTH)     /* columns of W in a slice (backward) */
#define MINIMA (COLUMNS / 16)   /* of a row of the slice, at most */
#define TOKENS 12               /* tokens whose dy is scaled at a time (backward): a multiple of MR and 3 */
#define LDB (DEPTH * LANES + 2 * LANES)     /* int16 values from LANES columns of W to the next (backward), padded */
#define LDC (COLUMNS + 16)      /* floats from row to row of the sums of dx (backward) */
#define X_BLOCK (19 * LANES)    /* floats of packed x for 32 k: LANES times 16 pairs, a scale, sums over both halves */

#define ROUND_MAGIC 12582912.0f /* 1.5 * 2^23: added to |v| < 2^22, it leaves v rounded in the lower bits */
#define I16_TINY 1e-30f         /* values that are all smaller are rounded to zero, for 32767 / max must be finite */

#define I16_INLINE static inline __attribute__((always_inline))

I16_INLINE vi FN(i16_set_pair)(const int16_t *a) { int32_t pair; memcpy(&pair, a, 4); return pair - (vi){0}; }
I16_INLINE vh FN(i16_load)(const int16_t *p) { vh v; memcpy(&v, p, sizeof v); return v; }
I16_INLINE void FN(i16_store)(int16_t *p, vh v) { memcpy(p, &v, sizeof v); }

/* sum[lane] + a[lane][0] b[lane][0] + a[lane][1] b[lane][1] */
I16_INLINE vi FN(i16_multiply_add)(vi sum, vi a, vi b) {
#if SIMD_IS_AVX512
    return (vi)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif SIMD_IS_AVX2
    return sum + (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif SIMD_X86
    return sum + (vi)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    return sum + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

#if !SIMD_IS_NEON
/* acc += the pair at a times the pairs of 2 * VF_WIDTH lanes. With all registers in use, what GCC 12 and clang 14 make
 * of the intrinsics goes to the stack. */
I16_INLINE void FN(i16_multiply_add_row)(vi acc[2], const int16_t *a, vi b0, vi b1) {
#if SIMD_IS_AVX2
    vi sum0 = acc[0], sum1 = acc[1], pair, product;
    __asm__("vpbroadcastd %4, %2\n\tvpmaddwd %5, %2, %3\n\tvpmaddwd %6, %2, %2\n\t"
            "vpaddd %3, %0, %0\n\tvpaddd %2, %1, %1"
            : "+x"(sum0), "+x"(sum1), "=&x"(pair), "=&x"(product)
            : "m"(*(const int16_t(*)[2])a), "x"(b0), "x"(b1));
    acc[0] = sum0, acc[1] = sum1;
#else
    const vi pair = FN(i16_set_pair)(a);
    acc[0] = FN(i16_multiply_add)(acc[0], pair, b0), acc[1] = FN(i16_multiply_add)(acc[1], pair, b1);
#endif
}

/* acc += a pair of each of MR rows times the pairs of LANES lanes. */
I16_INLINE void FN(i16_next_pair)(vi acc[MR][2], const int16_t *a, const int16_t *b) {
    const vi b0 = (vi)FN(i16_load)(b), b1 = (vi)FN(i16_load)(b + LANES);
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) FN(i16_multiply_add_row)(acc[i], a + i * LDA, b0, b1);
}
#endif

/* acc (MR x LANES) = a (MR x 2*pairs, row stride LDA) . b (2*pairs x LANES); pairs is a multiple of 16. */
I16_INLINE void FN(i16_tile)(vi acc[MR][2], const int16_t *a, const int16_t *b, int pairs) {
#if SIMD_IS_NEON
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) acc[i][0] = acc[i][1] = (vi){0};
    for (int p = 0; p < pairs; p += 2, a += 4, b += 4 * LANES) {
        const int16x8_t b0 = vld1q_s16(b), b1 = vld1q_s16(b + LANES);
        const int16x8_t b2 = vld1q_s16(b + 2 * LANES), b3 = vld1q_s16(b + 3 * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++) {
            const int16x4_t w = vld1_s16(a + i * LDA);
            int32x4_t low = (int32x4_t)acc[i][0], high = (int32x4_t)acc[i][1];
            low = vmlal_lane_s16(low, vget_low_s16(b0), w, 0), high = vmlal_high_lane_s16(high, b0, w, 0);
            low = vmlal_lane_s16(low, vget_low_s16(b1), w, 1), high = vmlal_high_lane_s16(high, b1, w, 1);
            low = vmlal_lane_s16(low, vget_low_s16(b2), w, 2), high = vmlal_high_lane_s16(high, b2, w, 2);
            low = vmlal_lane_s16(low, vget_low_s16(b3), w, 3), high = vmlal_high_lane_s16(high, b3, w, 3);
            acc[i][0] = (vi)low, acc[i][1] = (vi)high;
        }
    }
#else
    const vi zero = {0}, b0 = (vi)FN(i16_load)(b), b1 = (vi)FN(i16_load)(b + LANES);
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) {          /* the first pair by itself saves adding it to zero */
        const vi pair = FN(i16_set_pair)(a + i * LDA);
        acc[i][0] = FN(i16_multiply_add)(zero, pair, b0), acc[i][1] = FN(i16_multiply_add)(zero, pair, b1);
    }
    FN(i16_next_pair)(acc, a + 2, b + 2 * LANES);
    for (int p = 2; p < pairs; p += 2) {
        a += 4, b += 4 * LANES;
        FN(i16_next_pair)(acc, a, b);
        FN(i16_next_pair)(acc, a + 2, b + 2 * LANES);
    }
#endif
}

/* The larger of max and |v|, as bits: as int32 they have the order of float32, with NaN above all, so none is lost. */
I16_INLINE vi FN(i16_larger)(vi max, vf v) {
    const vi bits = (vi)v & 0x7fffffff;
#if SIMD_IS_AVX512
    return (vi)_mm512_max_epi32((__m512i)max, (__m512i)bits);
#elif SIMD_IS_AVX2
    return (vi)_mm256_max_epi32((__m256i)max, (__m256i)bits);
#elif SIMD_IS_NEON
    return (vi)vmaxq_s32((int32x4_t)max, (int32x4_t)bits);
#else
    return (vi)vf_select(max > bits, (vf)max, (vf)bits);
#endif
}

/* The lower halves of the elements, which are rounded values, become pairs [lane][2]. */
#if !SIMD_IS_NEON
I16_INLINE vi FN(i16_pair)(vi first, vi second) {
#if SIMD_IS_AVX512
    return (vi)_mm512_mask_blend_epi16(0xaaaaaaaa, (__m512i)first, (__m512i)(second << 16));
#elif SIMD_IS_AVX2
    return (vi)_mm256_blend_epi16((__m256i)first, (__m256i)(second << 16), 0xaa);
#else
    return (first & 0xffff) | second << 16;
#endif
}
#endif

/* ---- forward ---- */

static ptrdiff_t FN(i16_packed_floats)(int T, int K) {
    return (ptrdiff_t)ROUND_UP(T, LANES) / LANES * (K / 32) * X_BLOCK;
}

/* Tokens tile * LANES .. of x (T, K) become packed[tile][k / 32], rounded to +-limit; lanes beyond T are zero. */
I16_INLINE void FN(i16_pack)(float *packed, const float *x, int T, int K, int tile, float limit) {
    packed += (ptrdiff_t)tile * (K / 32) * X_BLOCK;
    for (int k = 0; k < K; k += 32, packed += X_BLOCK)
        for (int half = 0; half < LANES; half += VF_WIDTH) {
            const int t0 = tile * LANES + half, n = MIN(VF_WIDTH, T - t0);
            vf v[32];                                   /* x^T: from here on, a lane is a token */
            for (int j = 0; j < 32; j += VF_WIDTH) {
                for (int i = 0; i < VF_WIDTH; i++)
                    v[j + i] = i < n ? vf_load(x + (ptrdiff_t)(t0 + i) * K + k + j) : vf_set1(0);
                vf_transpose(v + j);
            }
            vi largest = {0};
            for (int j = 0; j < 32; j++) largest = FN(i16_larger)(largest, v[j]);
            const vf max = (vf)largest;
            vf sum[2] = {{0}, {0}};
            for (int j = 0; j < 16; j++) sum[0] += v[j], sum[1] += v[16 + j];
            const vf inverse = vf_select(max > I16_TINY, limit / max, vf_set1(0));
            int16_t *q = (int16_t *)packed;
            for (int j = 0; j < 32; j += 2) {
                const vi first = (vi)(v[j] * inverse + ROUND_MAGIC), second = (vi)(v[j + 1] * inverse + ROUND_MAGIC);
#if SIMD_IS_NEON
                vst1_s16(q + j * LANES + half, vmovn_s32((int32x4_t)first));
                vst1_s16(q + (j + 1) * LANES + half, vmovn_s32((int32x4_t)second));
#else
                const vi pair = FN(i16_pair)(first, second);
                memcpy(q + j * LANES + 2 * half, &pair, sizeof pair);
#endif
            }
            vf_store(packed + 16 * LANES + half, max / limit);
            vf_store(packed + 17 * LANES + half, sum[0]);
            vf_store(packed + 18 * LANES + half, sum[1]);
        }
}
static void FN(i16_pack_tokens)(float *packed, const float *x, int T, int K, int tile) {
    FN(i16_pack)(packed, x, T, K, tile, 32767);
}
static void FN(i16_wide_pack_tokens)(float *packed, const float *x, int T, int K, int tile) {
    FN(i16_pack)(packed, x, T, K, tile, 16383);
}

/* c (MR x LANES, row stride ldc) += MR rows of W times LANES tokens, over n_blocks blocks of 32 k; a block has
 * n_min minima. */
I16_INLINE void FN(i16_forward_tile)(float *restrict c, ptrdiff_t ldc, const int16_t *restrict w,
                                     const float *restrict scale, const float *restrict min, const float *restrict x,
                                     int n_blocks, int n_min) {
    vf sum[MR][2];
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) sum[i][0] = vf_load(c + i * ldc), sum[i][1] = vf_load(c + i * ldc + VF_WIDTH);
    for (int block = 0; block < n_blocks; block++, w += 32, x += X_BLOCK, scale++, min += 2) {
        vi acc[MR][2];
        FN(i16_tile)(acc, w, (const int16_t *)x, 16);
        const vf s0 = vf_load(x + 16 * LANES), s1 = vf_load(x + 16 * LANES + VF_WIDTH);
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++) {
            sum[i][0] += __builtin_convertvector(acc[i][0], vf) * (scale[i * DEPTH / 32] * s0);
            sum[i][1] += __builtin_convertvector(acc[i][1], vf) * (scale[i * DEPTH / 32] * s1);
        }
        if (n_min == 0) continue;
        const vf a0 = vf_load(x + 17 * LANES), a1 = vf_load(x + 17 * LANES + VF_WIDTH);
        const vf b0 = vf_load(x + 18 * LANES), b1 = vf_load(x + 18 * LANES + VF_WIDTH);
        if (n_min == 1) {
            const vf x0 = a0 + b0, x1 = a1 + b1;
#pragma GCC unroll 8
            for (int i = 0; i < MR; i++) sum[i][0] -= min[i * DEPTH / 16] * x0, sum[i][1] -= min[i * DEPTH / 16] * x1;
        } else {
#pragma GCC unroll 8
            for (int i = 0; i < MR; i++) {
                sum[i][0] -= min[i * DEPTH / 16] * a0 + min[i * DEPTH / 16 + 1] * b0;
                sum[i][1] -= min[i * DEPTH / 16] * a1 + min[i * DEPTH / 16 + 1] * b1;
            }
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) vf_store(c + i * ldc, sum[i][0]), vf_store(c + i * ldc + VF_WIDTH, sum[i][1]);
}

/* The same for n_rows rows of W, a multiple of MR. next_x is what x will be, fetched meanwhile. */
I16_INLINE void FN(i16_forward_tiles)(float *c, ptrdiff_t ldc, const int16_t *w, const float *scale, const float *min,
                                      const float *x, const float *next_x, int n_rows, int n_blocks, int n_min) {
    for (int i = 0; i < n_rows; i += MR) {
        prefetch_rows(next_x, 64, n_blocks * X_BLOCK / 16, 64, i / MR, n_rows / MR);
        FN(i16_forward_tile)(c + i * ldc, ldc, w + i * LDA, scale + i * DEPTH / 32, min + i * DEPTH / 16, x, n_blocks,
                             n_min);
    }
}

static ptrdiff_t FN(i16_forward_scratch)(int T) {
    return PANEL_ROWS * (LDA / 2 + DEPTH / 32 + DEPTH / 16) + (ptrdiff_t)PANEL_ROWS * (ROUND_UP(T, LANES) + 16);
}

/* Rows n0 .. n0+n_rows (at most PANEL_ROWS) of W times all T tokens. */
static void FN(i16_forward_panel)(const projection *p, const float *packed, int T, int K, int n0, int n_rows,
                                  float *scratch) {
    const ggml_format *format = &ggml_formats[p->type];
    const int padded = ROUND_UP(n_rows, MR), tiles = ROUND_UP(T, LANES) / LANES, ldc = tiles * LANES + 16;
    const int n_min = format->min_every ? 32 / format->min_every : 0;
    const ptrdiff_t x_tile = (ptrdiff_t)(K / 32) * X_BLOCK;
    int16_t *w = (int16_t *)scratch;
    float *scale = scratch + PANEL_ROWS * LDA / 2, *min = scale + PANEL_ROWS * DEPTH / 32;
    float *c = min + PANEL_ROWS * DEPTH / 16;
    memset(c, 0, sizeof(float) * padded * ldc);
    for (int i = n_rows; i < padded; i++) {             /* rows that only fill up a tile: any finite values */
        memset(w + i * LDA, 0, sizeof *w * DEPTH);
        memset(scale + i * DEPTH / 32, 0, sizeof(float) * DEPTH / 32);
        memset(min + i * DEPTH / 16, 0, sizeof(float) * DEPTH / 16);
    }
    for (int k0 = 0; k0 < K; k0 += DEPTH) {
        const int depth = MIN(DEPTH, K - k0), n_blocks = depth / format->block_size;
        const uint8_t *row = p->weight + n0 * p->row_bytes + k0 / format->block_size * format->type_size;
        const float *x = packed + (ptrdiff_t)(k0 / 32) * X_BLOCK;
        for (int i = 0; i < n_rows; i++)
            FN(unpackers)[p->type](row + i * p->row_bytes, n_blocks, w + i * LDA, scale + i * DEPTH / 32,
                                   min + i * DEPTH / 16);
        const uint8_t *next_row = row + n_blocks * format->type_size;
        const int next_bytes = MIN(DEPTH, K - k0 - depth) / format->block_size * format->type_size;
        for (int tile = 0; tile < tiles; tile++) {
            const float *next_x = tile + 1 < tiles ? x + x_tile : packed + (ptrdiff_t)(k0 + depth) / 32 * X_BLOCK;
            float *sums = c + tile * LANES;
            prefetch_rows(next_row, p->row_bytes, n_rows, next_bytes, tile, tiles);
            if (k0 + depth == K)                        /* where the outputs will go */
                prefetch_rows(p->y + n0, sizeof(float) * p->N, T, sizeof(float) * n_rows, tile, tiles);
            if (n_min == 0) FN(i16_forward_tiles)(sums, ldc, w, scale, min, x, next_x, padded, depth / 32, 0);
            else if (n_min == 1) FN(i16_forward_tiles)(sums, ldc, w, scale, min, x, next_x, padded, depth / 32, 1);
            else FN(i16_forward_tiles)(sums, ldc, w, scale, min, x, next_x, padded, depth / 32, 2);
            x += x_tile;
        }
    }
    FN(write_outputs)(p, c, ldc, n0, n_rows, T);
}

/* ---- backward ---- */

/* Packed dy: for each chunk of DEPTH columns a row a token, of dy / S as int16, with zeros up to a multiple of 32; the
 * rows of a chunk follow each other, as they are read. Behind all of them S, [chunk][token], which is the largest |dy|
 * of the chunk / 32767 (or 16383). TOKENS tokens of zeros follow the last one. */
static ptrdiff_t FN(i16_dy_rows)(int T, int n) { return (ptrdiff_t)ROUND_UP(n, DEPTH) / DEPTH * (T + TOKENS); }
static ptrdiff_t FN(i16_packed_dy_floats)(int T, int n) {
    return ROUND_UP(FN(i16_dy_rows)(T, n) * (DEPTH / 2 + 1), 16);
}

/* n values times inverse, rounded, and zeros up to a multiple of 32. */
I16_INLINE void FN(i16_round_row)(int16_t *to, const float *from, int n, float inverse) {
    for (int j = 0; j < ROUND_UP(n, 32); j += VF_WIDTH) {
        const vf v = j + VF_WIDTH <= n ? vf_load(from + j) : vf_load_part(from + j, MAX(0, n - j));
        const int16_t q __attribute__((vector_size(2 * VF_WIDTH))) =
            __builtin_convertvector((vi)(v * inverse + ROUND_MAGIC), __typeof__(q));
        memcpy(to + j, &q, sizeof q);
    }
}

#define I16_TAKE_LARGER(v, n) v = FN(i16_larger)(v, (vf)VF_SWAP(v, n))
/* The largest magnitude of n values; NaN if there is one. */
I16_INLINE float FN(i16_largest)(const float *from, int n) {
    vi largest = {0};
    int j = 0;
    for (; j + VF_WIDTH <= n; j += VF_WIDTH) largest = FN(i16_larger)(largest, vf_load(from + j));
    if (j < n) largest = FN(i16_larger)(largest, vf_load_part(from + j, n - j));
    VF_REDUCE(I16_TAKE_LARGER, largest);
    return ((vf)largest)[0];
}

/* Tokens tile * LANES .. of dy (T, N), columns n0 .. n0+n. */
I16_INLINE void FN(i16_pack_rows)(float *packed, const float *dy, int T, int N, int n0, int n, int tile, float limit) {
    const int end = MIN(T, (tile + 1) * LANES);
    const ptrdiff_t chunk = T + TOKENS;                 /* rows of it */
    int16_t *q = (int16_t *)packed;
    float *S = packed + FN(i16_dy_rows)(T, n) * DEPTH / 2;
    for (ptrdiff_t t = tile * LANES; t < end; t++)      /* a row of dy after the other, as it lies in memory */
        for (int j = 0; j < n; j += DEPTH) {
            const float *from = dy + t * N + n0 + j;
            const int width = MIN(DEPTH, n - j);
            const ptrdiff_t row = j / DEPTH * chunk + t;
            const float max = FN(i16_largest)(from, width);
            FN(i16_round_row)(q + row * DEPTH, from, width, max > I16_TINY ? limit / max : 0);
            S[row] = max / limit;
        }
    if (end == T)
        for (ptrdiff_t row = T; row < FN(i16_dy_rows)(T, n); row += chunk)
            memset(q + row * DEPTH, 0, sizeof *q * TOKENS * DEPTH), memset(S + row, 0, sizeof *S * TOKENS);
}
static void FN(i16_pack_dy)(float *packed, const float *dy, int T, int N, int n0, int n, int tile) {
    FN(i16_pack_rows)(packed, dy, T, N, n0, n, tile, 32767);
}
static void FN(i16_wide_pack_dy)(float *packed, const float *dy, int T, int N, int n0, int n, int tile) {
    FN(i16_pack_rows)(packed, dy, T, N, n0, n, tile, 16383);
}

/* What a slice works on, in a thread's scratch memory. */
typedef struct {
    int16_t w[COLUMNS / LANES * LDB];                   /* q[column / LANES][row pair][LANES][2] */
    int16_t a[TOKENS * LDA];                            /* dy d / (S D), rounded: [token][row] */
    int16_t d[COLUMNS / 32 * DEPTH];                    /* d / D in units of 2^-15, rounded: [column / 32][row] */
    float scale[COLUMNS / 32 * DEPTH];                  /* d[column / 32][row] */
    float D[COLUMNS / 32];                              /* the largest |d|, times 32768 / 32767: 32767 stands for it */
    float min[MINIMA * DEPTH];                          /* min[column / 32, or / 16][row] */
    float dy[TOKENS * DEPTH];                           /* dy / S as rounded, for the minima: [token][row] */
    float minus[TOKENS * MINIMA];                       /* sum_n (dy / S) min: [token][column / 32, or / 16] */
} __attribute__((aligned(64))) FN(i16_slice);

static ptrdiff_t FN(i16_backward_scratch)(int T) {
    return sizeof(FN(i16_slice)) / sizeof(float) + (ptrdiff_t)ROUND_UP(T, TOKENS) * LDC;
}

/* q0 and q1, of rows `row` and `row` + 1 of W, become pairs. (NEON: they follow each other.) */
I16_INLINE void FN(i16_store_rows)(int16_t *w, int row, const int16_t *q0, const int16_t *q1, int n_columns) {
    w += row * LANES;
#if SIMD_IS_NEON
    for (int k = 0; k < n_columns; k += LANES, w += LDB) {
        memcpy(w, q0 + k, sizeof *w * LANES);
        memcpy(w + LANES, q1 + k, sizeof *w * LANES);
    }
#else
    for (int k = 0; k < n_columns; k += LANES, w += LDB)
        for (int half = 0; half < LANES; half += VF_WIDTH) {
            int16_t v0 __attribute__((vector_size(2 * VF_WIDTH))), v1 __attribute__((vector_size(2 * VF_WIDTH)));
            memcpy(&v0, q0 + k + half, sizeof v0);
            memcpy(&v1, q1 + k + half, sizeof v1);
            const vi both = FN(i16_pair)(__builtin_convertvector(v0, vi), __builtin_convertvector(v1, vi));
            memcpy(w + 2 * half, &both, sizeof both);
        }
#endif
}

/* n_columns columns of n_rows rows of W, from `blocks` on, into the slice; rows of zeros follow up to `padded`. */
static void FN(i16_unpack_slice)(FN(i16_slice) *s, const projection *p, const uint8_t *blocks, int n_rows, int padded,
                                 int n_columns) {
    const ggml_format *format = &ggml_formats[p->type];
    const int n_blocks = n_columns / format->block_size;
    const int step = format->min_every / 16, mins = format->min_every ? n_columns / format->min_every : 0;
    for (int row = 0; row < padded; row += 2) {
        int16_t q[2][COLUMNS];
        for (int i = 0; i < 2; i++) {
            float scale[COLUMNS / 32] = {0}, min[COLUMNS / 16] = {0};
            if (row + i < n_rows)
                FN(unpackers)[p->type](blocks + (row + i) * p->row_bytes, n_blocks, q[i], scale, min);
            else memset(q[i], 0, sizeof q[i]);
            for (int b = 0; b < n_columns / 32; b++) s->scale[b * DEPTH + row + i] = scale[b];
            for (int b = 0; b < mins; b++) s->min[b * DEPTH + row + i] = min[step * b];
        }
        FN(i16_store_rows)(s->w, row, q[0], q[1], n_columns);
    }
    for (int b = 0; b < n_columns / 32; b++) {
        const float max = FN(i16_largest)(s->scale + b * DEPTH, padded);
        FN(i16_round_row)(s->d + b * DEPTH, s->scale + b * DEPTH, padded, max > I16_TINY ? 32767 / max : 0);
        s->D[b] = max * (32768.0f / 32767);
    }
}

/* (x y + 2^14) >> 15: the product of fractions in units of 2^-15. */
I16_INLINE vh FN(i16_fraction_product)(vh x, vh y) {
#if SIMD_IS_AVX512
    return (vh)_mm512_mulhrs_epi16((__m512i)x, (__m512i)y);
#elif SIMD_IS_AVX2
    return (vh)_mm256_mulhrs_epi16((__m256i)x, (__m256i)y);
#elif SIMD_IS_NEON
    return (vh)vqrdmulhq_s16((int16x8_t)x, (int16x8_t)y);
#else
    typedef int32_t wide __attribute__((vector_size(2 * sizeof(vh))));
    const wide product = __builtin_convertvector(x, wide) * __builtin_convertvector(y, wide);
    return __builtin_convertvector((product + 16384) >> 15, vh);
#endif
}

/* a[i][n] = (dy[i][n] / S) (d[n] / D), for the columns that share d and MR tokens. */
I16_INLINE void FN(i16_scale_dy)(int16_t *restrict a, const int16_t *restrict dy, const int16_t *restrict d,
                                 int depth) {
    for (int n = 0; n < depth; n += LANES) {
        const vh scale = FN(i16_load)(d + n);
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++)
            FN(i16_store)(a + i * LDA + n, FN(i16_fraction_product)(FN(i16_load)(dy + i * DEPTH + n), scale));
    }
}

/* minus[i][b] = sum_n (dy[i][n] / S) min[b][n], for TOKENS tokens and b < n_min; for b up to a multiple of 4, where
 * s->min is zero, minus is, too. */
static void FN(i16_minima)(FN(i16_slice) *s, const int16_t *dy, int depth, int n_min) {
    for (int i = 0; i < TOKENS; i++)
        for (int n = 0; n < depth; n += VF_WIDTH) vf_store(s->dy + i * DEPTH + n, FN(load_q)(dy + i * DEPTH + n));
    for (int i = 0; i < TOKENS; i += 3)
        for (int b = 0; b < n_min; b += 4) {
            vf sum[3][4] = {{{0}}};
            for (int n = 0; n < depth; n += VF_WIDTH)
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) {
                    const vf m = vf_load(s->min + (b + j) * DEPTH + n);
#pragma GCC unroll 3
                    for (int l = 0; l < 3; l++) sum[l][j] += vf_load(s->dy + (i + l) * DEPTH + n) * m;
                }
            for (int l = 0; l < 3; l++)
                for (int j = 0; j < 4; j++) s->minus[(i + l) * MINIMA + b + j] = vf_sum(sum[l][j]);
        }
}

/* c (MR x LANES, row stride LDC) += S (D a . b - minus); minus, of types with a minimum, is NULL for the others. The
 * int32 sums become float32 after every `exact` rows. Minus of the second VF_WIDTH lanes is next_minus further on. */
I16_INLINE void FN(i16_backward_tile)(float *restrict c, const int16_t *restrict a, const int16_t *restrict b,
                                      int depth, int exact, const float *S, float D, const float *minus,
                                      int next_minus) {
    vf sum[MR][2];
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++) sum[i][0] = sum[i][1] = vf_set1(0);
    for (int n = 0; n < depth; n += exact, a += exact, b += exact * LANES) {
        vi acc[MR][2];
        FN(i16_tile)(acc, a, b, MIN(exact, depth - n) / 2);
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++) {
            sum[i][0] += __builtin_convertvector(acc[i][0], vf);
            sum[i][1] += __builtin_convertvector(acc[i][1], vf);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < MR; i++, c += LDC) {
        vf sum0 = D * sum[i][0], sum1 = D * sum[i][1];
        if (minus) sum0 -= minus[i * MINIMA], sum1 -= minus[i * MINIMA + next_minus];
        vf_store(c, vf_load(c) + S[i] * sum0);
        vf_store(c + VF_WIDTH, vf_load(c + VF_WIDTH) + S[i] * sum1);
    }
}

/* dx[t0 .. t1][k0 .. k0+n_columns] += dy[.][n0 .. n0+n] . W for one projection. The sum is made in scratch: rows of dx
 * often lie a power of two apart and would fall on the same cache sets. */
static void FN(i16_backward_slice)(float *dx, int K, const projection *p, const float *packed, int all_T, int n0, int n,
                                   int k0, int n_columns, int t0, int t1, float *scratch) {
    FN(i16_slice) *s = (FN(i16_slice) *)scratch;
    float *c = scratch + sizeof *s / sizeof(float);
    const ggml_format *format = &ggml_formats[p->type];
    const int limit = format->q_max > 2048 ? 16383 : 32767;
    const int exact = MIN(DEPTH, INT32_MAX / (format->q_max * limit) / 32 * 32);    /* rows whose sum fits an int32 */
    const int min_columns = format->min_every ? format->min_every : 32;
    const int column_tiles = n_columns / LANES, groups = ROUND_UP(t1 - t0, TOKENS) / TOKENS;
    const int16_t *chunk = (const int16_t *)packed + t0 * DEPTH;
    const float *S = packed + FN(i16_dy_rows)(all_T, n) * DEPTH / 2 + t0;
    if (format->min_every) memset(s->min, 0, sizeof s->min);
    memset(c, 0, sizeof(float) * groups * TOKENS * LDC);
    for (int j = 0; j < n; j += DEPTH, S += all_T + TOKENS, chunk += (all_T + TOKENS) * DEPTH) {
        const int n_rows = MIN(DEPTH, n - j), depth = ROUND_UP(n_rows, 32);
        const uint8_t *blocks = p->weight + (n0 + j) * p->row_bytes + k0 / format->block_size * format->type_size;
        const uint8_t *next_blocks = blocks + n_rows * p->row_bytes;
        const int next_rows = MIN(DEPTH, n - j - n_rows), bytes = n_columns / format->block_size * format->type_size;
        const int16_t *dy = chunk;
        FN(i16_unpack_slice)(s, p, blocks, n_rows, depth, n_columns);
        for (int group = 0; group < groups; group++, dy += TOKENS * DEPTH) {
            if (format->min_every) FN(i16_minima)(s, dy, depth, n_columns / min_columns);
            for (int tile = 0; tile < column_tiles; tile++) {
                const int k = tile * LANES;
                prefetch_rows(dy + TOKENS * DEPTH, sizeof *dy * DEPTH, group + 1 < groups ? TOKENS : 0,
                              sizeof *dy * depth, tile, column_tiles);
                prefetch_rows(next_blocks, p->row_bytes, next_rows, bytes, group * column_tiles + tile,
                              groups * column_tiles);
                for (int i = 0; i < TOKENS; i += MR) {
                    if (k % format->scale_every == 0)
                        FN(i16_scale_dy)(s->a + i * LDA, dy + i * DEPTH, s->d + k / 32 * DEPTH, depth);
                    float *sums = c + (group * TOKENS + i) * LDC + k;
                    const int16_t *w = s->w + tile * LDB, *a = s->a + i * LDA;
                    const float *token_S = S + group * TOKENS + i, D = s->D[k / 32];
                    if (format->min_every)
                        FN(i16_backward_tile)(sums, a, w, depth, exact, token_S, D,
                                              s->minus + i * MINIMA + k / min_columns, VF_WIDTH / min_columns);
                    else FN(i16_backward_tile)(sums, a, w, depth, exact, token_S, D, NULL, 0);
                }
            }
        }
    }
    FN(add_sums)(dx, K, c, LDC, k0, n_columns, t0, t1);
}

static const gemm_core FN(i16_core) = {
    .arithmetic = "int16",
    .token_tile = 2 * VF_WIDTH, .panel_rows = PANEL_ROWS, .panel_unit = 12, .slice_columns = COLUMNS,
    .packed_x = FN(i16_packed_floats), .pack_x = FN(i16_pack_tokens),
    .forward_scratch = FN(i16_forward_scratch), .forward_panel = FN(i16_forward_panel),
    .packed_dy = FN(i16_packed_dy_floats), .pack_dy = FN(i16_pack_dy),
    .backward_scratch = FN(i16_backward_scratch), .backward_slice = FN(i16_backward_slice),
};
/* For q_max > 2048, with x and dy rounded to one bit less: a core of its own, so that what a projection gives does not
 * depend on the types of others that share x. */
static const gemm_core FN(i16_wide_core) = {
    .arithmetic = "int16",
    .token_tile = 2 * VF_WIDTH, .panel_rows = PANEL_ROWS, .panel_unit = 12, .slice_columns = COLUMNS,
    .packed_x = FN(i16_packed_floats), .pack_x = FN(i16_wide_pack_tokens),
    .forward_scratch = FN(i16_forward_scratch), .forward_panel = FN(i16_forward_panel),
    .packed_dy = FN(i16_packed_dy_floats), .pack_dy = FN(i16_wide_pack_dy),
    .backward_scratch = FN(i16_backward_scratch), .backward_slice = FN(i16_backward_slice),
};

#undef MR
#undef LANES
#undef DEPTH
#undef LDA
#undef PANEL_ROWS
#undef COLUMNS
#undef TOKENS
#undef LDB
#undef X_BLOCK
#undef LDC
#undef MINIMA
