/* The core for few tokens (gemv_body.h) and weights of 4 bits, in integers: turning so many values a byte to float32
 * would take longer than reading them. x is rounded to int16 with a scale for every 32 values, as in the int16 core.
 *     y[t][n] = sum_blocks scale[n][block] (scale of x[t][block]) (q[n][block] . q of x[t][block])
 *             - sum_blocks min[n][block] (sum of x[t] over the block)
 *
 * A 16-bit word of W holds four values, which a mask and three shifts take apart, two and two of the same block. So x
 * is packed as its even values of a block and then its odd ones, which is how they come out. With vectors of 512 bits
 * two blocks are taken at a time: the even values of both, then the odd ones.
 * The int32 sums hold 4 products: |q| <= 127 and |x| <= 32767.
 */
#ifndef GEMV_4BIT_BODY_H
#define GEMV_4BIT_BODY_H
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef uint8_t u8x8 __attribute__((vector_size(8)));

/* As unpack_k4_scales (unpack_body.h), in registers. */
GEMV_INLINE void gemv_k4_scales(const uint8_t packed[12], u8x8 *scales, u8x8 *mins) {
    const uint32_t s = load_u32(packed), m = load_u32(packed + 4), rest = load_u32(packed + 8);
    *scales = (u8x8)((s & 0x3F3F3F3F) | (uint64_t)((rest & 0x0F0F0F0F) | (s >> 2 & 0x30303030)) << 32);
    *mins = (u8x8)((m & 0x3F3F3F3F) | (uint64_t)((rest >> 4 & 0x0F0F0F0F) | (m >> 2 & 0x30303030)) << 32);
}

/* Packed x: T rows of int16 up to whole 256 values, then T rows of scales, then T rows of sums, of 32 values each. */
typedef struct { const int16_t *q; const float *scale, *sum; } gemv_x;
#endif

#if VF_WIDTH == 16                  /* blocks are taken two by two */
#define PAIRS 1
#define EVEN(b) ((b) / 2 * 64 + (b) % 2 * 16)
#define ODD(b) (EVEN(b) + 32)
#else
#define PAIRS 0
#define EVEN(b) ((b) * 32)
#define ODD(b) (EVEN(b) + 16)
#endif

static ptrdiff_t FN(gemv_4bit_packed_floats)(int T, int K) { return T * (PADDED(K) / 2 + PADDED(K) / 16); }

static void FN(gemv_4bit_pack)(float *packed, const float *x, int T, int K, int tile) {
    int16_t *q = (int16_t *)packed;
    float *scale = packed + T * PADDED(K) / 2, *sum = scale + T * PADDED(K) / 32;
    memset(packed, 0, sizeof *packed * FN(gemv_4bit_packed_floats)(T, K));
    for (int t = 0; t < T; t++, q += PADDED(K), scale += PADDED(K) / 32, sum += PADDED(K) / 32)
        for (int k = 0; k < K; k += 32, x += 32) {
            const float max = FN(i16_largest)(x, 32);
            int16_t rounded[32];
            FN(i16_round_row)(rounded, x, 32, max > I16_TINY ? 32767 / max : 0);
            for (int i = 0; i < 16; i++)
                q[EVEN(k / 32) + i] = rounded[2 * i], q[ODD(k / 32) + i] = rounded[2 * i + 1];
            scale[k / 32] = max / 32767;
            vf total = vf_load(x);
            for (int i = VF_WIDTH; i < 32; i += VF_WIDTH) total += vf_load(x + i);
            sum[k / 32] = vf_sum(total);
        }
}

/* Products of neighbours, added up in pairs. */
GEMV_INLINE i32x8 FN(gemv_pair_products)(i16x16 a, i16x16 b) {
#if SIMD_IS_AVX2 || SIMD_IS_AVX512
    return (i32x8)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    const i32x8 x = (i32x8)a, y = (i32x8)b;
    return (x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16);
#endif
}

GEMV_INLINE f32x8 FN(gemv_bytes)(u8x8 v) {
#if SIMD_IS_AVX2 || SIMD_IS_AVX512
    return (f32x8)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)v)));
#else
    return __builtin_convertvector(v, f32x8);
#endif
}

/* The sum of the halves of a vector of 16. */
GEMV_INLINE f32x8 FN(gemv_halves)(vf v) {
    f32x8 half[2] = {{0}};
    memcpy(half, &v, sizeof v);
    return half[0] + half[1];
}

