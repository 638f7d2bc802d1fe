/* Unpacks the blocks of any trainable type: the one place that knows their bits. A body header (see simd.h).
 *
 *     FN(unpack_<type>)(blocks, n_blocks, q, scale, min)
 *
 * takes n_blocks consecutive blocks of a row and writes
 *
 *     q      int16, every value
 *     scale  float32, one for every 32 values
 *     min    float32, one for every 16 values; only by types that have one (ggml_formats[type].min_every)
 *
 * so that value i is scale[i / 32] * q[i] - min[i / 16]. Types with a sub-scale for every 16 values (Q2_K, Q3_K, Q6_K)
 * have that integer multiplied into q. All products scale * q are exact in float32 (at most 23 bits: 11 of float16,
 * 12 of integers), so the values are those of ggml's dequantisation, in which only the subtraction rounds. (One
 * difference: where a negative sub-scale meets q = 0, an integer has lost the sign of -0.0.)
 *
 * The vectors below are GCC's: 16 bytes are loaded, masked and shifted as bytes, and widened to 16 int16, which is one
 * instruction under AVX2. The same source is the reading version and, on other machines, the portable one.
 */

#ifndef UNPACK_BODY_H_TYPES
#define UNPACK_BODY_H_TYPES
#include "ggml_blocks.h"

typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef uint32_t u32x4 __attribute__((vector_size(16)));
typedef uint64_t u64x2 __attribute__((vector_size(16)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));
typedef int16_t i16x16 __attribute__((vector_size(32)));
typedef float f32x8 __attribute__((vector_size(32)));
typedef void (*unpack_function)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min);

#define UNPACK_INLINE static inline __attribute__((always_inline, unused))

UNPACK_INLINE u8x16 load_u8(const uint8_t *p) { u8x16 v; memcpy(&v, p, 16); return v; }
UNPACK_INLINE i8x16 load_i8(const int8_t *p) { i8x16 v; memcpy(&v, p, 16); return v; }
UNPACK_INLINE uint16_t load_u16(const uint8_t *p) { uint16_t v; memcpy(&v, p, sizeof v); return v; }
UNPACK_INLINE uint32_t load_u32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }

/* The 16 levels of IQ4_NL and IQ4_XS. */
static const i8x16 iq4_levels = { -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113 };

/* The 16 levels of MXFP4, twice what a 4-bit float (sign, 2 bits of exponent, 1 of fraction) stands for. */
static const i8x16 fp4_levels = { 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12 };

/* The 6-bit scales and mins of the 8 sub-blocks of Q4_K and Q5_K, four bytes at a time. Bytes 0-3 and 4-7 hold scales
 * and mins 0-3 in their lower six bits; scales and mins 4-7 have their lower four bits in the nibbles of bytes 8-11 and
 * their upper two on top of bytes 0-3 and 4-7. Each min comes twice, once for every 16 values. */
UNPACK_INLINE void unpack_k4_scales(const uint8_t packed[12], uint8_t scales[8], uint8_t mins[16]) {
    const uint32_t s = load_u32(packed), m = load_u32(packed + 4), rest = load_u32(packed + 8);
    const u32x4 words = {
        s & 0x3F3F3F3F, (rest & 0x0F0F0F0F) | (s >> 2 & 0x30303030),
        m & 0x3F3F3F3F, (rest >> 4 & 0x0F0F0F0F) | (m >> 2 & 0x30303030),
    };
    const u8x16 bytes = (u8x16)words;
    const u8x16 mins_twice = SHUFFLE(u8x16, bytes, bytes, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15);
    memcpy(scales, &words, 8);
    memcpy(mins, &mins_twice, 16);
}
#endif

UNPACK_INLINE float FN(f16)(f16_bits h) {
#if SIMD_IS_AVX2 || SIMD_IS_AVX512
    return _cvtsh_ss(h);
#elif SIMD_IS_NEON
    __fp16 x;
    memcpy(&x, &h, sizeof x);
    return x;
#else
    return f16_to_f32(h);
#endif
}

