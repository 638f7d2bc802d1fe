/* What attention does with a tile: products, copies of rows, 2^x. Included once per instruction set.
 *
 * Every product has the form C (rows x columns) = or += A (rows x inner) . B (inner x columns). B and C lie row by row,
 * their rows padded to whole vectors, and an A whose elements are only ever broadcast, so that it may lie either way
 * round. A register block is STRIP rows by two vectors of C. In assembly (GCC 12, AVX-512) its inner loop is 2 loads of
 * B, 12 broadcasts, 24 multiply-adds and the loop's own 4 instructions; with AVX2 2, 6, 12 and 4. Nothing is spilled.
 */
#if VF_WIDTH == 16 || SIMD_IS_NEON
#define STRIP 12                /* 24 accumulators, 2 vectors of B and 1 broadcast of the 32 registers */
#else
#define STRIP 6                 /* 12 accumulators, 2 vectors of B and 1 broadcast of the 16 registers */
#endif
#define PANEL (2 * VF_WIDTH)

enum FN(product_mode) { FN(ASSIGN), FN(ADD), FN(DECAY_AND_ADD) };   /* C = A B,  C += A B,  C = diag(decay) C + A B */

typedef struct { int begin, end; } FN(span);                        /* begin <= x < end */

/* One register block. n_vectors (1 or 2) and mode are compile-time constants; element (i, l) of A is
 * a[i * a_row + l * a_inner]. */
VF_INLINE void FN(product_block)(int n_vectors, int mode, int n_inner, float *restrict c, ptrdiff_t c_row,
                                 const float *restrict a, ptrdiff_t a_row, ptrdiff_t a_inner, const float *restrict b,
                                 ptrdiff_t b_row, const float *decay) {
    vf sums[STRIP][2];
#pragma GCC unroll 12
    for (int i = 0; i < STRIP; i++)
#pragma GCC unroll 2
        for (int j = 0; j < n_vectors; j++) {
            sums[i][j] = mode == FN(ASSIGN) ? vf_set1(0) : vf_load(c + i * c_row + j * VF_WIDTH);
            if (mode == FN(DECAY_AND_ADD)) sums[i][j] *= vf_set1(decay[i]);
        }
    for (int l = 0; l < n_inner; l++) {
        const vf b0 = vf_load(b + l * b_row), b1 = n_vectors == 2 ? vf_load(b + l * b_row + VF_WIDTH) : b0;
#pragma GCC unroll 12
        for (int i = 0; i < STRIP; i++) {
            const vf x = vf_set1(a[i * a_row + l * a_inner]);
            sums[i][0] += x * b0;
            if (n_vectors == 2) sums[i][1] += x * b1;
        }
    }
#pragma GCC unroll 12
    for (int i = 0; i < STRIP; i++)
#pragma GCC unroll 2
        for (int j = 0; j < n_vectors; j++) vf_store(c + i * c_row + j * VF_WIDTH, sums[i][j]);
}

/* C in whole strips of rows and whole vectors of columns. Strip s sums over the l of inner[s]; A is zero elsewhere. */
VF_INLINE void FN(product)(int mode, int n_rows, int n_columns, const FN(span) *inner, float *c, ptrdiff_t c_row,
                           const float *a, ptrdiff_t a_row, ptrdiff_t a_inner, const float *b, ptrdiff_t b_row,
                           const float *decay) {
    for (int j = 0; j < n_columns; j += PANEL)
        for (int i = 0; i < n_rows; i += STRIP) {
            const FN(span) s = inner[i / STRIP];
            const float *a_s = a + i * a_row + s.begin * a_inner, *b_s = b + s.begin * b_row + j;
            float *c_s = c + i * c_row + j;
            if (n_columns - j >= PANEL)
                FN(product_block)(2, mode, s.end - s.begin, c_s, c_row, a_s, a_row, a_inner, b_s, b_row, decay + i);
            else
                FN(product_block)(1, mode, s.end - s.begin, c_s, c_row, a_s, a_row, a_inner, b_s, b_row, decay + i);
        }
}

/* C = A . B, of strip s at least the columns of columns[s]; others may keep what they were. */
VF_INLINE void FN(product_of_columns)(int n_rows, int n_columns, int n_inner, const FN(span) *columns, float *c,
                                      ptrdiff_t c_row, const float *a, ptrdiff_t a_row, const float *b,
                                      ptrdiff_t b_row) {
    for (int j = 0; j < n_columns; j += PANEL)
        for (int i = 0; i < n_rows; i += STRIP) {
            const FN(span) s = columns[i / STRIP];
            if (s.end <= j || s.begin >= j + PANEL) continue;
            const float *a_s = a + i * a_row;
            float *c_s = c + i * c_row + j;
            if (n_columns - j >= PANEL)
                FN(product_block)(2, FN(ASSIGN), n_inner, c_s, c_row, a_s, a_row, 1, b + j, b_row, NULL);
            else
                FN(product_block)(1, FN(ASSIGN), n_inner, c_s, c_row, a_s, a_row, 1, b + j, b_row, NULL);
        }
}

/* 2^x for x < 128, to 1e-7; exactly 0 below -127; NaN for NaN. x = n + r with n an integer and |r| <= 1/2; 2^r by a
 * minimax polynomial. */
VF_INLINE vf FN(exp2)(vf x) {
    x = vf_max(vf_set1(-127), x);                       /* n = -127 makes all exponent bits 0, and so the result */
    const vf shift = vf_set1(12582912.0f + 127);        /* 1.5 * 2^23 + the exponent's bias: adding it rounds x to n, */
    const vf shifted = x + shift;                       /* and leaves the biased n in the low bits */
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

/* Where the online softmax of a query of this head begins: with nothing, or with the sink's logit, in units of log 2. */
VF_INLINE void FN(begin_softmax)(const attention *a, int head, float *maximum, float *sum) {
    const float sink = a->sinks ? a->sinks[head] * (float)M_LOG2E : -FLT_MAX;
    *maximum = sink < -FLT_MAX ? -FLT_MAX : sink;
    *sum = a->sinks ? 1 : 0;
}

/* Rows of n floats: to = from, padded with zeros;  to += from;  to = factor from;  sum x y. */
VF_INLINE void FN(pack_row)(float *to, const float *from, int n) {
    int i = 0;
    for (; i + VF_WIDTH <= n; i += VF_WIDTH) vf_store(to + i, vf_load(from + i));
    for (; i < PADDED(n); i++) to[i] = i < n ? from[i] : 0;
}
VF_INLINE void FN(add_row)(float *to, const float *from, int n) {
    int i = 0;
    for (; i + VF_WIDTH <= n; i += VF_WIDTH) vf_store(to + i, vf_load(to + i) + vf_load(from + i));
    for (; i < n; i++) to[i] += from[i];
}
VF_INLINE void FN(scale_row)(float *to, const float *from, float factor, int n) {
    int i = 0;
    for (; i + VF_WIDTH <= n; i += VF_WIDTH) vf_store(to + i, factor * vf_load(from + i));
    for (; i < n; i++) to[i] = factor * from[i];
}
VF_INLINE float FN(dot)(const float *x, const float *y, int n) {
    vf sums = {0};
    int i = 0;
    for (; i + VF_WIDTH <= n; i += VF_WIDTH) sums += vf_load(x + i) * vf_load(y + i);
    float sum = vf_sum(sums);
    for (; i < n; i++) sum += x[i] * y[i];
    return sum;
}
