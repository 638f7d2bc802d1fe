/* Rows of W as bytes, for the int8 core: w = q + offset, with a scale for every 32 values and nothing else, of any
 * integer type.
 *
 *   Q8_0                          is bytes already
 *   integers that fit a byte      are narrowed
 *   types with minima             32 values are rounded to bytes anew: w = (q d - min) / D
 *   larger integers (Q6_K ...)    likewise: w = q d / D
 *
 * D is the largest magnitude among the 32 over 127. (For a minimum that errs less than to keep it apart: then the error
 * of a rounded x would be multiplied by d q, which is about twice as large as the weight.)
 */

/* Integers of a row of W, which fit a byte, plus offset. */
I8_INLINE void FN(i8_narrow)(uint8_t *to, const int16_t *q, int n, int offset) {
    for (int k = 0; k < n; k += 16) {
        i16x16 v;
        memcpy(&v, q + k, sizeof v);
        const i8x16 bytes = __builtin_convertvector(v + (int16_t)offset, i8x16);
        memcpy(to + k, &bytes, sizeof bytes);
    }
}

/* The same of Q8_0, whose integers are bytes already. */
I8_INLINE void FN(i8_unpack_q8_0)(uint8_t *to, const block_q8_0 *b, int n_blocks, float *scale, int offset) {
    typedef uint8_t u8x32 __attribute__((vector_size(32)));
    for (int i = 0; i < n_blocks; i++, to += 32) {
        u8x32 q;
        memcpy(&q, b[i].q, 32);
        q += (uint8_t)offset;
        memcpy(to, &q, 32);
    }
    FN(scales_q8_0)(b, n_blocks, scale);
}

/* Those with minima: D is the largest magnitude that may be among the 32, q being from 0 to q_max. */
I8_INLINE void FN(i8_round_less_min)(uint8_t *to, const int16_t *q, const float *d, const float *min, int n,
                                     float q_max, float *scale, int offset) {
    enum { FRACTION = 7 };                              /* bits behind the point of d / D and min / D */
    int16_t d_over[DEPTH / 16], min_over[DEPTH / 16];
    float D[DEPTH / 16];
    for (int i = 0; i < n / 16; i += VF_WIDTH) {
        typedef int16_t half_words __attribute__((vector_size(2 * VF_WIDTH)));
        const vf of_32 = vf_load(d + i / 2), d_twice = VF_SHUFFLE(of_32, of_32, VF_TWICE), m = vf_load(min + i);
        vi top = FN(i16_larger)(FN(i16_larger)((vi){0}, m), d_twice * q_max - m);
        top = FN(i16_larger)(top, (vf)VF_SWAP(top, 1));
        const vf over = vf_select((vf)top > I8_TINY, (127 << FRACTION) / (vf)top, vf_set1(0));
        const half_words d_rounded = __builtin_convertvector((vi)(d_twice * over + ROUND_MAGIC), half_words);
        const half_words m_rounded = __builtin_convertvector((vi)(m * over + ROUND_MAGIC), half_words);
        memcpy(d_over + i, &d_rounded, sizeof d_rounded), memcpy(min_over + i, &m_rounded, sizeof m_rounded);
        vf_store(D + i, (vf)top * (1.0f / 127));
    }
    for (int i = 0; i < n / 32; i++) scale[i] = D[2 * i];
    for (int k = 0; k < n; k += 16) {
        i16x16 v;
        memcpy(&v, q + k, sizeof v);
        v = (v * d_over[k / 16] - min_over[k / 16] + (1 << (FRACTION - 1))) >> FRACTION;
        const i8x16 bytes = __builtin_convertvector(v + (int16_t)offset, i8x16);
        memcpy(to + k, &bytes, sizeof bytes);
    }
}

/* Those with larger integers. */
I8_INLINE void FN(i8_round_wide)(uint8_t *to, const int16_t *q, const float *d, int n, float *scale, int offset) {
    for (int k = 0; k < n; k += 32) {
        float values[32];
        for (int i = 0; i < 32; i += VF_WIDTH) vf_store(values + i, FN(load_q)(q + k + i));
        const float top = FN(i16_largest)(values, 32);
        const int over = top > 127 ? (int)(127 * 32768 / top) : 32767;      /* 1 / D, as a fraction of 15 bits */
        scale[k / 32] = d[k / 32] * (32768.0f / over);
        for (int i = 0; i < 32; i += LANES) {
            typedef int8_t bytes __attribute__((vector_size(LANES)));
            const vh w = FN(i16_fraction_product)(FN(i16_load)(q + k + i), (int16_t)over - (vh){0});
            const bytes b = __builtin_convertvector(w + (int16_t)offset, bytes);
            memcpy(to + k + i, &b, sizeof b);
        }
    }
}

/* The largest integer of the bytes that i8_unpack_rows makes of a type. */
I8_INLINE int FN(i8_q_max)(const ggml_format *format) {
    return format->min_every || !format->fits_int8 ? 127 : format->q_max;
}

#define ROWS 8      /* unpacked at a time: what was just written, read in vectors of another size, is waited for */

/* n values of each of n_rows rows of W, plus offset, as bytes, with a scale for every 32; rows come to lie `ld` and
 * `ld_scale` apart. */
static void FN(i8_unpack_rows)(uint8_t *to, ptrdiff_t ld, float *scale, ptrdiff_t ld_scale, const projection *p,
                               const uint8_t *blocks, int n_rows, int n, int offset) {
    const ggml_format *format = &ggml_formats[p->type];
    const int n_blocks = n / format->block_size;
    for (int i0 = 0; i0 < n_rows; i0 += ROWS) {
        int16_t q[ROWS][DEPTH];
        float d[ROWS][DEPTH / 32 + VF_WIDTH], min[ROWS][DEPTH / 16];
        const int end = MIN(i0 + ROWS, n_rows);
        for (int i = i0; i < end; i++, blocks += p->row_bytes)
            if (p->type == GGML_Q8_0)
                FN(i8_unpack_q8_0)(to + i * ld, (const block_q8_0 *)blocks, n_blocks, scale + i * ld_scale, offset);
            else FN(unpackers)[p->type](blocks, n_blocks, q[i - i0], d[i - i0], min[i - i0]);
        if (p->type == GGML_Q8_0) continue;
        for (int i = i0; i < end; i++) {
            uint8_t *row = to + i * ld;
            float *row_scale = scale + i * ld_scale;
            if (format->min_every)
                FN(i8_round_less_min)(row, q[i - i0], d[i - i0], min[i - i0], n, format->q_max, row_scale, offset);
            else if (!format->fits_int8)
                FN(i8_round_wide)(row, q[i - i0], d[i - i0], n, row_scale, offset);
            else {
                FN(i8_narrow)(row, q[i - i0], n, offset);
                memcpy(row_scale, d[i - i0], sizeof *d[0] * (n / 32));
            }
        }
    }
}