#if SIMD_IS_AVX2 || SIMD_IS_AVX512   /* one instruction each, of which GCC 12 makes four to ten when left to itself */
UNPACK_INLINE i16x16 FN(widen)(u8x16 v) { return (i16x16)_mm256_cvtepu8_epi16((__m128i)v); }
UNPACK_INLINE i16x16 FN(widen_signed)(i8x16 v) { return (i16x16)_mm256_cvtepi8_epi16((__m128i)v); }
UNPACK_INLINE u8x16 FN(eight_times)(uint8_t a, uint8_t b) {
    const u8x16 index = { 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1 };
    return (u8x16)_mm_shuffle_epi8(_mm_cvtsi32_si128(a | b << 8), (__m128i)index);
}
#else
UNPACK_INLINE i16x16 FN(widen)(u8x16 v) { return __builtin_convertvector(v, i16x16); }
UNPACK_INLINE i16x16 FN(widen_signed)(i8x16 v) { return __builtin_convertvector(v, i16x16); }
UNPACK_INLINE u8x16 FN(eight_times)(uint8_t a, uint8_t b) {
    return (u8x16)(u64x2){ a * 0x0101010101010101u, b * 0x0101010101010101u };
}
#endif

/* 16 consecutive bits, each as 16 in its byte: the fifth bit of Q5_0 and Q5_1. */
UNPACK_INLINE u8x16 FN(fifth_bits)(const uint8_t bits[2]) {
    const u8x16 mask = { 1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128 };
    return (u8x16)((FN(eight_times)(bits[0], bits[1]) & mask) != 0) & 16;
}

UNPACK_INLINE void FN(store_q)(int16_t *q, i16x16 v) { memcpy(q, &v, sizeof v); }
/* table[index[i]], index[i] < 16. */
UNPACK_INLINE i8x16 FN(lookup)(i8x16 table, u8x16 index) {
#if SIMD_IS_AVX2 || SIMD_IS_AVX512
    return (i8x16)_mm_shuffle_epi8((__m128i)table, (__m128i)index);
#elif SIMD_IS_NEON
    return (i8x16)vqtbl1q_s8((int8x16_t)table, (uint8x16_t)index);
#else
    i8x16 levels;
    for (int i = 0; i < 16; i++) levels[i] = table[index[i]];
    return levels;
#endif
}

/* The float16 at the beginning of n_blocks blocks; zeros behind. They meet in a register: stored one by one and loaded
 * together, they would wait for each other. */
UNPACK_INLINE f32x8 FN(f16_of_blocks)(const uint8_t *block, int n_blocks, int bytes) {
    u16x8 d = {0};
    if (n_blocks == 8) {
#pragma GCC unroll 8
        for (int b = 0; b < 8; b++) d[b] = load_u16(block + b * bytes);
    } else {
        for (int b = 0; b < n_blocks; b++) d[b] = load_u16(block + b * bytes);
    }
#if SIMD_IS_AVX2 || SIMD_IS_AVX512
    return (f32x8)_mm256_cvtph_ps((__m128i)d);
#else
    f32x8 v;
    for (int b = 0; b < 8; b++) v[b] = FN(f16)(d[b]);
    return v;
#endif
}

/* The scales of blocks of Q8_0. One after the other, between their integers, they made products 1 to 2 % slower. */
UNPACK_INLINE void FN(scales_q8_0)(const block_q8_0 *b, int n_blocks, float *scale) {
    for (int i = 0; i < n_blocks; i += 8) {
        const int n = n_blocks - i < 8 ? n_blocks - i : 8;
        const f32x8 d = FN(f16_of_blocks)((const uint8_t *)(b + i), n, sizeof *b);
        if (n == 8) memcpy(scale + i, &d, sizeof d);
        else memcpy(scale + i, &d, sizeof *scale * n);
    }
}

static void FN(unpack_q8_0)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min) {
    const block_q8_0 *b = blocks;
    for (int i = 0; i < n_blocks; i++, q += 32) {
        FN(store_q)(q, FN(widen_signed)(load_i8(b[i].q)));
        FN(store_q)(q + 16, FN(widen_signed)(load_i8(b[i].q + 16)));
    }
    FN(scales_q8_0)(b, n_blocks, scale);
}

static void FN(unpack_q4_0)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min) {
    const block_q4_0 *b = blocks;
    for (int i = 0; i < n_blocks; i++, b++, q += 32) {
        const u8x16 packed = load_u8(b->q);
        FN(store_q)(q, FN(widen)(packed & 15) - 8);
        FN(store_q)(q + 16, FN(widen)(packed >> 4) - 8);
        scale[i] = FN(f16)(b->d);
    }
}

static void FN(unpack_q4_1)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min) {
    const block_q4_1 *b = blocks;
    for (int i = 0; i < n_blocks; i++, b++, q += 32) {
        const u8x16 packed = load_u8(b->q);
        FN(store_q)(q, FN(widen)(packed & 15));
        FN(store_q)(q + 16, FN(widen)(packed >> 4));
        scale[i] = FN(f16)(b->d);
        min[2 * i] = min[2 * i + 1] = -FN(f16)(b->m);       /* the file stores the minimum itself: x = d * q + m */
    }
}

