/* Lets a machine without AVX-512 run what is compiled for it, slowly: the kernels' 512-bit vectors become pairs of
 * AVX2's, and the few intrinsics are spelled out. Compile with -include avx512_in_c.h. (AMX is not covered.) */
#ifndef AVX512_IN_C_H
#define AVX512_IN_C_H

#define SIMD_AVX512 "avx2,fma,f16c"     /* what simd.h compiles AVX-512's bodies for */
#define SIMD_AVX512_IN_C 1

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

#endif
