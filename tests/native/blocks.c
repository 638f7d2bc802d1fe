/* Random blocks of every trainable type, and what they mean: each value by its own index, as the format defines it. The
 * kernels, which unpack whole blocks with vectors, are written the other way round (kernels/unpack_body.h). */
#include "check.h"
#include "codebooks.h"
#include "ggml_blocks.h"

#define NAME_OF(NAME, name, bytes) [GGML_##NAME] = #NAME,
const char *const type_names[GGML_N_TYPES] = {
    [GGML_F32] = "F32", [GGML_F16] = "F16", [GGML_BF16] = "BF16", GGML_BLOCK_TYPES(NAME_OF)
};

/* Where a block has its float16 scale and minimum, in bytes; a minimum at 0 is none. */
static const struct { uint8_t d, min; } f16_at[GGML_N_TYPES] = {
    [GGML_Q4_1] = {0, 2}, [GGML_Q5_1] = {0, 2}, [GGML_Q2_K] = {80, 82}, [GGML_Q3_K] = {108, 0}, [GGML_Q4_K] = {0, 2},
    [GGML_Q5_K] = {0, 2}, [GGML_Q6_K] = {208, 0}, [GGML_TQ1_0] = {52, 0}, [GGML_TQ2_0] = {64, 0},
};

/* Of either sign, from 2^-10 to 2^-5. */
static void put_random_f16(uint8_t *at) {
    const uint32_t bits = random_bits();
    const uint16_t h = (bits >> 16 & 0x8000) | (5 + (bits >> 8) % 5) << 10 | (bits >> 12 & 0x3ff);
    memcpy(at, &h, 2);
}

/* The same in the upper four bits of each of 4 words, as IQ1_M has it. */
static void put_scattered_f16(void *words) {
    uint16_t h, word[4];
    put_random_f16((uint8_t *)&h);
    memcpy(word, words, sizeof word);
    for (int i = 0; i < 4; i++) word[i] = (word[i] & 0xfff) | (h >> 4 * i & 15) << 12;
    memcpy(words, word, sizeof word);
}

uint8_t *take_blocks(int type, ptrdiff_t rows, ptrdiff_t K) {
    const ggml_format *format = &ggml_formats[type];
    const ptrdiff_t n_blocks = rows * K / format->block_size;
    uint8_t *blocks = take(n_blocks * format->type_size), *b = blocks;
    for (ptrdiff_t i = 0; i < n_blocks; i++, b += format->type_size) {
        if (type == GGML_F16) put_random_f16(b);
        else if (format->block_size == 1) {
            const float x = random_float();
            memcpy(b, (const uint8_t *)&x + 4 - format->type_size, format->type_size);
        } else {
            for (int j = 0; j < format->type_size; j++) b[j] = random_bits() >> 24;
            if (type == GGML_MXFP4) b[0] = 117 + random_bits() % 5;       /* 2^-10 to 2^-6 */
            else if (type == GGML_NVFP4) for (int j = 0; j < 4; j++) b[j] = 1 + random_bits() % 32;
            else if (type == GGML_IQ1_M) put_scattered_f16(((block_iq1_m *)b)->scales);
            else put_random_f16(b + f16_at[type].d);
            if (f16_at[type].min) put_random_f16(b + f16_at[type].min);
        }
    }
    return blocks;
}

static double f16_value(f16_bits h) {
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    const double magnitude = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
    return h >> 15 ? -magnitude : magnitude;
}

static int nibble(const uint8_t *q, int i) { return i < 16 ? q[i] & 15 : q[i - 16] >> 4; }
static int nibble_of(const uint8_t *q, int i) { return q[i / 2] >> 4 * (i % 2) & 15; }
static int bit(const uint8_t *bits, int i) { return bits[i / 8] >> i % 8 & 1; }

/* The sign of value i of 8 whose signs are in 7 bits, so that an even number is negative. */
static int even_sign(int bits, int i) {
    int last = 0;
    if (i < 7) return bits >> i & 1 ? -1 : 1;
    for (int j = 0; j < 7; j++) last ^= bits >> j & 1;
    return last ? -1 : 1;
}

/* Value i of the codebooks' entries of 8 or 4. */
static int of_8(const uint64_t *codebook, int index, int i) { return codebook[index] >> 8 * i & 255; }
static int of_4(const uint32_t *codebook, int index, int i) { return codebook[index] >> 8 * i & 255; }

