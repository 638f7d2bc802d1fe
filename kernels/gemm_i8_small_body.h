/* The backward pass of the int8 core where a processor has only products of bytes added up in pairs to 16 bits (AVX2),
 * for types whose integers are small enough that more of these sums fit: 16 products of integers from -8 to 8, 8 of
 * those from -16 to 16. Only then the 16 bits are widened: a multiply-add of bytes, twice the int16 core's work, needs
 * one addition as there.
 *
 *     dx[t][k] += sum_n dy[t][n] d[n][k / 32] q[n][k]
 *
 * q stays as it is (types with a minimum have their integers moved to lie around zero, and the minimum with them), so
 * the scales d go into dy: over 64 rows n, dy over its largest magnitude is kept with 8 bits more than a byte, for every
 * 32 columns multiplied by d / D, D being the largest |d|, and then cut off to a byte, a random number added before,
 * which makes the mean exact (gemm_i8_body.h). The bytes are unsigned, dy plus 128: what this adds is taken off before,
 * 128 times the sum of q over the 64 rows. Rows are taken in the order 0, 16, 1, 17 ..., in which scaled dy comes out.
 */
#define MR 4                            /* rows of a tile, forward as well (gemm_i8_tile_body.h) */
#define SMALL_LDB (DEPTH * LANES + 64)  /* bytes from LANES columns of W to the next, padded */
#define SMALL_LDA (DEPTH + 64)          /* bytes from token to token of scaled dy, padded */
#define BLOCKS (COLUMNS / 32)

/* The largest magnitude of a type's integers, around zero. */
static inline int FN(i8_small)(const ggml_format *format) {
    return format->min_every ? (format->q_max + 1) / 2 : format->q_max;
}

/* sum += four unsigned bytes at a, the same for all lanes, times as many signed ones a lane, as pairs of products. As it
 * stands: GCC 12 would put all products of a step before the sums, and spill. */
I8_INLINE void FN(i8_small_step)(__m256i sum[2], const uint8_t *a, __m256i b0, __m256i b1) {
    __m256i four, product;
    __asm__("vpbroadcastd %4, %2\n\tvpmaddubsw %5, %2, %3\n\tvpaddw %3, %0, %0\n\t"
            "vpmaddubsw %6, %2, %2\n\tvpaddw %2, %1, %1"
            : "+x"(sum[0]), "+x"(sum[1]), "=&x"(four), "=&x"(product) : "m"(*(const int32_t *)a), "x"(b0), "x"(b1));
}

/* acc += a (MR x depth, rows of lda bytes) . b (depth x LANES); sums of 16 bits are widened after `steps` steps. */
I8_INLINE void FN(i8_small_products)(vi acc[MR][2], const uint8_t *a, ptrdiff_t lda, const uint8_t *b, int depth,
                                     int steps) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int d0 = 0; d0 < depth; d0 += 4 * steps) {
        __m256i sum[MR][2];
#pragma GCC unroll 4
        for (int i = 0; i < MR; i++) sum[i][0] = sum[i][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
        for (int step = 0; step < steps; step++, a += 4, b += 4 * LANES) {
            const __m256i b0 = (__m256i)FN(i8_load)(b), b1 = (__m256i)FN(i8_load)(b + 2 * LANES);
#pragma GCC unroll 4
            for (int i = 0; i < MR; i++) FN(i8_small_step)(sum[i], a + i * lda, b0, b1);
        }
#pragma GCC unroll 4
        for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) acc[i][h] += (vi)_mm256_madd_epi16(sum[i][h], ones);
    }
}

/* Packed dy: for each CHUNK columns a row a token, of dy as int16 and then of random numbers; behind all of them S,
 * [chunk][token], the largest |dy| of the chunk / 127. GROUP tokens of zeros follow the last one. */
static ptrdiff_t FN(i8_small_packed_dy_floats)(int T, int n) {
    return ROUND_UP(FN(i8_dy_rows)(T, n) * (CHUNK + 1), 16);
}

