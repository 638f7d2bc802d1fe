/* The building blocks of attention_body.h: a register-tiled product, a square transpose, and 2^x.
 * Included once per instruction set, after vec.h.
 *
 * Every product of attention has the form C (rows x columns) = or += A (rows x inner) . B (inner x columns), with B and C row by row,
 * their rows padded to whole vectors, and an A whose elements are only ever broadcast, so that it may lie either way round.
 * A register block is STRIP rows by two vectors of C.
 */
#if VF_WIDTH == 16
#ifndef STRIP512
#define STRIP512 12
#endif
#define STRIP STRIP512                /* 16 accumulators, 2 vectors of B and 1 broadcast of the 32 registers: 10 loads for 16 multiply-adds */
#else
#define STRIP 6                 /* 12 accumulators, 2 vectors of B and 1 broadcast of the 16 registers */
#endif
#define PANEL (2 * VF_WIDTH)

enum FN(product_mode) { FN(ASSIGN), FN(ADD), FN(DECAY_AND_ADD) };   /* C = A B,  C += A B,  C = diag(decay) C + A B */

/* One register block. n_vectors and mode are compile-time constants; element (i, l) of A is a[i * a_row + l * a_inner]. */
VF_INLINE void FN(product_block)(int n_vectors, int mode, int n_inner, float *restrict c, long c_row, const float *restrict a,
                                 long a_row, long a_inner, const float *restrict b, long b_row, const float *decay) {
    vf sum[STRIP][2];
#pragma GCC unroll 12
    for (int i = 0; i < STRIP; i++)
#pragma GCC unroll 2
        for (int j = 0; j < n_vectors; j++) {
            sum[i][j] = mode == FN(ASSIGN) ? vf_set1(0) : vf_load(c + i * c_row + j * VF_WIDTH);
            if (mode == FN(DECAY_AND_ADD)) sum[i][j] *= vf_set1(decay[i]);
        }
    for (int l = 0; l < n_inner; l++) {
        const vf b0 = vf_load(b + l * b_row), b1 = n_vectors == 2 ? vf_load(b + l * b_row + VF_WIDTH) : b0;
#pragma GCC unroll 12
        for (int i = 0; i < STRIP; i++) {
            const vf x = vf_set1(a[i * a_row + l * a_inner]);
            sum[i][0] += x * b0;
            if (n_vectors == 2) sum[i][1] += x * b1;
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < STRIP; i++)
#pragma GCC unroll 2
        for (int j = 0; j < n_vectors; j++) vf_store(c + i * c_row + j * VF_WIDTH, sum[i][j]);
}

/* A range begin <= x < end. */
#ifndef ATTENTION_SPAN
#define ATTENTION_SPAN
typedef struct { int begin, end; } span;
#endif

/* C = or += A . B over whole strips of rows. Strip s sums over l in inner[s] only: what is outside is known to be zero.
 * n_columns is a multiple of VF_WIDTH. */
VF_INLINE void FN(product)(int mode, int n_rows, int n_columns, const span *inner, float *c, long c_row, const float *a, long a_row,
                           long a_inner, const float *b, long b_row, const float *decay) {
    for (int j = 0; j < n_columns; j += PANEL)
        for (int i = 0; i < n_rows; i += STRIP) {
            const span s = inner[i / STRIP];
            const float *a_s = a + i * a_row + s.begin * a_inner, *b_s = b + s.begin * b_row + j, *decay_s = decay + i;
            if (n_columns - j >= PANEL)
                FN(product_block)(2, mode, s.end - s.begin, c + i * c_row + j, c_row, a_s, a_row, a_inner, b_s, b_row, decay_s);
            else
                FN(product_block)(1, mode, s.end - s.begin, c + i * c_row + j, c_row, a_s, a_row, a_inner, b_s, b_row, decay_s);
        }
}

/* C = A . B where of strip s only the columns columns[s] are wanted; the rest of C may keep old values. */
VF_INLINE void FN(product_of_columns)(int n_rows, int n_columns, int n_inner, const span *columns, float *c, long c_row,
                                      const float *a, long a_row, const float *b, long b_row) {
    for (int j = 0; j < n_columns; j += PANEL)
        for (int i = 0; i < n_rows; i += STRIP) {
            const span s = columns[i / STRIP];
            if (s.begin >= j + PANEL || s.end <= j) continue;
            if (n_columns - j >= PANEL)
                FN(product_block)(2, FN(ASSIGN), n_inner, c + i * c_row + j, c_row, a + i * a_row, a_row, 1, b + j, b_row, a);
            else
                FN(product_block)(1, FN(ASSIGN), n_inner, c + i * c_row + j, c_row, a + i * a_row, a_row, 1, b + j, b_row, a);
        }
}

/* Transposes a square of vectors by log2(VF_WIDTH) perfect shuffles. */
VF_INLINE void FN(transpose)(vf *square) {
    vi low, high;
    for (int i = 0; i < VF_WIDTH / 2; i++) {
        low[2 * i] = i, low[2 * i + 1] = i + VF_WIDTH;
        high[2 * i] = i + VF_WIDTH / 2, high[2 * i + 1] = i + VF_WIDTH / 2 + VF_WIDTH;
    }
    for (int n = VF_WIDTH; n > 1; n /= 2) {
        vf shuffled[VF_WIDTH];
        for (int i = 0; i < VF_WIDTH / 2; i++) {
            shuffled[2 * i] = __builtin_shuffle(square[i], square[i + VF_WIDTH / 2], low);
            shuffled[2 * i + 1] = __builtin_shuffle(square[i], square[i + VF_WIDTH / 2], high);
        }
        for (int i = 0; i < VF_WIDTH; i++) square[i] = shuffled[i];
    }
}

/* 2^x for x < 128 to 1e-7, exactly 0 below -127. x = n + r, n an integer, |r| <= 1/2; 2^r by a minimax polynomial. */
VF_INLINE vf FN(exp2)(vf x) {
    x = vf_max(vf_set1(-127.0f), x);                            /* n = -127 makes the exponent bits 0, and so the result; NaN stays */
    const vf shift = vf_set1(12582912.0f + 127);                /* 1.5 * 2^23 + the exponent's bias: adding it rounds to an integer, */
    const vf shifted = x + shift;                               /* whose biased value is left in the low bits */
    const vf r = x - (shifted - shift);
    vf p = vf_set1(1.53458118e-4f);
    p = p * r + 1.33999312e-3f;
    p = p * r + 9.61848896e-3f;
    p = p * r + 5.55032878e-2f;
    p = p * r + 2.40226469e-1f;
    p = p * r + 6.93147206e-1f;
    p = p * r + 1.0f;
    return p * (vf)((vi)shifted << 23);
}
