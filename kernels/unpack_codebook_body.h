/* Unpacks the codebook formats, IQ1_S to IQ3_S; a part of unpack_body.h, whose rules hold.
 *
 * An index stands for 8 values, or 4 in IQ3. The entries (codebooks.h) are magnitudes in IQ2 and IQ3, with the signs
 * beside them, a bit each; and digits 0, 1, 2 for the levels -1, 0, 1 in IQ1.
 */

#ifndef UNPACK_CODEBOOK_BODY_H_SIGNS
#define UNPACK_CODEBOOK_BODY_H_SIGNS
#include "codebooks.h"

/* The signs of 8 values from those of 7: the number of negative ones is even. */
UNPACK_INLINE uint8_t even_signs(uint32_t bits) {
    bits &= 127;
    return bits | __builtin_parity(bits) << 7;
}

/* 8 magnitudes of two entries of IQ3. */
UNPACK_INLINE uint64_t two_entries(const uint32_t *codebook, int first, int second) {
    return codebook[first] | (uint64_t)codebook[second] << 32;
}
#endif

/* Two times 8 magnitudes, negative where the signs have a bit. */
UNPACK_INLINE i16x16 FN(signed_entries)(uint64_t a, uint64_t b, uint8_t signs_a, uint8_t signs_b) {
    const u8x16 mask = { 1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128 };
    const i8x16 negative = (i8x16)((FN(eight_times)(signs_a, signs_b) & mask) != 0);
    return FN(widen_signed)(((i8x16)(u64x2){ a, b } ^ negative) - negative);
}

/* Each 32 values have 4 bytes of indices and a word of 4 times 7 signs and 4 bits of scale. */
static void FN(unpack_iq2_xxs)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min) {
    const block_iq2_xxs *b = blocks;
    for (int i = 0; i < n_blocks; i++, b++) {
        const float d = FN(f16)(b->d);
        for (int s = 0; s < 8; s++, q += 32) {
            const uint8_t *index = b->groups[s].index;
            const uint32_t signs = b->groups[s].signs;
            *scale++ = d * (0.5f + (signs >> 28)) * 0.25f;
            for (int l = 0; l < 2; l++) {
                const uint64_t first = iq2_xxs_codebook[index[2 * l]], second = iq2_xxs_codebook[index[2 * l + 1]];
                FN(store_q)(q + 16 * l, FN(signed_entries)(first, second, even_signs(signs >> 14 * l),
                                                           even_signs(signs >> (14 * l + 7))));
            }
        }
    }
}

/* Each 8 values have 9 bits of index and 7 signs; each 16 a scale, which is multiplied into q. */
static void FN(unpack_iq2_xs)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min) {
    const block_iq2_xs *b = blocks;
    for (int i = 0; i < n_blocks; i++, b++, scale += 8) {
        const float d = FN(f16)(b->d) * 0.125f;
        for (int s = 0; s < 8; s++) scale[s] = d;
        for (int s = 0; s < 16; s++, q += 16) {
            const int16_t sub_scale = 2 * (b->scales[s / 2] >> 4 * (s % 2) & 15) + 1;
            const uint16_t first = b->q[2 * s], second = b->q[2 * s + 1];
            FN(store_q)(q, sub_scale * FN(signed_entries)(iq2_xs_codebook[first & 511], iq2_xs_codebook[second & 511],
                                                          even_signs(first >> 9), even_signs(second >> 9)));
        }
    }
}

/* As IQ2_XS, with indices of 8 + 2 bits and 8 signs. */
static void FN(unpack_iq2_s)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min) {
    const block_iq2_s *b = blocks;
    for (int i = 0; i < n_blocks; i++, b++, scale += 8) {
        const float d = FN(f16)(b->d) * 0.125f;
        for (int s = 0; s < 8; s++) scale[s] = d;
        for (int s = 0; s < 16; s++, q += 16) {
            const int16_t sub_scale = 2 * (b->scales[s / 2] >> 4 * (s % 2) & 15) + 1;
            const int high = b->high[s / 2] >> 4 * (s % 2);
            FN(store_q)(q, sub_scale * FN(signed_entries)(iq2_s_codebook[b->q[2 * s] | (high & 3) << 8],
                                                          iq2_s_codebook[b->q[2 * s + 1] | (high & 12) << 6],
                                                          b->signs[2 * s], b->signs[2 * s + 1]));
        }
    }
}

