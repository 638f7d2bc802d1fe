/* Lets a machine without AVX-512 run what is compiled for it, slowly: the kernels' 512-bit vectors become pairs of
 * AVX2's, and the few intrinsics are spelled out; so are AVX-VNNI and the tiles of AMX. Compile with
 * -include avx512_in_c.h. */
#ifndef AVX512_IN_C_H
#define AVX512_IN_C_H

#define SIMD_AVX512 "avx2,fma,f16c"     /* what simd.h compiles AVX-512's bodies for, and AMX's */
#define SIMD_AVX512_BF16 SIMD_AVX512
#define SIMD_AVX512_IN_C 1
#define SIMD_AVXVNNI_IN_C 1             /* gemm_i8_tile_body.h has that in C */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef float in_c_f32 __attribute__((vector_size(64), may_alias));
typedef int in_c_i32 __attribute__((vector_size(64), may_alias));
typedef int16_t in_c_i16 __attribute__((vector_size(64), may_alias));
typedef int in_c_two_i16 __attribute__((vector_size(128)));
#define IN_C static inline __attribute__((always_inline, unused))

IN_C in_c_i32 in_c_choose(in_c_i32 mask, in_c_i32 a, in_c_i32 b) { return (mask & a) | (~mask & b); }
IN_C in_c_i32 in_c_max_epi32(in_c_i32 a, in_c_i32 b) { return in_c_choose(a > b, a, b); }
/* As the instructions: b where the comparison fails, which it does for NaN. */
IN_C in_c_f32 in_c_max_ps(in_c_f32 a, in_c_f32 b) { return (in_c_f32)in_c_choose(a > b, (in_c_i32)a, (in_c_i32)b); }
IN_C in_c_f32 in_c_min_ps(in_c_f32 a, in_c_f32 b) { return (in_c_f32)in_c_choose(a < b, (in_c_i32)a, (in_c_i32)b); }
IN_C in_c_i32 in_c_dpwssd(in_c_i32 sum, in_c_i32 a, in_c_i32 b) {
    return sum + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
}
/* Four products of an unsigned byte of a and a signed one of b. */
IN_C in_c_i32 in_c_dpbusd(in_c_i32 sum, in_c_i32 a, in_c_i32 b) {
    for (int i = 0; i < 16; i++)
        for (int byte = 0; byte < 32; byte += 8) sum[i] += (int)((unsigned)a[i] >> byte & 255) * (int8_t)(b[i] >> byte);
    return sum;
}
IN_C in_c_i16 in_c_mulhrs(in_c_i16 a, in_c_i16 b) {
    for (int i = 0; i < 32; i++) a[i] = (a[i] * b[i] + 16384) >> 15;
    return a;
}
IN_C in_c_i16 in_c_blend(unsigned mask, in_c_i16 a, in_c_i16 b) {
    for (int i = 0; i < 32; i++) a[i] = mask >> i & 1 ? b[i] : a[i];
    return a;
}

#define _mm512_max_epi32(a, b) in_c_max_epi32((in_c_i32)(a), (in_c_i32)(b))
#define _mm512_max_ps(a, b) in_c_max_ps(a, b)
#define _mm512_min_ps(a, b) in_c_min_ps(a, b)
#define _mm512_dpwssd_epi32(sum, a, b) in_c_dpwssd((in_c_i32)(sum), (in_c_i32)(a), (in_c_i32)(b))
#define _mm512_dpbusd_epi32(sum, a, b) in_c_dpbusd((in_c_i32)(sum), (in_c_i32)(a), (in_c_i32)(b))
#define _mm512_mulhrs_epi16(a, b) in_c_mulhrs((in_c_i16)(a), (in_c_i16)(b))
#define _mm512_mask_blend_epi16(mask, a, b) in_c_blend(mask, (in_c_i16)(a), (in_c_i16)(b))
/* Conversions of 16 values as two of 8. */
#define IN_C_TWICE(type, low, high) ({ \
    union { type v; __m256i half[2]; } u; \
    u.half[0] = (__m256i)(low); \
    u.half[1] = (__m256i)(high); \
    u.v; \
})
#define IN_C_LOW(v) _mm256_castsi256_si128(v)
#define IN_C_HIGH(v) _mm256_extracti128_si256(v, 1)
#define _mm512_cvtepi8_epi32(v) \
    IN_C_TWICE(in_c_i32, _mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8)))
#define _mm512_cvtepi16_epi32(v) \
    IN_C_TWICE(in_c_i32, _mm256_cvtepi16_epi32(IN_C_LOW(v)), _mm256_cvtepi16_epi32(IN_C_HIGH(v)))