GEMV_INLINE f32x8 FN(gemv_load8)(const float *p) { f32x8 v; memcpy(&v, p, sizeof v); return v; }

/* sum[t] += scale[t][b] (q . x[t]) over block b of 256 values; q in even and odd values. */
GEMV_INLINE void FN(gemv_4bit_block)(f32x8 *sum, i16x16 even, i16x16 odd, const float (*scale)[QK / 32], int b,
                                     const int16_t *x, ptrdiff_t ldx, int T) {
    for (int t = 0; t < T; t++, x += ldx) {
        i16x16 x_even, x_odd;
        memcpy(&x_even, x + EVEN(b), sizeof x_even), memcpy(&x_odd, x + ODD(b), sizeof x_odd);
        const i32x8 dot = FN(gemv_pair_products)(even, x_even) + FN(gemv_pair_products)(odd, x_odd);
        sum[t] += scale[t][b] * __builtin_convertvector(dot, f32x8);
    }
}

/* The levels of IQ4 at 32 indices. */
GEMV_INLINE i16x16 FN(gemv_iq4_levels)(i16x16 index) {
#if SIMD_IS_AVX2 || SIMD_IS_AVX512
    return (i16x16)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256((__m128i)iq4_levels), (__m256i)index);
#else
    union { i16x16 all; u8x16 half[2]; } v = { index };
    for (int half = 0; half < 2; half++) v.half[half] = (u8x16)FN(lookup)(iq4_levels, v.half[half]);
    return v.all;
#endif
}

/* The values that the lower four bits of 32 bytes stand for; the upper four bits may be anything. */
GEMV_INLINE void FN(gemv_4bit_values)(int type, i16x16 packed, i16x16 *even, i16x16 *odd) {
    if (type == GGML_IQ4_NL || type == GGML_IQ4_XS) {
        const i16x16 levels = FN(gemv_iq4_levels)(packed & 0x0F0F);
        *even = levels << 8 >> 8, *odd = levels >> 8;
        return;
    }
    *even = packed & 15, *odd = (packed >> 8) & 15;
    if (type == GGML_Q4_0) *even -= 8, *odd -= 8;
}

#if SIMD_IS_AVX2 || SIMD_IS_AVX512
GEMV_INLINE i16x16 FN(gemv_twice)(u8x16 v) { return (i16x16)_mm256_broadcastsi128_si256((__m128i)v); }
#endif

/* v, and v with its upper four bits of each byte where the lower ones were. (GCC 12 would go through memory.) */
GEMV_INLINE i16x16 FN(gemv_twice_shifted)(u8x16 v) {
#if SIMD_IS_AVX2 || SIMD_IS_AVX512
    return (i16x16)_mm256_srlv_epi32((__m256i)FN(gemv_twice)(v), _mm256_set_epi32(4, 4, 4, 4, 0, 0, 0, 0));
#else
    const union { u8x16 half[2]; i16x16 both; } u = { { v, v >> 4 } };
    return u.both;
#endif
}

#if PAIRS
/* Two halves as one vector. (As a union, it would go through memory.) */
GEMV_INLINE vh FN(gemv_join)(i16x16 low, i16x16 high) {
#ifdef SIMD_AVX512_IN_C
    const union { i16x16 half[2]; vh both; } u = { { low, high } };
    return u.both;
#else
    return (vh)_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)low), (__m256i)high, 1);
#endif
}

/* sum[t] += scale[t][b] (q . x[t]) over the blocks 2 pair and 2 pair + 1 of 256 values, 8 lanes each. Their values are
 * the lower four bits of the bytes of `packed` shifted to the right by 0 or 4. */
GEMV_INLINE void FN(gemv_4bit_pair)(vf *sum, int type, vh packed, vi shift, const float (*scale)[QK / 32], int pair,
                                    const int16_t *x, ptrdiff_t ldx, int T) {
    const vi second = { 0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1 };
    packed = (vh)((FN(vui_type))packed >> (FN(vui_type))shift);
    vh even = packed & 15, odd = packed >> 8 & 15;
    if (type == GGML_Q4_0) even -= 8, odd -= 8;
    for (int t = 0; t < T; t++, x += ldx) {
        vi dot = FN(i16_multiply_add)((vi){0}, (vi)even, (vi)FN(i16_load)(x + 64 * pair));
        dot = FN(i16_multiply_add)(dot, (vi)odd, (vi)FN(i16_load)(x + 64 * pair + 32));
        const vf both = vf_select(second, vf_set1(scale[t][2 * pair + 1]), vf_set1(scale[t][2 * pair]));
        sum[t] += both * __builtin_convertvector(dot, vf);
    }
}