/* Each 32 values have 8 bytes of indices and a word as that of IQ2_XXS. */
static void FN(unpack_iq3_xxs)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min) {
    const block_iq3_xxs *b = blocks;
    for (int i = 0; i < n_blocks; i++, b++) {
        const float d = FN(f16)(b->d);
        const uint8_t *index = b->q;
        for (int s = 0; s < 8; s++) {
            const uint32_t signs = b->signs[s];
            *scale++ = d * (0.5f + (signs >> 28)) * 0.5f;
            for (int l = 0; l < 2; l++, index += 4, q += 16)
                FN(store_q)(q, FN(signed_entries)(two_entries(iq3_xxs_codebook, index[0], index[1]),
                                                  two_entries(iq3_xxs_codebook, index[2], index[3]),
                                                  even_signs(signs >> 14 * l), even_signs(signs >> (14 * l + 7))));
        }
    }
}

/* Indices of 8 + 1 bits, 8 signs, a scale of 4 bits for each 32 values. */
static void FN(unpack_iq3_s)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min) {
    const block_iq3_s *b = blocks;
    for (int i = 0; i < n_blocks; i++, b++) {
        const float d = FN(f16)(b->d);
        const uint8_t *index = b->q, *signs = b->signs;
        for (int s = 0; s < 8; s++) {
            *scale++ = d * (2 * (b->scales[s / 2] >> 4 * (s % 2) & 15) + 1);
            for (int l = 0; l < 2; l++, index += 4, signs += 2, q += 16) {
                const int high = b->high[s] >> 4 * l;
                const uint64_t first = two_entries(iq3_s_codebook, index[0] | (high & 1) << 8,
                                                   index[1] | (high & 2) << 7);
                const uint64_t second = two_entries(iq3_s_codebook, index[2] | (high & 4) << 6,
                                                    index[3] | (high & 8) << 5);
                FN(store_q)(q, FN(signed_entries)(first, second, signs[0], signs[1]));
            }
        }
    }
}

/* Two times 8 levels in eighths, each 8 shifted down by an eighth or up: digit * 8 - 9 or - 7. */
UNPACK_INLINE i16x16 FN(shifted_levels)(uint64_t a, uint64_t b, int is_lower_a, int is_lower_b) {
    const i8x16 offset = (i8x16)FN(eight_times)(is_lower_a ? -9 : -7, is_lower_b ? -9 : -7);
    return FN(widen_signed)((i8x16)((u64x2){ a, b } << 3) + offset);
}

/* Each 32 values have a word: 4 times 3 upper bits of index, 3 bits of scale, and which way the levels are shifted. */
static void FN(unpack_iq1_s)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min) {
    const block_iq1_s *b = blocks;
    for (int i = 0; i < n_blocks; i++, b++) {
        const float d = FN(f16)(b->d) * 0.125f;
        const uint8_t *index = b->q;
        for (int s = 0; s < 8; s++) {
            const int high = b->high[s], is_lower = high >> 15;
            *scale++ = d * (2 * (high >> 12 & 7) + 1);
            for (int l = 0; l < 2; l++, index += 2, q += 16)
                FN(store_q)(q, FN(shifted_levels)(iq1_codebook[index[0] | (high >> 6 * l & 7) << 8],
                                                  iq1_codebook[index[1] | (high >> (6 * l + 3) & 7) << 8],
                                                  is_lower, is_lower));
        }
    }
}

/* 3 upper bits of index and the shift for each 8 values; a scale for each 16, multiplied into q. The float16 scale lies
 * in the upper four bits of the 4 words of scales. */
static void FN(unpack_iq1_m)(const void *blocks, int n_blocks, int16_t *q, float *scale, float *min) {
    const block_iq1_m *b = blocks;
    for (int i = 0; i < n_blocks; i++, b++, scale += 8) {
        uint16_t words[4];
        memcpy(words, b->scales, sizeof words);
        const f16_bits bits = words[0] >> 12 | words[1] >> 12 << 4 | words[2] >> 12 << 8 | words[3] >> 12 << 12;
        const float d = FN(f16)(bits) * 0.125f;
        for (int s = 0; s < 8; s++) scale[s] = d;
        for (int s = 0; s < 16; s++, q += 16) {
            const int16_t sub_scale = 2 * (words[s / 4] >> 3 * (s % 4) & 7) + 1;
            const int high = b->high[s];
            FN(store_q)(q, sub_scale * FN(shifted_levels)(iq1_codebook[b->q[2 * s] | (high & 7) << 8],
                                                          iq1_codebook[b->q[2 * s + 1] | (high & 0x70) << 4],
                                                          high & 8, high & 0x80));
        }
    }
}