/* Tokens tile * LANES .. of dy (T, N), columns n0 .. n0+n. */
static void FN(i8_small_pack_dy)(float *packed, const float *dy, int T, int N, int n0, int n, int tile) {
    typedef int16_t half_words __attribute__((vector_size(2 * VF_WIDTH)));
    const int end = MIN(T, (tile + 1) * LANES);
    int16_t *q = (int16_t *)packed;
    float *S = packed + FN(i8_dy_rows)(T, n) * CHUNK;
    for (int j = 0; j < n; j += CHUNK, q += (T + GROUP) * 2 * CHUNK, S += T + GROUP) {
        for (ptrdiff_t t = tile * LANES; t < end; t++) {
            const float *from = dy + t * N + n0 + j;
            const int width = MIN(CHUNK, n - j);
            const float max = FN(i16_largest)(from, width), inverse = max > I8_TINY ? 127 * 256 / max : 0;
            for (int k = 0; k < CHUNK; k += VF_WIDTH) {
                const vf v = k + VF_WIDTH <= width ? vf_load(from + k) : vf_load_part(from + k, MAX(0, width - k));
                const vf random = 256 * FN(i8_random)(v, n0 + j + k) - 32768;      /* 32768 is 128, times 256 */
                const half_words value = __builtin_convertvector((vi)(v * inverse + ROUND_MAGIC), half_words);
                const half_words up = __builtin_convertvector(__builtin_convertvector(random + 32768, vi) - 32768,
                                                              half_words);
                memcpy(q + t * 2 * CHUNK + k, &value, sizeof value);
                memcpy(q + t * 2 * CHUNK + CHUNK + k, &up, sizeof up);
            }
            S[t] = max / 127;
        }
        if (end == T) memset(q + T * 2 * CHUNK, 0, sizeof *q * GROUP * 2 * CHUNK), memset(S + T, 0, sizeof *S * GROUP);
    }
}

/* What a slice works on, in a thread's scratch memory. */
typedef struct {
    int8_t w[COLUMNS / LANES * SMALL_LDB];              /* q around zero: [column / LANES][row / 4][LANES][4] */
    int16_t q[CHUNK * COLUMNS];                         /* q of a chunk, as unpacked */
    int32_t start[CHUNKS * COLUMNS];                    /* -128 times the sum of q over a chunk: [chunk][column] */
    int16_t d[BLOCKS * DEPTH];                          /* d / D in units of 2^-15, rounded: [column / 32][row] */
    int16_t min[BLOCKS * DEPTH];                        /* minima over their largest / 8191, likewise */
    float unit[CHUNKS * BLOCKS];                        /* what 1 in dy d stands for, over S: [chunk][column / 32] */
    float min_unit[CHUNKS * BLOCKS];                    /* the same of dy min */
    float of_rows[2][BLOCKS * CHUNK];                   /* scales and minima of a chunk, [column / 32][row] */
    float minus[GROUP * BLOCKS];                        /* sum_n dy min: [token][column / 32] */
    uint8_t a[MR * SMALL_LDA];                          /* dy d + 128: [token][row] */
} __attribute__((aligned(64))) FN(i8_small_slice);

static ptrdiff_t FN(i8_small_backward_scratch)(int T) {
    return sizeof(FN(i8_small_slice)) / sizeof(float) + (ptrdiff_t)ROUND_UP(T, GROUP) * LDC;
}