#define _mm512_cvtph_ps(v) IN_C_TWICE(in_c_f32, _mm256_cvtph_ps(IN_C_LOW(v)), _mm256_cvtph_ps(IN_C_HIGH(v)))
#define _mm512_cvtepi32_ps(v) __builtin_convertvector((in_c_i32)(v), in_c_f32)
#define _mm512_storeu_ps(p, v) ({ const in_c_f32 stored = (v); memcpy(p, &stored, sizeof stored); })

/* Of bfloat16: 32 float32, those of the second argument first, rounded to nearest, ties to even; NaN stays NaN. */
IN_C uint16_t in_c_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return value != value ? bits >> 16 | 64 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
IN_C in_c_i32 in_c_cvtne2ps_pbh(in_c_f32 high, in_c_f32 low) {
    in_c_i16 pairs;
    for (int i = 0; i < 16; i++) pairs[i] = in_c_bf16(low[i]), pairs[16 + i] = in_c_bf16(high[i]);
    return (in_c_i32)pairs;
}
IN_C in_c_f32 in_c_maskz_load(unsigned mask, const float *from) {
    in_c_f32 v = {0};
    for (int i = 0; i < 16; i++) if (mask >> i & 1) v[i] = from[i];
    return v;
}
#define _mm512_cvtne2ps_pbh(high, low) in_c_cvtne2ps_pbh((in_c_f32)(high), (in_c_f32)(low))
#define _mm512_maskz_loadu_ps(mask, from) in_c_maskz_load(mask, from)
#define _mm512_extracti64x4_epi64(v, part) ({ \
    union { __m512i v; __m256i half[2]; } of = {v}; \
    of.half[part]; \
})
#define _mm512_castsi512_si256(v) _mm512_extracti64x4_epi64(v, 0)
#define _mm512_cvtepu16_epi32(v) \
    IN_C_TWICE(in_c_i32, _mm256_cvtepu16_epi32(IN_C_LOW(v)), _mm256_cvtepu16_epi32(IN_C_HIGH(v)))

/* The tile registers, 16 rows of 64 bytes each, as configured. */
typedef struct { uint8_t palette, start_row, reserved[14]; uint16_t bytes_per_row[16]; uint8_t rows[16]; } in_c_config;
static in_c_config in_c_tiles;
static uint8_t in_c_tile[8][16][64] __attribute__((aligned(64)));

IN_C void in_c_tile_load(int tile, const void *from, ptrdiff_t stride) {
    for (int i = 0; i < in_c_tiles.rows[tile]; i++)
        memcpy(in_c_tile[tile][i], (const uint8_t *)from + i * stride, in_c_tiles.bytes_per_row[tile]);
}
IN_C void in_c_tile_store(int tile, void *to, ptrdiff_t stride) {
    for (int i = 0; i < in_c_tiles.rows[tile]; i++)
        memcpy((uint8_t *)to + i * stride, in_c_tile[tile][i], in_c_tiles.bytes_per_row[tile]);
}
/* sum[i][j] += a[i][2 k] b[k][2 j] + a[i][2 k + 1] b[k][2 j + 1] of bfloat16. */
IN_C float in_c_of_bf16(const uint8_t *from) {
    uint16_t half;
    memcpy(&half, from, sizeof half);
    const uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
IN_C void in_c_tile_products(int sum, int a, int b) {
    for (int i = 0; i < in_c_tiles.rows[a]; i++)
        for (int j = 0; j < 16; j++) {
            float *to = (float *)in_c_tile[sum][i] + j;
            for (int k = 0; k < in_c_tiles.bytes_per_row[a]; k += 2)
                *to += in_c_of_bf16(in_c_tile[a][i] + k) * in_c_of_bf16(in_c_tile[b][k / 4] + 4 * j + k % 4);
        }
}
#define TILE_CONFIGURE(config) memcpy(&in_c_tiles, &(config), sizeof in_c_tiles)
#define TILE_RELEASE() memset(&in_c_tiles, 0, sizeof in_c_tiles)
#define TILE_ZERO(tile) memset(in_c_tile[tile], 0, sizeof in_c_tile[tile])
#define TILE_LOAD(tile, from, stride) in_c_tile_load(tile, from, stride)
#define TILE_STORE(tile, to, stride) in_c_tile_store(tile, to, stride)
#define TILE_PRODUCTS(sum, a, b) in_c_tile_products(sum, a, b)

#endif