/* n values of a row of a type whose values are its nibbles, at most 256; block b + 1 may be one behind the row, with a
 * scale of zero. */
GEMV_INLINE void FN(gemv_4bit_pairs)(vf *sum, int type, const uint8_t *row, int n, const float (*scale)[QK / 32],
                                     const int16_t *x, ptrdiff_t ldx, int T) {
    const vi of_two = { 0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4 };
    const vi of_upper = { 0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4 };
    const int bytes = ggml_formats[type].type_size;
    for (int pair = 0; pair < (n + 32) / 64; pair++) {
        if (type == GGML_Q4_K) {
            i16x16 packed;
            memcpy(&packed, ((const block_q4_K *)row)->q + 32 * pair, sizeof packed);
            FN(gemv_4bit_pair)(sum, type, FN(gemv_join)(packed, packed), of_upper, scale, pair, x, ldx, T);
        } else {
            const uint8_t *first = row + (2 * pair + 1) * bytes - 16;
            const uint8_t *next = 64 * pair + 32 < n ? first + bytes : first;
            FN(gemv_4bit_pair)(sum, type, FN(gemv_join)(FN(gemv_twice)(load_u8(first)), FN(gemv_twice)(load_u8(next))),
                               of_two, scale, pair, x, ldx, T);
        }
    }
}
#endif

/* Blocks of 32 values in 16 bytes: value i has the lower bits of byte i, value i + 16 the upper ones. */
GEMV_INLINE void FN(gemv_4bit_small)(f32x8 *sum, int type, const uint8_t *bytes, const float (*scale)[QK / 32], int b,
                                     const int16_t *x, ptrdiff_t ldx, int T) {
    i16x16 even, odd;
    FN(gemv_4bit_values)(type, FN(gemv_twice_shifted)(load_u8(bytes)), &even, &odd);
    FN(gemv_4bit_block)(sum, even, odd, scale, b, x, ldx, T);
}

/* Blocks 2 part and 2 part + 1 of Q4_K, in 32 bytes: those of the one have the lower bits. */
GEMV_INLINE void FN(gemv_q4_K_part)(f32x8 *sum, const uint8_t *bytes, const float (*scale)[QK / 32], int part,
                                    const int16_t *x, ptrdiff_t ldx, int T) {
    i16x16 packed, even, odd;
    memcpy(&packed, bytes, sizeof packed);
    FN(gemv_4bit_values)(GGML_Q4_K, packed, &even, &odd);
    FN(gemv_4bit_block)(sum, even, odd, scale, 2 * part, x, ldx, T);
    FN(gemv_4bit_values)(GGML_Q4_K, packed >> 4, &even, &odd);
    FN(gemv_4bit_block)(sum, even, odd, scale, 2 * part + 1, x, ldx, T);
}

/* Scales and minima (zeros where the type has none) of the n_blocks blocks of 32 values at `row`; zeros behind. */
GEMV_INLINE void FN(gemv_4bit_scales)(int type, const uint8_t *row, int n_blocks, f32x8 *scale, f32x8 *min) {
    *min = (f32x8){0};
    if (type == GGML_Q4_K) {
        const block_q4_K *block = (const block_q4_K *)row;
        u8x8 scales, mins;
        gemv_k4_scales(block->scales, &scales, &mins);
        *scale = FN(f16)(block->d) * FN(gemv_bytes)(scales), *min = FN(f16)(block->dmin) * FN(gemv_bytes)(mins);
    } else if (type == GGML_IQ4_XS) {
        const block_iq4_xs *block = (const block_iq4_xs *)row;
        u8x8 scales = {0};
#pragma GCC unroll 8
        for (int b = 0; b < 8; b++)
            scales[b] = (block->scales_low[b / 2] >> 4 * (b % 2) & 15) | (block->scales_high >> 2 * b & 3) << 4;
        *scale = FN(f16)(block->d) * (FN(gemv_bytes)(scales) - 32);
    } else {
        const int bytes = ggml_formats[type].type_size;
        *scale = FN(f16_of_blocks)(row, n_blocks, bytes);
        if (type == GGML_Q4_1) *min = -FN(f16_of_blocks)(row + 2, n_blocks, bytes);    /* the file has it as m */
    }
}