/* Rows of a chunk less `centre` become bytes, four to a lane, and their sums are taken. */
static void FN(i8_small_store_chunk)(FN(i8_small_slice) *s, int chunk, int n_columns, int centre) {
    const __m256i middle = _mm256_set1_epi16((short)centre), low_byte = _mm256_set1_epi16(255);
    for (int k = 0; k < n_columns; k += LANES) {
        int8_t *to = s->w + k / LANES * SMALL_LDB + chunk * CHUNK * LANES;
        __m256i sum = _mm256_setzero_si256();
        for (int row = 0; row < CHUNK; row += row % 32 == 14 ? 18 : 2, to += 4 * LANES) {
            const int16_t *q = s->q + row * COLUMNS + k;
            const __m256i v0 = _mm256_sub_epi16((__m256i)FN(i16_load)(q), middle);
            const __m256i v1 = _mm256_sub_epi16((__m256i)FN(i16_load)(q + 16 * COLUMNS), middle);
            const __m256i v2 = _mm256_sub_epi16((__m256i)FN(i16_load)(q + COLUMNS), middle);
            const __m256i v3 = _mm256_sub_epi16((__m256i)FN(i16_load)(q + 17 * COLUMNS), middle);
            sum = _mm256_add_epi16(sum, _mm256_add_epi16(_mm256_add_epi16(v0, v1), _mm256_add_epi16(v2, v3)));
            const __m256i first = _mm256_or_si256(_mm256_and_si256(v0, low_byte), _mm256_slli_epi16(v1, 8));
            const __m256i second = _mm256_or_si256(_mm256_and_si256(v2, low_byte), _mm256_slli_epi16(v3, 8));
            const __m256i low = _mm256_unpacklo_epi16(first, second), high = _mm256_unpackhi_epi16(first, second);
            _mm256_storeu_si256((__m256i *)to, _mm256_permute2x128_si256(low, high, 0x20));
            _mm256_storeu_si256((__m256i *)to + 1, _mm256_permute2x128_si256(low, high, 0x31));
        }
        const vi halves[2] = {(vi)_mm256_cvtepi16_epi32(_mm256_castsi256_si128(sum)) * -128,
                              (vi)_mm256_cvtepi16_epi32(_mm256_extracti128_si256(sum, 1)) * -128};
        memcpy(s->start + chunk * COLUMNS + k, halves, sizeof halves);
    }
}

/* n_columns columns of rows n0 .. n0+n_rows (at most CHUNK) of W, from column k0 on, become a chunk of the slice. */
static void FN(i8_small_unpack_chunk)(FN(i8_small_slice) *s, const projection *p, int n0, int n_rows, int k0,
                                      int n_columns, int chunk) {
    const ggml_format *format = &ggml_formats[p->type];
    const int centre = format->min_every ? (format->q_max + 1) / 2 : 0, step = 2;
    const uint8_t *row = p->weight + n0 * p->row_bytes + k0 / format->block_size * format->type_size;
    for (int i = 0; i < CHUNK; i++, row += p->row_bytes) {
        float scale[BLOCKS] = {0}, min[COLUMNS / 16] = {0};
        if (i < n_rows) FN(unpackers)[p->type](row, n_columns / format->block_size, s->q + i * COLUMNS, scale, min);
        else memset(s->q + i * COLUMNS, 0, sizeof *s->q * COLUMNS);
        for (int b = 0; b < n_columns / 32; b++) {
            s->of_rows[0][b * CHUNK + i] = scale[b];
            s->of_rows[1][b * CHUNK + i] = min[step * b] - centre * scale[b];
        }
    }
    for (int b = 0; b < n_columns / 32; b++) {
        const float *scale = s->of_rows[0] + b * CHUNK, *min = s->of_rows[1] + b * CHUNK;
        const float D = FN(i16_largest)(scale, CHUNK), M = FN(i16_largest)(min, CHUNK);
        const int at = b * DEPTH + chunk * CHUNK;
        FN(i16_round_row)(s->d + at, scale, CHUNK, D > I8_TINY ? 32767 / D : 0);
        FN(i16_round_row)(s->min + at, min, CHUNK, M > I8_TINY ? 8191 / M : 0);
        s->unit[chunk * BLOCKS + b] = D * (32768.0f / 32767);
        s->min_unit[chunk * BLOCKS + b] = M / (8191 * 256);
    }
    FN(i8_small_store_chunk)(s, chunk, n_columns, centre);
}

/* minus[i][b] = sum_n dy[i][n] min[b][n] for GROUP tokens and b < n_blocks, over n_chunks. An int32 holds 8 products of
 * 127 * 256 and 8191. A chunk of dy is `rows` rows long. */