static void FN(unpack_q5_0)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min) {
    const block_q5_0 *b = blocks;
    for (int i = 0; i < n_blocks; i++, b++, q += 32) {
        const u8x16 packed = load_u8(b->q);
        FN(store_q)(q, FN(widen)((packed & 15) | FN(fifth_bits)(b->high)) - 16);
        FN(store_q)(q + 16, FN(widen)(packed >> 4 | FN(fifth_bits)(b->high + 2)) - 16);
        scale[i] = FN(f16)(b->d);
    }
}

static void FN(unpack_q5_1)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min) {
    const block_q5_1 *b = blocks;
    for (int i = 0; i < n_blocks; i++, b++, q += 32) {
        const u8x16 packed = load_u8(b->q);
        FN(store_q)(q, FN(widen)((packed & 15) | FN(fifth_bits)(b->high)));
        FN(store_q)(q + 16, FN(widen)(packed >> 4 | FN(fifth_bits)(b->high + 2)));
        scale[i] = FN(f16)(b->d);
        min[2 * i] = min[2 * i + 1] = -FN(f16)(b->m);
    }
}

static void FN(unpack_iq4_nl)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min) {
    const block_iq4_nl *b = blocks;
    for (int i = 0; i < n_blocks; i++, b++, q += 32) {
        const u8x16 packed = load_u8(b->q);
        FN(store_q)(q, FN(widen_signed)(FN(lookup)(iq4_levels, packed & 15)));
        FN(store_q)(q + 16, FN(widen_signed)(FN(lookup)(iq4_levels, packed >> 4)));
        scale[i] = FN(f16)(b->d);
    }
}

/* 256 values = 2 halves of 32 bytes; a byte holds values l, l + 32, l + 64, l + 96 of its half, lowest bits first. */
static void FN(unpack_q2_K)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min) {
    const block_q2_K *b = blocks;
    for (int i = 0; i < n_blocks; i++, b++, scale += 8, min += 16) {
        const float d = FN(f16)(b->d), dmin = FN(f16)(b->dmin);
        for (int s = 0; s < 8; s++) scale[s] = d;
        for (int s = 0; s < 16; s++) min[s] = dmin * (b->scales[s] >> 4);
        for (int half = 0; half < 2; half++)
            for (int part = 0; part < 4; part++)
                for (int l = 0; l < 2; l++, q += 16) {
                    const u8x16 packed = load_u8(b->q + 32 * half + 16 * l);
                    const int16_t sub_scale = b->scales[8 * half + 2 * part + l] & 15;
                    FN(store_q)(q, FN(widen)(packed >> 2 * part & 3) * sub_scale);
                }
    }
}

/* As Q2_K; the third bit of the values of 32-value part p is bit p of `high`, and q counts from -4.
 * 16 scales of 6 bits: lower four in the nibbles of bytes 0-7, upper two in bytes 8-11. */
static void FN(unpack_q3_K)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min) {
    const block_q3_K *b = blocks;
    for (int i = 0; i < n_blocks; i++, b++, scale += 8) {
        const float d = FN(f16)(b->d);
        for (int s = 0; s < 8; s++) scale[s] = d;
        const uint32_t low[2] = { load_u32(b->scales), load_u32(b->scales + 4) }, high = load_u32(b->scales + 8);
        const uint32_t words[4] = {
            (low[0] & 0x0F0F0F0F) | (high << 4 & 0x30303030), (low[1] & 0x0F0F0F0F) | (high << 2 & 0x30303030),
            (low[0] >> 4 & 0x0F0F0F0F) | (high & 0x30303030), (low[1] >> 4 & 0x0F0F0F0F) | (high >> 2 & 0x30303030),
        };
        uint8_t sub_scales[16];
        memcpy(sub_scales, words, 16);
        for (int half = 0; half < 2; half++)
            for (int part = 0; part < 4; part++)
                for (int l = 0; l < 2; l++, q += 16) {
                    const u8x16 packed = load_u8(b->q + 32 * half + 16 * l), third = load_u8(b->high + 16 * l);
                    const u8x16 level = (packed >> 2 * part & 3) | (third >> (4 * half + part) & 1) << 2;
                    const int16_t sub_scale = sub_scales[8 * half + 2 * part + l] - 32;
                    FN(store_q)(q, (FN(widen)(level) - 4) * sub_scale);
                }
    }
}

