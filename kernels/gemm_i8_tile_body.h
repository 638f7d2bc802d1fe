/* How a core of the int8 kind multiplies: gemm_i8_core_body.h includes this for I8_KIND, as I8(...).
 *
 * OFFSET is added to weights where an instruction wants one side unsigned. What it adds is taken off before: sums begin
 * at -OFFSET times the sum of the signed bytes.
 */
#if I8_KIND == I8_MMLA
#define MR 6                    /* 12 int32 and 12 float32 sums, 6 pairs of rows, a vector of b: 31 of 32 registers */
#elif I8_KIND == I8_DOTPROD || SIMD_IS_AVX512
#define MR 6                    /* 12 int32 and 12 float32 sums, 2 vectors of b, a broadcast: 27 of 32 registers */
#else
#define MR 4
#endif
#define PER_LANE (I8_KIND == I8_MMLA ? 8 : 4)           /* values of the sum that lie side by side in a lane of b */

#if I8_KIND == I8_SMALL
#define OFFSET(format) ((format)->min_every ? 0 : (format)->q_max)
#define KEEPS_MIN(format) ((format)->min_every > 0)     /* whether forward's bytes are q, without their minima */
/* Steps of two products of |x| <= 127 and an unsigned integer that 16 bits hold, 8 or 4. */
#define STEPS(format) (32767 / (2 * 127 * ((format)->q_max + OFFSET(format))) >= 8 ? 8 : 4)
#else
#define OFFSET(format) (I8_KIND == I8_DOTPROD || I8_KIND == I8_MMLA ? 0 : 128)
#define KEEPS_MIN(format) 0
#define STEPS(format) 8
#endif

/* Whether products gain from it: all integers, or those that are small. */
static inline int I8(i8_takes)(int type) {
#if I8_KIND == I8_SMALL
    const ggml_format *format = &ggml_formats[type];
    return format->q_max > 0 && format->min_every != 16 && FN(i8_small)(format) <= 16;
#else
    return !ggml_is_float(type);
#endif
}

#if I8_KIND == I8_PLAIN || I8_KIND == I8_VNNI
/* sum[lane] + four products of bytes, the first ones unsigned unless OFFSET is 0. VNNI as an instruction of its own, for
 * of the intrinsic GCC 12 makes copies and spills; so compilers need not know it either. */
I8_INLINE vi I8(i8_multiply_add)(vi sum, vi u8, vi s8) {
#if I8_KIND == I8_VNNI && SIMD_IS_AVX512 && !defined(SIMD_AVX512_IN_C)
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u8), "v"(s8));
    return sum;
#elif I8_KIND == I8_VNNI && SIMD_IS_AVX2 && !defined(SIMD_AVXVNNI_IN_C)
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(u8), "x"(s8));
    return sum;
#else
    const FN(vui_type) u = (FN(vui_type))u8;
    return sum + (vi)(u & 255) * (s8 << 24 >> 24) + (vi)(u >> 8 & 255) * (s8 << 16 >> 24) +
           (vi)(u >> 16 & 255) * (s8 << 8 >> 24) + (vi)(u >> 24) * (s8 >> 24);
#endif
}
#endif

#if I8_KIND == I8_DOTPROD
/* acc += a . b as below. A product takes the four bytes of a row from where they lie in a register, so that none is
 * broadcast. */
I8_INLINE void I8(i8_row_products)(vi acc[MR][2], const uint8_t *a, ptrdiff_t lda, const uint8_t *b, int depth) {
#define I8_DOT(sum, lanes, four) \
    __asm__("sdot %0.4s, %1.16b, %2.4b[" #four "]" : "+w"(sum) : "w"(lanes), "w"(rows[i]))
#define I8_DOT_FOUR(four) { \
    const vi b0 = FN(i8_load)(b + four * 4 * LANES), b1 = FN(i8_load)(b + four * 4 * LANES + 2 * LANES); \
    SIMD_PRAGMA(GCC unroll 8) \
    for (int i = 0; i < MR; i++) { I8_DOT(acc[i][0], b0, four); I8_DOT(acc[i][1], b1, four); } \
}
#pragma GCC unroll 1
    for (int d0 = 0; d0 < depth; d0 += 16, a += 16, b += 16 * LANES) {
        vi rows[MR];
#pragma GCC unroll 8
        for (int i = 0; i < MR; i++) rows[i] = FN(i8_load)(a + i * lda);
        I8_DOT_FOUR(0) I8_DOT_FOUR(1) I8_DOT_FOUR(2) I8_DOT_FOUR(3)
    }
#undef I8_DOT_FOUR
#undef I8_DOT
}
#endif