static void FN(i8_small_minima)(FN(i8_small_slice) *s, const int16_t *dy, const float *S, ptrdiff_t rows, int n_chunks,
                                int n_blocks) {
    for (int i = 0; i < GROUP; i++)
        for (int b = 0; b < n_blocks; b++) {
            vf sum = vf_set1(0);
            for (int chunk = 0; chunk < n_chunks; chunk++) {
                const int16_t *v = dy + (chunk * rows + i) * 2 * CHUNK, *m = s->min + b * DEPTH + chunk * CHUNK;
                vi product = {0};
                for (int n = 0; n < CHUNK; n += LANES)
                    product = FN(i16_multiply_add)(product, (vi)FN(i16_load)(v + n), (vi)FN(i16_load)(m + n));
                sum += S[chunk * rows + i] * s->min_unit[chunk * BLOCKS + b] * __builtin_convertvector(product, vf);
            }
            s->minus[i * BLOCKS + b] = vf_sum(sum);
        }
}

/* x + y modulo 65536: 128 * 256 in y is no int16, and their sum need not be one. */
I8_INLINE vh FN(i8_small_add)(vh x, const int16_t *y) {
    return (vh)_mm256_add_epi16((__m256i)x, (__m256i)FN(i16_load)(y));
}

/* a[i][n] = dy[i][n] d[n] / D + 128, rounded up or down, for the columns that share d, MR tokens and n_chunks. */
I8_INLINE void FN(i8_small_scale_dy)(uint8_t *restrict a, const int16_t *restrict dy, ptrdiff_t rows,
                                     const int16_t *restrict d, int n_chunks) {
    const vh high_byte = (short)0xff00 - (vh){0};
    for (int chunk = 0; chunk < n_chunks; chunk++, dy += rows * 2 * CHUNK)
        for (int n = 0; n < CHUNK; n += 32, d += 32, a += 32) {
            const vh d0 = FN(i16_load)(d), d1 = FN(i16_load)(d + 16);
#pragma GCC unroll 4
            for (int i = 0; i < MR; i++) {
                const int16_t *v = dy + i * 2 * CHUNK + n;
                const vh p0 = FN(i8_small_add)(FN(i16_fraction_product)(FN(i16_load)(v), d0), v + CHUNK);
                const vh p1 = FN(i8_small_add)(FN(i16_fraction_product)(FN(i16_load)(v + 16), d1), v + CHUNK + 16);
                const vh bytes = (vh)_mm256_srli_epi16((__m256i)p0, 8) | (p1 & high_byte);
                memcpy(a + i * SMALL_LDA, &bytes, sizeof bytes);
            }
        }
}

/* c (MR x LANES, row stride LDC) += sum over n_chunks of S unit (a . w + start), minus `minus`; sums are widened after
 * `steps` steps of 4 rows. */