/* 256 values = 4 times 32 bytes: lower nibbles are 32 values, upper ones the next 32; a scale and a min for each 32. */
static void FN(unpack_q4_K)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min) {
    const block_q4_K *b = blocks;
    for (int i = 0; i < n_blocks; i++, b++, scale += 8, min += 16) {
        const float d = FN(f16)(b->d), dmin = FN(f16)(b->dmin);
        uint8_t scales[8], mins[16];
        unpack_k4_scales(b->scales, scales, mins);
        for (int s = 0; s < 8; s++) scale[s] = d * scales[s];
        for (int s = 0; s < 16; s++) min[s] = dmin * mins[s];
        for (int part = 0; part < 4; part++, q += 64)
            for (int l = 0; l < 32; l += 16) {
                const u8x16 packed = load_u8(b->q + 32 * part + l);
                FN(store_q)(q + l, FN(widen)(packed & 15));
                FN(store_q)(q + 32 + l, FN(widen)(packed >> 4));
            }
    }
}

/* As Q4_K; the fifth bit of the values of 32-value part p is bit p of `high`. */
static void FN(unpack_q5_K)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min) {
    const block_q5_K *b = blocks;
    for (int i = 0; i < n_blocks; i++, b++, scale += 8, min += 16) {
        const float d = FN(f16)(b->d), dmin = FN(f16)(b->dmin);
        uint8_t scales[8], mins[16];
        unpack_k4_scales(b->scales, scales, mins);
        for (int s = 0; s < 8; s++) scale[s] = d * scales[s];
        for (int s = 0; s < 16; s++) min[s] = dmin * mins[s];
        for (int part = 0; part < 4; part++, q += 64)
            for (int l = 0; l < 32; l += 16) {
                const u8x16 packed = load_u8(b->q + 32 * part + l), fifth = load_u8(b->high + l) >> 2 * part;
                FN(store_q)(q + l, FN(widen)((packed & 15) | (fifth & 1) << 4));
                FN(store_q)(q + 32 + l, FN(widen)(packed >> 4 | (fifth & 2) << 3));
            }
    }
}

/* 256 values = 2 halves of 64 bytes of lower four bits and 32 bytes of upper two: values l and l + 32 have the lower
 * nibbles of bytes l and l + 32, values l + 64 and l + 96 the upper ones; q counts from -32. */
static void FN(unpack_q6_K)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min) {
    const block_q6_K *b = blocks;
    for (int i = 0; i < n_blocks; i++, b++, scale += 8) {
        const float d = FN(f16)(b->d);
        for (int s = 0; s < 8; s++) scale[s] = d;
        for (int half = 0; half < 2; half++, q += 128) {
            const int8_t *sub_scales = b->scales + 8 * half;
            for (int l = 0; l < 2; l++) {
                const u8x16 low0 = load_u8(b->q + 64 * half + 16 * l), low1 = load_u8(b->q + 64 * half + 32 + 16 * l);
                const u8x16 high = load_u8(b->high + 32 * half + 16 * l);
                const u8x16 level[4] = { (low0 & 15) | (high & 3) << 4, (low1 & 15) | (high & 12) << 2,
                                         low0 >> 4 | (high & 48), low1 >> 4 | (high & 192) >> 2 };
                for (int part = 0; part < 4; part++) {
                    const int16_t sub_scale = sub_scales[2 * part + l];
                    FN(store_q)(q + 32 * part + 16 * l, (FN(widen)(level[part]) - 32) * sub_scale);
                }
            }
        }
    }
}

/* 8 times IQ4_NL with scales of 4 + 2 bits that count from -32. */
static void FN(unpack_iq4_xs)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min) {
    const block_iq4_xs *b = blocks;
    for (int i = 0; i < n_blocks; i++, b++, scale += 8) {
        const float d = FN(f16)(b->d);
        for (int s = 0; s < 8; s++, q += 32) {
            const int low = b->scales_low[s / 2] >> 4 * (s % 2) & 15, high = b->scales_high >> 2 * s & 3;
            scale[s] = d * ((low | high << 4) - 32);
            const u8x16 packed = load_u8(b->q + 16 * s);
            FN(store_q)(q, FN(widen_signed)(FN(lookup)(iq4_levels, packed & 15)));
            FN(store_q)(q + 16, FN(widen_signed)(FN(lookup)(iq4_levels, packed >> 4)));
        }
    }
}