#if I8_KIND == I8_MMLA
/* sum + a (two rows of eight bytes) . b (two lanes of eight): [row][lane]. */
I8_INLINE vi I8(i8_multiply_add)(vi sum, vi a, vi b) {
    __asm__("smmla %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
    return sum;
}
/* The lower halves of two vectors, and the upper ones. */
I8_INLINE void I8(i8_halves)(vi to[2], vi x, vi y) {
    to[0] = SHUFFLE(vi, x, y, 0, 1, 4, 5);
    to[1] = SHUFFLE(vi, x, y, 2, 3, 6, 7);
}

/* acc += a . b as below, in pairs of rows and of lanes, and at the end row by row. */
I8_INLINE void I8(i8_pair_products)(vi acc[MR][2], const uint8_t *a, ptrdiff_t lda, const uint8_t *b, int depth) {
    vi sum[MR / 2][LANES / 2] = {{{0}}};
#pragma GCC unroll 1
    for (int d0 = 0; d0 < depth; d0 += 16, a += 16, b += 16 * LANES) {
        vi rows[MR / 2][2];                             /* of a pair, the first eight bytes and the next */
#pragma GCC unroll 4
        for (int i = 0; i < MR / 2; i++)
            I8(i8_halves)(rows[i], FN(i8_load)(a + 2 * i * lda), FN(i8_load)(a + (2 * i + 1) * lda));
#pragma GCC unroll 2
        for (int eight = 0; eight < 2; eight++)
#pragma GCC unroll 4
            for (int j = 0; j < LANES / 2; j++) {
                const vi lanes = FN(i8_load)(b + eight * 8 * LANES + j * 16);
#pragma GCC unroll 4
                for (int i = 0; i < MR / 2; i++) sum[i][j] = I8(i8_multiply_add)(sum[i][j], rows[i][eight], lanes);
            }
    }
#pragma GCC unroll 4
    for (int i = 0; i < MR / 2; i++)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            vi of_row[2];
            I8(i8_halves)(of_row, sum[i][2 * h], sum[i][2 * h + 1]);
            acc[2 * i][h] += of_row[0], acc[2 * i + 1][h] += of_row[1];
        }
}
#endif

/* acc += a (MR x depth, rows of lda bytes) . b (depth x LANES). One of the two has OFFSET: a forward, b backward.
 * (I8_SMALL: forward alone, depth is 32, and sums of 16 bits are widened after `steps` steps.) */
I8_INLINE void I8(i8_tile)(vi acc[MR][2], const uint8_t *a, ptrdiff_t lda, const uint8_t *b, int depth,
                           int is_forward, int steps) {
#if SIMD_IS_NEON
    if (is_forward) __asm__("" : "+r"(depth));          /* GCC 12, if it knew, would unroll the loop and spill */
#endif
#if I8_KIND == I8_SMALL
    FN(i8_small_products)(acc, a, lda, b, depth, steps);
#elif I8_KIND == I8_DOTPROD
    I8(i8_row_products)(acc, a, lda, b, depth);
#elif I8_KIND == I8_MMLA
    I8(i8_pair_products)(acc, a, lda, b, depth);
#else
    for (int d0 = 0; d0 < depth; d0 += 16, a += 16, b += 16 * LANES)
#pragma GCC unroll 4
        for (int d = 0; d < 16; d += 4) {
            const vi b0 = FN(i8_load)(b + d * LANES), b1 = FN(i8_load)(b + d * LANES + 2 * LANES);
#pragma GCC unroll 8
            for (int i = 0; i < MR; i++) {
                const vi w = FN(i8_set_four)(a + d + i * lda);
                acc[i][0] = is_forward ? I8(i8_multiply_add)(acc[i][0], w, b0) : I8(i8_multiply_add)(acc[i][0], b0, w);
                acc[i][1] = is_forward ? I8(i8_multiply_add)(acc[i][1], w, b1) : I8(i8_multiply_add)(acc[i][1], b1, w);
            }
        }
#endif
}