I8_INLINE void FN(i8_small_tile)(float *restrict c, const uint8_t *restrict a, const int8_t *restrict w,
                                 const int32_t *restrict start, const float *S, ptrdiff_t rows, const float *unit,
                                 const float *minus, int n_chunks, int steps) {
    vf total[MR][2];
#pragma GCC unroll 4
    for (int i = 0; i < MR; i++) total[i][0] = total[i][1] = vf_set1(-minus[i * BLOCKS]);
    for (int chunk = 0; chunk < n_chunks; chunk++, a += CHUNK, w += CHUNK * LANES, start += COLUMNS, S += rows,
             unit += BLOCKS) {
        vi acc[MR][2];
#pragma GCC unroll 4
        for (int i = 0; i < MR; i++) acc[i][0] = FN(i8_load)(start), acc[i][1] = FN(i8_load)(start + VF_WIDTH);
        FN(i8_small_products)(acc, a, SMALL_LDA, (const uint8_t *)w, CHUNK, steps);
#pragma GCC unroll 4
        for (int i = 0; i < MR; i++) {
            const float scale = S[i] * *unit;
            total[i][0] += scale * __builtin_convertvector(acc[i][0], vf);
            total[i][1] += scale * __builtin_convertvector(acc[i][1], vf);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < MR; i++, c += LDC) {
        vf_store(c, vf_load(c) + total[i][0]);
        vf_store(c + VF_WIDTH, vf_load(c + VF_WIDTH) + total[i][1]);
    }
}

/* dx[t0 .. t1][k0 .. k0+n_columns] += dy[.][n0 .. n0+n] . W for one projection. */
static void FN(i8_small_backward_slice)(float *dx, int K, const projection *p, const float *packed, int all_T, int n0,
                                        int n, int k0, int n_columns, int t0, int t1, float *scratch) {
    FN(i8_small_slice) *s = (FN(i8_small_slice) *)scratch;
    float *c = scratch + sizeof *s / sizeof(float);
    const ggml_format *format = &ggml_formats[p->type];
    const int steps = 32767 / (2 * 255 * FN(i8_small)(format));     /* of two products, that 16 bits hold: 4 or more */
    const int groups = ROUND_UP(t1 - t0, GROUP) / GROUP;
    const ptrdiff_t rows = all_T + GROUP;
    const int16_t *dy = (const int16_t *)packed + (ptrdiff_t)t0 * 2 * CHUNK;
    const float *S = packed + FN(i8_dy_rows)(all_T, n) * CHUNK + t0;
    memset(s->minus, 0, sizeof s->minus);
    memset(c, 0, sizeof(float) * groups * GROUP * LDC);
    for (int j = 0; j < n; j += DEPTH, dy += CHUNKS * rows * 2 * CHUNK, S += CHUNKS * rows) {
        const int n_rows = MIN(DEPTH, n - j), n_chunks = ROUND_UP(n_rows, CHUNK) / CHUNK;
        const int next_rows = MIN(DEPTH, n - j - n_rows), bytes = n_columns / format->block_size * format->type_size;
        const uint8_t *next_blocks =
            p->weight + (n0 + j + n_rows) * p->row_bytes + k0 / format->block_size * format->type_size;
        for (int chunk = 0; chunk < n_chunks; chunk++)
            FN(i8_small_unpack_chunk)(s, p, n0 + j + chunk * CHUNK, MIN(CHUNK, n_rows - chunk * CHUNK), k0, n_columns,
                                      chunk);
        for (int t = 0; t < t1 - t0; t += GROUP) {
            if (format->min_every)
                FN(i8_small_minima)(s, dy + t * 2 * CHUNK, S + t, rows, n_chunks, n_columns / 32);
            for (int k = 0; k < n_columns; k += 32) {
                prefetch_rows(dy + (t + GROUP) * 2 * CHUNK, rows * 2 * CHUNK * sizeof *dy,
                              t + GROUP < t1 - t0 ? n_chunks : 0, GROUP * 2 * CHUNK * sizeof *dy, k / 32,
                              n_columns / 32);
                prefetch_rows(next_blocks, p->row_bytes, next_rows, bytes,
                              t / GROUP * (n_columns / 32) + k / 32, groups * (n_columns / 32));
                for (int i = t; i < t + GROUP; i += MR) {
                    const float *unit = s->unit + k / 32, *minus = s->minus + (i - t) * BLOCKS + k / 32;
                    FN(i8_small_scale_dy)(s->a, dy + i * 2 * CHUNK, rows, s->d + k / 32 * DEPTH, n_chunks);
                    for (int at = k; at < k + 32; at += LANES) {
                        float *to = c + (ptrdiff_t)i * LDC + at;
                        const int8_t *w = s->w + at / LANES * SMALL_LDB;
                        if (steps >= 8)
                            FN(i8_small_tile)(to, s->a, w, s->start + at, S + i, rows, unit, minus, n_chunks, 8);
                        else FN(i8_small_tile)(to, s->a, w, s->start + at, S + i, rows, unit, minus, n_chunks, 4);
                    }
                }
            }
        }
    }
    FN(add_sums)(dx, K, c, LDC, k0, n_columns, t0, t1);
}
#undef SMALL_LDB
#undef SMALL_LDA
#undef BLOCKS
#undef MR