/* As Q2_K without sub-scales: levels -1, 0, 1, and 2, which no quantiser writes. */
static void FN(unpack_tq2_0)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min) {
    const block_tq2_0 *b = blocks;
    for (int i = 0; i < n_blocks; i++, b++, scale += 8) {
        const float d = FN(f16)(b->d);
        for (int s = 0; s < 8; s++) scale[s] = d;
        for (int half = 0; half < 2; half++)
            for (int part = 0; part < 4; part++)
                for (int l = 0; l < 32; l += 16, q += 16)
                    FN(store_q)(q, FN(widen)(load_u8(b->q + 32 * half + l) >> 2 * part & 3) - 1);
    }
}

static void FN(unpack_mxfp4)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min) {
    const block_mxfp4 *b = blocks;
    for (int i = 0; i < n_blocks; i++, b++, q += 32) {
        const u8x16 packed = load_u8(b->q);
        FN(store_q)(q, FN(widen_signed)(FN(lookup)(fp4_levels, packed & 15)));
        FN(store_q)(q + 16, FN(widen_signed)(FN(lookup)(fp4_levels, packed >> 4)));
        scale[i] = e8m0_half_to_f32(b->e);
    }
}

/* A digit of base 3 of each of 16 bytes, as -1, 0, 1: a byte is a fraction of 3^5 in 256ths, rounded up, of which the
 * shift drops the digits above. */
UNPACK_INLINE i16x16 FN(trits)(u8x16 packed, u8x16 shift) { return (FN(widen)(packed * shift) * 3 >> 8) - 1; }

/* 5 times 32, 5 times 16 and 4 times 4 values: of all bytes the first digit, then of all the second. */
static void FN(unpack_tq1_0)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min) {
    const block_tq1_0 *b = blocks;
    for (int i = 0; i < n_blocks; i++, b++, q += QK, scale += 8) {
        const float d = FN(f16)(b->d);
        for (int s = 0; s < 8; s++) scale[s] = d;
        const u8x16 first = load_u8(b->q), second = load_u8(b->q + 16), third = load_u8(b->q + 32);
        u8x16 shift = { 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1 };
        for (int digit = 0; digit < 5; digit++, shift *= 3) {
            FN(store_q)(q + 32 * digit, FN(trits)(first, shift));
            FN(store_q)(q + 32 * digit + 16, FN(trits)(second, shift));
            FN(store_q)(q + 160 + 16 * digit, FN(trits)(third, shift));
        }
        const u8x16 four_shifts = { 1, 1, 1, 1, 3, 3, 3, 3, 9, 9, 9, 9, 27, 27, 27, 27 };
        const uint32_t high = load_u32(b->high);
        FN(store_q)(q + 240, FN(trits)((u8x16)(u32x4){ high, high, high, high }, four_shifts));
    }
}

#include "unpack_codebook_body.h"

#define UNPACKER(NAME, name, bytes) [GGML_##NAME] = FN(unpack_##name),
static const unpack_function FN(unpackers)[GGML_N_TYPES] = { GGML_INTEGER_TYPES(UNPACKER) };
#undef UNPACKER

/* ---- types that are unpacked to float32 ---- */

static void FN(unpack_f32_to_f32)(const void *values, int n, float *out) { memcpy(out, values, sizeof(float) * n); }

/* The upper half of a float32. */
static void FN(unpack_bf16_to_f32)(const void *values, int n, float *out) {
    const uint8_t *p = values;
    int i = 0;
    for (; i + VF_WIDTH <= n; i += VF_WIDTH) {
        uint16_t h __attribute__((vector_size(2 * VF_WIDTH)));
        memcpy(&h, p + 2 * i, sizeof h);
        vf_store(out + i, (vf)(__builtin_convertvector(h, vi) << 16));
    }
    for (; i < n; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, 2);
        out[i] = bf16_to_f32(h);
    }
}

static void FN(unpack_f16_to_f32)(const void *values, int n, float *out) {
    const uint8_t *p = values;
    int i = 0;
#if SIMD_IS_AVX512
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(p + 2 * i))));
#elif SIMD_IS_AVX2
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const void *)(p + 2 * i))));
#elif SIMD_IS_NEON
    for (; i + 4 <= n; i += 4)
        vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p + 2 * i))));
#endif
    for (; i < n; i++) {
        f16_bits h;
        memcpy(&h, p + 2 * i, 2);
        out[i] = FN(f16)(h);
    }
}

/* ---- any type to float32 ---- */