/* sum[t] and of_pairs[t] += n values of a row of W, at most 256, times x[t]. */
GEMV_INLINE void FN(gemv_4bit_256)(f32x8 *sum, vf *of_pairs, int type, const uint8_t *row, int n, gemv_x x, int K,
                                   int T) {
    float both[GEMV_TOKENS][QK / 32];
    f32x8 scale, min;
    FN(gemv_4bit_scales)(type, row, n / 32, &scale, &min);
    for (int t = 0; t < T; t++) {
        const f32x8 s = scale * FN(gemv_load8)(x.scale + t * PADDED(K) / 32);
        memcpy(both[t], &s, sizeof s);
        if (ggml_formats[type].min_every) sum[t] -= min * FN(gemv_load8)(x.sum + t * PADDED(K) / 32);
    }
#if PAIRS
    if (type != GGML_IQ4_NL && type != GGML_IQ4_XS) {
        FN(gemv_4bit_pairs)(of_pairs, type, row, n, both, x.q, PADDED(K), T);
        return;
    }
#endif
    if (type == GGML_Q4_K) {
        for (int part = 0; part < 4; part++)
            FN(gemv_q4_K_part)(sum, ((const block_q4_K *)row)->q + 32 * part, both, part, x.q, PADDED(K), T);
        return;
    }
    const int bytes = type == GGML_IQ4_XS ? 16 : ggml_formats[type].type_size;
    row += type == GGML_IQ4_XS ? offsetof(block_iq4_xs, q) : (size_t)bytes - 16;
    for (int b = 0; b < n / 32; b++) FN(gemv_4bit_small)(sum, type, row + b * bytes, both, b, x.q, PADDED(K), T);
}

GEMV_INLINE void FN(gemv_4bit_rows)(const projection *p, int type, const float *packed, int T, int K, int n0,
                                    int n_rows) {
    const int bytes = QK / ggml_formats[type].block_size * ggml_formats[type].type_size;
    const float *scales = packed + T * PADDED(K) / 2;
    for (int n = n0; n < n0 + n_rows; n++) {
        const uint8_t *row = p->weight + n * p->row_bytes;
        gemv_x x = { (const int16_t *)packed, scales, scales + T * PADDED(K) / 32 };
        f32x8 sum[GEMV_TOKENS] = {{0}};
        vf of_pairs[GEMV_TOKENS] = {{0}};
        for (int k = 0; k < K; k += QK, row += bytes, x.q += QK, x.scale += QK / 32, x.sum += QK / 32) {
            gemv_prefetch(row, bytes);
            FN(gemv_4bit_256)(sum, of_pairs, type, row, MIN(QK, K - k), x, K, T);
        }
        for (ptrdiff_t t = 0; t < T; t++) {
            f32x8 s = sum[t];
            if (PAIRS) s += FN(gemv_halves)(of_pairs[t]);
            p->y[t * p->N + n] = ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
        }
    }
}

/* The type as a constant, and a single token, as generation has it, so that its sum is a register. */
#define ROWS_OF(T) \
    switch (p->type) { \
    case GGML_Q4_0: FN(gemv_4bit_rows)(p, GGML_Q4_0, packed, T, K, n0, n_rows); break; \
    case GGML_Q4_1: FN(gemv_4bit_rows)(p, GGML_Q4_1, packed, T, K, n0, n_rows); break; \
    case GGML_Q4_K: FN(gemv_4bit_rows)(p, GGML_Q4_K, packed, T, K, n0, n_rows); break; \
    case GGML_IQ4_NL: FN(gemv_4bit_rows)(p, GGML_IQ4_NL, packed, T, K, n0, n_rows); break; \
    default: FN(gemv_4bit_rows)(p, GGML_IQ4_XS, packed, T, K, n0, n_rows); \
    }

/* Rows n0 .. n0+n_rows of W times all T tokens. */
static void FN(gemv_4bit_forward_panel)(const projection *p, const float *packed, int T, int K, int n0, int n_rows,
                                        float *scratch) {
    if (T == 1) ROWS_OF(1)
    else ROWS_OF(T)
    FN(gemv_finish)(p, T, n0, n_rows);
}
#undef ROWS_OF

static const gemm_core FN(gemv_4bit_core) = {
    .token_tile = GEMV_TOKENS, .panel_rows = 64, .panel_unit = 16,
    .packed_x = FN(gemv_4bit_packed_floats), .pack_x = FN(gemv_4bit_pack),
    .forward_scratch = FN(gemv_forward_scratch), .forward_panel = FN(gemv_4bit_forward_panel),
};
#undef PADDED
#undef PAIRS
#undef EVEN
#undef ODD