/* Digit k of 5, the highest first, of a byte of the ternary format. */
static int trit(uint8_t packed, int k) {
    while (k--) packed *= 3;
    return packed * 3 >> 8;
}

/* Scale and minimum j of the 8 of Q4_K and Q5_K. */
static void k4_scale(const uint8_t s[12], int j, int *scale, int *min) {
    if (j < 4) *scale = s[j] & 63, *min = s[j + 4] & 63;
    else *scale = (s[j + 4] & 15) | s[j - 4] >> 6 << 4, *min = s[j + 4] >> 4 | s[j] >> 6 << 4;
}

double block_value(int type, const uint8_t *row, ptrdiff_t k) {
    static const int iq4_level[16] = { -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113 };
    const void *block = row + k / ggml_formats[type].block_size * ggml_formats[type].type_size;
    const int i = k % ggml_formats[type].block_size;
    const int half = i / 128, part = i % 128 / 32, l = i % 32;      /* of 256 values */
    int scale, min;
    switch (type) {
    case GGML_F32: { float x; memcpy(&x, block, 4); return x; }
    case GGML_F16: { f16_bits h; memcpy(&h, block, 2); return f16_value(h); }
    case GGML_BF16: { uint32_t h = 0; memcpy((uint8_t *)&h + 2, block, 2); float x; memcpy(&x, &h, 4); return x; }
    case GGML_Q8_0: { const block_q8_0 *b = block; return f16_value(b->d) * b->q[i]; }
    case GGML_Q4_0: { const block_q4_0 *b = block; return f16_value(b->d) * (nibble(b->q, i) - 8); }
    case GGML_Q4_1: { const block_q4_1 *b = block; return f16_value(b->d) * nibble(b->q, i) + f16_value(b->m); }
    case GGML_Q5_0: {
        const block_q5_0 *b = block;
        return f16_value(b->d) * ((nibble(b->q, i) | bit(b->high, i) << 4) - 16);
    }
    case GGML_Q5_1: {
        const block_q5_1 *b = block;
        return f16_value(b->d) * (nibble(b->q, i) | bit(b->high, i) << 4) + f16_value(b->m);
    }
    case GGML_Q2_K: {
        const block_q2_K *b = block;
        const int level = b->q[32 * half + l] >> 2 * part & 3;
        return f16_value(b->d) * (b->scales[i / 16] & 15) * level - f16_value(b->dmin) * (b->scales[i / 16] >> 4);
    }
    case GGML_Q3_K: {
        const block_q3_K *b = block;
        const int j = i / 16, level = (b->q[32 * half + l] >> 2 * part & 3) | (b->high[l] >> i / 32 & 1) << 2;
        scale = (b->scales[j % 8] >> 4 * (j / 8) & 15) | (b->scales[8 + j % 4] >> 2 * (j / 4) & 3) << 4;
        return f16_value(b->d) * (scale - 32) * (level - 4);
    }
    case GGML_Q4_K: {
        const block_q4_K *b = block;
        k4_scale(b->scales, i / 32, &scale, &min);
        return f16_value(b->d) * scale * (b->q[32 * (i / 64) + l] >> 4 * (i / 32 % 2) & 15) - f16_value(b->dmin) * min;
    }
    case GGML_Q5_K: {
        const block_q5_K *b = block;
        k4_scale(b->scales, i / 32, &scale, &min);
        const int level = (b->q[32 * (i / 64) + l] >> 4 * (i / 32 % 2) & 15) | (b->high[l] >> i / 32 & 1) << 4;
        return f16_value(b->d) * scale * level - f16_value(b->dmin) * min;
    }
    case GGML_Q6_K: {
        const block_q6_K *b = block;
        const int low = b->q[64 * half + i % 64] >> 4 * (part / 2) & 15, high = b->high[32 * half + l] >> 2 * part & 3;
        return f16_value(b->d) * b->scales[i / 16] * ((low | high << 4) - 32);
    }
    case GGML_IQ4_NL: { const block_iq4_nl *b = block; return f16_value(b->d) * iq4_level[nibble(b->q, i)]; }
    case GGML_TQ2_0: {
        const block_tq2_0 *b = block;
        return f16_value(b->d) * ((b->q[32 * half + l] >> 2 * part & 3) - 1);
    }
    case GGML_MXFP4: {
        static const double level[8] = { 0, 0.5, 1, 1.5, 2, 3, 4, 6 };
        const block_mxfp4 *b = block;
        const int code = nibble(b->q, i);
        return ldexp(code & 8 ? -level[code & 7] : level[code & 7], b->e - 127);
    }
    case GGML_TQ1_0: {
        const block_tq1_0 *b = block;
        const int level = i < 160 ? trit(b->q[i % 32], i / 32) : i < 240 ? trit(b->q[32 + i % 16], (i - 160) / 16)
                        : trit(b->high[i % 4], (i - 240) / 4);
        return f16_value(b->d) * (level - 1);
    }
    case GGML_NVFP4: {
        static const double level[8] = { 0, 0.5, 1, 1.5, 2, 3, 4, 6 };
        const block_nvfp4 *b = block;
        const int code = b->q[8 * (i / 16) + i % 8] >> 4 * (i / 8 % 2) & 15, s = b->scales[i / 16];
        const double d = s >> 3 ? ldexp(8 + s % 8, (s >> 3) - 10) : ldexp(s, -9);
        return d * (code & 8 ? -level[code & 7] : level[code & 7]);
    }
    case GGML_IQ1_S: {
        const block_iq1_s *b = block;
        const int high = b->high[i / 32], index = b->q[i / 8] | (high >> 3 * (i / 8 % 4) & 7) << 8;
        return f16_value(b->d) * (2 * (high >> 12 & 7) + 1) *
               (of_8(iq1_codebook, index, i % 8) - 1 + (high >> 15 ? -0.125 : 0.125));
    }
    case GGML_IQ1_M: {
        const block_iq1_m *b = block;
        const int high = b->high[i / 16] >> 4 * (i / 8 % 2), index = b->q[i / 8] | (high & 7) << 8;
        int d = 0;
        for (int j = 0; j < 4; j++) d |= b->scales[j] >> 12 << 4 * j;
        return f16_value(d) * (2 * (b->scales[i / 64] >> 3 * (i / 16 % 4) & 7) + 1) *
               (of_8(iq1_codebook, index, i % 8) - 1 + (high & 8 ? -0.125 : 0.125));
    }
    case GGML_IQ2_XXS: {
        const block_iq2_xxs *b = block;
        const uint32_t signs = b->groups[i / 32].signs;
        return f16_value(b->d) * (0.5 + (signs >> 28)) / 4 * even_sign(signs >> 7 * (i / 8 % 4), i % 8) *
               of_8(iq2_xxs_codebook, b->groups[i / 32].index[i / 8 % 4], i % 8);
    }
    case GGML_IQ2_XS: {
        const block_iq2_xs *b = block;
        const int word = b->q[i / 8];
        return f16_value(b->d) * (0.5 + nibble_of(b->scales, i / 16)) / 4 * even_sign(word >> 9, i % 8) *
               of_8(iq2_xs_codebook, word & 511, i % 8);
    }
    case GGML_IQ2_S: {
        const block_iq2_s *b = block;
        const int index = b->q[i / 8] | (b->high[i / 32] >> 2 * (i / 8 % 4) & 3) << 8;
        return f16_value(b->d) * (0.5 + nibble_of(b->scales, i / 16)) / 4 * (bit(b->signs, i) ? -1 : 1) *
               of_8(iq2_s_codebook, index, i % 8);
    }
    case GGML_IQ3_XXS: {
        const block_iq3_xxs *b = block;
        const uint32_t signs = b->signs[i / 32];
        return f16_value(b->d) * (0.5 + (signs >> 28)) / 2 * even_sign(signs >> 7 * (i / 8 % 4), i % 8) *
               of_4(iq3_xxs_codebook, b->q[i / 4], i % 4);
    }
    case GGML_IQ3_S: {
        const block_iq3_s *b = block;
        return f16_value(b->d) * (2 * nibble_of(b->scales, i / 32) + 1) * (bit(b->signs, i) ? -1 : 1) *
               of_4(iq3_s_codebook, b->q[i / 4] | bit(b->high, i / 4) << 8, i % 4);
    }
    default: {
        const block_iq4_xs *b = block;
        const int j = i / 32;
        scale = (b->scales_low[j / 2] >> 4 * (j % 2) & 15) | (b->scales_high >> 2 * j & 3) << 4;
        return f16_value(b->d) * (scale - 32) * iq4_level[nibble(b->q + 16 * j, l)];
    }
    }
}
