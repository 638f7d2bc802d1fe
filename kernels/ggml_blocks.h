/* The block formats of ggml that lorafast computes with, as they lie in a GGUF file (little-endian, not aligned).
 * What the fields mean is shown by the unpackers in unpack_body.h and, in NumPy, by lorafast/gguf/quants.py.
 * Source of the layouts: ggml-common.h of llama.cpp.
 */
#ifndef LORAFAST_GGML_BLOCKS_H
#define LORAFAST_GGML_BLOCKS_H

#include <assert.h>
#include <stdint.h>
#include <string.h>

#include "ggml_types.h"

#define QK 256                      /* values in the largest blocks; every block size divides it */

typedef uint16_t f16_bits;
#define BLOCK struct __attribute__((packed))

typedef BLOCK { f16_bits d; int8_t q[32]; } block_q8_0;
typedef BLOCK { f16_bits d; uint8_t q[16]; } block_q4_0;
typedef BLOCK { f16_bits d, m; uint8_t q[16]; } block_q4_1;
typedef BLOCK { f16_bits d; uint8_t high[4], q[16]; } block_q5_0;
typedef BLOCK { f16_bits d, m; uint8_t high[4], q[16]; } block_q5_1;
typedef BLOCK { uint8_t scales[QK / 16], q[QK / 4]; f16_bits d, dmin; } block_q2_K;
typedef BLOCK { uint8_t high[QK / 8], q[QK / 4], scales[12]; f16_bits d; } block_q3_K;
typedef BLOCK { f16_bits d, dmin; uint8_t scales[12], q[QK / 2]; } block_q4_K;
typedef BLOCK { f16_bits d, dmin; uint8_t scales[12], high[QK / 8], q[QK / 2]; } block_q5_K;
typedef BLOCK { uint8_t q[QK / 2], high[QK / 4]; int8_t scales[QK / 16]; f16_bits d; } block_q6_K;
typedef BLOCK { f16_bits d; uint8_t q[16]; } block_iq4_nl;
typedef BLOCK { f16_bits d; uint16_t scales_high; uint8_t scales_low[QK / 64], q[QK / 2]; } block_iq4_xs;
typedef BLOCK { uint8_t q[QK / 4]; f16_bits d; } block_tq2_0;
typedef BLOCK { uint8_t e, q[16]; } block_mxfp4;
typedef BLOCK { uint8_t scales[4], q[32]; } block_nvfp4;
typedef BLOCK { uint8_t q[48], high[4]; f16_bits d; } block_tq1_0;
typedef BLOCK { f16_bits d; uint8_t q[QK / 8]; uint16_t high[QK / 32]; } block_iq1_s;
typedef BLOCK { uint8_t q[QK / 8], high[QK / 16]; uint16_t scales[4]; } block_iq1_m;
typedef BLOCK { f16_bits d; BLOCK { uint8_t index[4]; uint32_t signs; } groups[QK / 32]; } block_iq2_xxs;
typedef BLOCK { f16_bits d; uint16_t q[QK / 8]; uint8_t scales[QK / 32]; } block_iq2_xs;
typedef BLOCK { f16_bits d; uint8_t q[QK / 8], signs[QK / 8], high[QK / 32], scales[QK / 32]; } block_iq2_s;
typedef BLOCK { f16_bits d; uint8_t q[QK / 4]; uint32_t signs[QK / 32]; } block_iq3_xxs;
typedef BLOCK { f16_bits d; uint8_t q[QK / 4], high[QK / 32], signs[QK / 8], scales[QK / 64]; } block_iq3_s;

/* A type without its struct ends here, as does a struct that has another size than the table says. */
#define CHECK_SIZE(NAME, name, bytes) _Static_assert(sizeof(block_##name) == bytes, #name);
GGML_BLOCK_TYPES(CHECK_SIZE)
#undef CHECK_SIZE

static inline int ggml_is_known(int type) {
    return type >= 0 && type < GGML_N_TYPES && ggml_formats[type].block_size > 0;
}

/* Whether the type is unpacked to float32 rather than to integers and scales. */
static inline int ggml_is_float(int type) { return ggml_formats[type].q_max == 0; }

static inline float bf16_to_f32(uint16_t h) {
    const uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Half of 2^(e - 127), the scale of MXFP4, whose levels are doubled to be whole: all exponents but the two lowest give
 * normal numbers. */
static inline float e8m0_half_to_f32(uint8_t e) {
    const uint32_t bits = e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Half of a float without sign, 4 bits of exponent (bias 7) and 3 of fraction: the scale of NVFP4. The eighth bit is
 * ignored, and 0x7F, a NaN, is zero in ggml. */
static inline float e4m3_half_to_f32(uint8_t code) {
    const int exponent = code >> 3 & 15, fraction = code & 7;
    const uint32_t bits = (uint32_t)(exponent + 119) << 23 | (uint32_t)fraction << 20;
    float x;
    memcpy(&x, &bits, sizeof x);
    if (exponent == 0) x = fraction * 0x1p-10f;
    return code == 0x7F ? 0 : x;
}

/* Exponent and fraction moved to float32's place make a float32 that is 2^112 too small, subnormals included.
 * Infinities and NaN have the largest exponent in both. */
static inline float f16_to_f32(f16_bits h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t bits = (uint32_t)(h & 0x7FFF) << 13;
    float x;
    memcpy(&x, &bits, sizeof x);
    x *= 0x1p112f;
    memcpy(&bits, &x, sizeof bits);
    if ((h & 0x7C00) == 0x7C00) bits = 0x7F800000 | (uint32_t)(h & 0x3FF) << 13;
    bits |= sign;
    memcpy(&x, &bits, sizeof x);
    return x;
}

#endif
