/* unpack_to_f32 has to be exact: every product fits a float32, and what a minimum leaves is rounded once. */
#include <stdio.h>

#include "check.h"
#include "simd.h"
#define SIMD_BODY "unpack_body.h"
#include "simd_foreach.h"

/* q_max of the table bounds what is unpacked, and is not far from the largest. */
static void check_q_max(int type) {
    enum { K = 64 * QK };
    const ggml_format *format = &ggml_formats[type];
    const uint8_t *row = take_blocks(type, 1, K);
    int16_t q[QK];
    float scale[QK / 32], min[QK / 16];
    int largest = 0;
    for (int k = 0; k < K; k += QK, row += QK / format->block_size * format->type_size) {
        DISPATCH(unpackers)[type](row, QK / format->block_size, q, scale, min);
        for (int i = 0; i < QK; i++) largest = q[i] > largest ? q[i] : -q[i] > largest ? -q[i] : largest;
    }
    char what[64];
    snprintf(what, sizeof what, "q_max of %s", type_names[type]);
    const float within = largest <= format->q_max && largest > format->q_max / 2;
    expect(what, &within, (const double[]){1}, 1, 0);
}

void check_unpack(void) {
    for (int type = 0; type < GGML_N_TYPES; type++) {
        if (!ggml_is_known(type)) continue;
        if (!ggml_is_float(type)) check_q_max(type);
        const int K = 1024, begin = ggml_is_float(type) ? 5 : ggml_formats[type].block_size, n = K - begin;
        const uint8_t *row = take_blocks(type, 1, K);
        float *values = take_floats(n);
        double *exact = take_zeros(n);
        DISPATCH(unpack_to_f32)(type, row, begin, n, values);
        for (int i = 0; i < n; i++) exact[i] = (float)block_value(type, row, begin + i);
        char what[64] = "unpack ";
        expect(strcat(what, type_names[type]), values, exact, n, 0);
    }

    /* float16 by itself: subnormals, zeros and the largest, too. */
    const f16_bits special[] = { 0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x0400, 0x83ff, 0x3c00, 0xbc00, 0x7bff,
                                 0xfbff };
    enum { N = sizeof special / sizeof *special };
    float values[N];
    double exact[N];
    DISPATCH(unpack_to_f32)(GGML_F16, special, 0, N, values);
    for (int i = 0; i < N; i++) exact[i] = block_value(GGML_F16, (const uint8_t *)special, i);
    expect("unpack F16, special values", values, exact, N, 0);
}
