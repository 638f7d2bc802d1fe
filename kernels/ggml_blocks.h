/* The block formats of ggml that lorafast computes with, as they lie in a GGUF file (little-endian, not aligned).
 * What the fields mean is shown by the unpackers in unpack_body.h and, in NumPy, by lorafast/quants.py.
 * Source of the layouts: ggml-common.h of llama.cpp.
 */
#ifndef LORAFAST_GGML_BLOCKS_H
#define LORAFAST_GGML_BLOCKS_H

#include <assert.h>
#include <stdint.h>
#include <string.h>

/* Type numbers of GGUF; only these are known here. */
enum {
    GGML_F32 = 0, GGML_F16 = 1, GGML_Q4_0 = 2, GGML_Q4_1 = 3, GGML_Q5_0 = 6, GGML_Q5_1 = 7, GGML_Q8_0 = 8,
    GGML_Q2_K = 10, GGML_Q3_K = 11, GGML_Q4_K = 12, GGML_Q5_K = 13, GGML_Q6_K = 14, GGML_IQ4_NL = 20, GGML_IQ4_XS = 23,
    GGML_BF16 = 30, GGML_N_TYPES = 31
};

#define QK 256                      /* values in a block of the K-quants and IQ4_XS; all others have 32 */

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

_Static_assert(sizeof(block_q8_0) == 34, "q8_0");
_Static_assert(sizeof(block_q4_0) == 18, "q4_0");
_Static_assert(sizeof(block_q4_1) == 20, "q4_1");
_Static_assert(sizeof(block_q5_0) == 22, "q5_0");
_Static_assert(sizeof(block_q5_1) == 24, "q5_1");
_Static_assert(sizeof(block_q2_K) == 84, "q2_K");
_Static_assert(sizeof(block_q3_K) == 110, "q3_K");
_Static_assert(sizeof(block_q4_K) == 144, "q4_K");
_Static_assert(sizeof(block_q5_K) == 176, "q5_K");
_Static_assert(sizeof(block_q6_K) == 210, "q6_K");
_Static_assert(sizeof(block_iq4_nl) == 18, "iq4_nl");
_Static_assert(sizeof(block_iq4_xs) == 136, "iq4_xs");

/* What a matrix product has to know of a type. q_max bounds |q| of the unpacked int16 values, so that a kernel can tell
 * how many products fit an int32. block_size is 0 for a type that is not computed with. */
typedef struct { int block_size, type_size, q_max, has_min, is_float; } ggml_format;

static const ggml_format ggml_formats[GGML_N_TYPES] = {
    /*              block  bytes             q_max min float */
    [GGML_F32]    = {  1, 4,                     0, 0, 1 },
    [GGML_F16]    = {  1, 2,                     0, 0, 1 },
    [GGML_BF16]   = {  1, 2,                     0, 0, 1 },
    [GGML_Q8_0]   = { 32, sizeof(block_q8_0),  128, 0, 0 },
    [GGML_Q4_0]   = { 32, sizeof(block_q4_0),    8, 0, 0 },
    [GGML_Q4_1]   = { 32, sizeof(block_q4_1),   15, 1, 0 },
    [GGML_Q5_0]   = { 32, sizeof(block_q5_0),   16, 0, 0 },
    [GGML_Q5_1]   = { 32, sizeof(block_q5_1),   31, 1, 0 },
    [GGML_Q2_K]   = { QK, sizeof(block_q2_K),   45, 1, 0 },     /* q * 4-bit scale: 3 * 15 */
    [GGML_Q3_K]   = { QK, sizeof(block_q3_K),  128, 0, 0 },     /* q * 6-bit scale: -4 * -32 */
    [GGML_Q4_K]   = { QK, sizeof(block_q4_K),   15, 1, 0 },
    [GGML_Q5_K]   = { QK, sizeof(block_q5_K),   31, 1, 0 },
    [GGML_Q6_K]   = { QK, sizeof(block_q6_K), 4096, 0, 0 },     /* q * 8-bit scale: -32 * -128 */
    [GGML_IQ4_NL] = { 32, sizeof(block_iq4_nl), 127, 0, 0 },
    [GGML_IQ4_XS] = { QK, sizeof(block_iq4_xs), 127, 0, 0 },
};

static inline int ggml_is_known(int type) {
    return type >= 0 && type < GGML_N_TYPES && ggml_formats[type].block_size > 0;
}

static inline float bf16_to_f32(uint16_t h) {
    const uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
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