UNPACK_INLINE vf FN(load_q)(const int16_t *q) {
#if SIMD_IS_AVX512
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256((const void *)q)));
#elif SIMD_IS_AVX2
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128((const void *)q)));
#elif SIMD_IS_NEON
    return (vf)vcvtq_f32_s32(vmovl_s16(vld1_s16(q)));
#else
    int16_t v __attribute__((vector_size(2 * VF_WIDTH)));
    memcpy(&v, q, sizeof v);
    return __builtin_convertvector(v, vf);
#endif
}

/* out[i] = scale[i / 32] * q[i] - min[i / 16], n a multiple of 32; min is NULL for types without one.
 * The compiler may contract this to a fused multiply-add: the product is exact, so the result is the same. */
static void FN(scale_q)(const int16_t *q, const float *scale, const float *min, int n, float *out) {
    if (min) {
        for (int block = 0; block < n / 32; block++, q += 32, out += 32) {
            const vf s = vf_set1(scale[block]);
            for (int i = 0; i < 32; i += VF_WIDTH)
                vf_store(out + i, FN(load_q)(q + i) * s - vf_set1(min[2 * block + i / 16]));
        }
    } else {
        for (int block = 0; block < n / 32; block++, q += 32, out += 32) {
            const vf s = vf_set1(scale[block]);
            for (int i = 0; i < 32; i += VF_WIDTH) vf_store(out + i, FN(load_q)(q + i) * s);
        }
    }
}

/* Values k0 .. of a row of NVFP4. Every 16 values have a float for a scale: two of these, of any ratio, do not make
 * the one scale for 32 values and integers of 16 bits that the integer core takes. */
static void FN(unpack_nvfp4_to_f32)(const uint8_t *row, int k0, int n, float *out) {
    while (n > 0) {                               /* 16 values at a time: the lower nibbles of 8 bytes, and the upper */
        const int part = k0 / 16, skipped = k0 % 16, used = n < 16 - skipped ? n : 16 - skipped;
        const block_nvfp4 *b = (const block_nvfp4 *)row + part / 4;
        const float scale = e4m3_half_to_f32(b->scales[part % 4]);
        uint64_t packed;
        memcpy(&packed, b->q + 8 * (part % 4), 8);
        const u8x16 codes = (u8x16)(u64x2){ packed, packed >> 4 } & 15;
        const i16x16 levels = FN(widen_signed)(FN(lookup)(fp4_levels, codes));
        int16_t q[16];
        float values[16];
        FN(store_q)(q, levels);
        for (int i = 0; i < 16; i += VF_WIDTH) vf_store(values + i, scale * FN(load_q)(q + i));
        if (used == 16) memcpy(out, values, sizeof values);
        else memcpy(out, values + skipped, sizeof *out * used);
        out += used, k0 += used, n -= used;
    }
}

/* Values k0 .. k0 + n - 1 of a row of any trainable type. */
static void FN(unpack_to_f32)(int type, const void *row, int k0, int n, float *out) {
    const ggml_format *format = &ggml_formats[type];
    const uint8_t *bytes = row;
    if (type == GGML_F32) { FN(unpack_f32_to_f32)(bytes + 4 * (size_t)k0, n, out); return; }
    if (type == GGML_F16) { FN(unpack_f16_to_f32)(bytes + 2 * (size_t)k0, n, out); return; }
    if (type == GGML_BF16) { FN(unpack_bf16_to_f32)(bytes + 2 * (size_t)k0, n, out); return; }
    if (type == GGML_NVFP4) { FN(unpack_nvfp4_to_f32)(bytes, k0, n, out); return; }
    int16_t q[QK];
    float scale[QK / 32], min[QK / 16], x[QK];
    while (n > 0) {                               /* 256 values at a time: one large or eight small blocks */
        const int block = k0 / format->block_size, skipped = k0 % format->block_size;
        const int max_blocks = QK / format->block_size, needed = (skipped + n - 1) / format->block_size + 1;
        const int n_blocks = needed < max_blocks ? needed : max_blocks;
        const int unpacked = n_blocks * format->block_size, used = unpacked - skipped < n ? unpacked - skipped : n;
        FN(unpackers)[type](bytes + (size_t)block * format->type_size, n_blocks, q, scale, min);
        float *to = used == unpacked ? out : x;
        FN(scale_q)(q, scale, format->min_every ? min : NULL, unpacked, to);
        if (to == x) memcpy(out, x + skipped, sizeof(float) * used);
        out += used, k0 += used, n -= used;
    }
}
