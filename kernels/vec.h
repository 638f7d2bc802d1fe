/* vf: a vector of VF_WIDTH float32, with GCC's vector extensions, so that + - * / and comparisons are plain C.
 * Included once per instruction set by simd_foreach.h; every name carries the set's suffix through FN.
 * The compiler contracts a * b + c into a fused multiply-add where the set has one.
 */

typedef float FN(vf_type) __attribute__((vector_size(4 * VF_WIDTH), may_alias));
typedef int FN(vi_type) __attribute__((vector_size(4 * VF_WIDTH), may_alias));
typedef short FN(vh_type) __attribute__((vector_size(4 * VF_WIDTH), may_alias));
typedef double FN(vd_type) __attribute__((vector_size(4 * VF_WIDTH), may_alias));

#ifndef VEC_H_NAMES      /* the short names; they expand through FN, so one definition serves every instruction set */
#define VEC_H_NAMES
#define VF_INLINE static inline __attribute__((always_inline, unused))
#define vf FN(vf_type)
#define vi FN(vi_type)
#define vh FN(vh_type)
#define vd FN(vd_type)
#define vf_set1 FN(vf_set1_)
#define vf_load FN(vf_load_)
#define vf_store FN(vf_store_)
#define vf_load_part FN(vf_load_part_)
#define vf_load_part_else FN(vf_load_part_else_)
#define vf_store_part FN(vf_store_part_)
#define vf_select FN(vf_select_)
#define vf_max FN(vf_max_)
#define vf_min FN(vf_min_)
#define vf_sum FN(vf_sum_)
#define vf_maximum FN(vf_maximum_)
#define vf_transpose FN(vf_transpose_)
#define vf_exp FN(vf_exp_)
#define vf_abs FN(vf_abs_)
#define vf_tanh FN(vf_tanh_)
#define vf_soft_cap FN(vf_soft_cap_)
#define vd_load FN(vd_load_)
#define vd_sum FN(vd_sum_)
#define vd_dot FN(vd_dot_)
#endif

VF_INLINE vf vf_set1(float x) { return x - (vf){0}; }

VF_INLINE vf vf_load(const float *p) { vf v; __builtin_memcpy(&v, p, sizeof v); return v; }
VF_INLINE void vf_store(float *p, vf v) { __builtin_memcpy(p, &v, sizeof v); }

/* The first n < VF_WIDTH elements; the rest reads as zero (or as given) and is not written. For the tail of a row: it
 * goes through memory. */
VF_INLINE vf vf_load_part_else(const float *p, int n, float rest) {
    vf v = vf_set1(rest);
    __builtin_memcpy(&v, p, sizeof(float) * n);
    return v;
}
VF_INLINE vf vf_load_part(const float *p, int n) { return vf_load_part_else(p, n, 0); }
VF_INLINE void vf_store_part(float *p, vf v, int n) { __builtin_memcpy(p, &v, sizeof(float) * n); }

/* mask ? a : b, the mask being the result of a comparison (all ones or all zeros an element). */
VF_INLINE vf vf_select(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }

/* One instruction each (a loop over the elements is two where one side is constant, in GCC 12). A NaN in b stays. */
#if SIMD_IS_AVX512
VF_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
VF_INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
#elif SIMD_IS_AVX2
VF_INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
VF_INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
#elif SIMD_X86
VF_INLINE vf vf_max(vf a, vf b) { return _mm_max_ps(a, b); }
VF_INLINE vf vf_min(vf a, vf b) { return _mm_min_ps(a, b); }
#elif SIMD_IS_NEON
VF_INLINE vf vf_max(vf a, vf b) { return (vf)vmaxq_f32((float32x4_t)a, (float32x4_t)b); }
VF_INLINE vf vf_min(vf a, vf b) { return (vf)vminq_f32((float32x4_t)a, (float32x4_t)b); }
#else
VF_INLINE vf vf_max(vf a, vf b) { return vf_select(a > b, a, b); }
VF_INLINE vf vf_min(vf a, vf b) { return vf_select(a < b, a, b); }
#endif

/* VF_SHUFFLE(a, b, index): element i becomes element index(i) of a and b, numbered through; index names a macro. */
#undef VF_SHUFFLE
#if VF_WIDTH == 16
#define VF_SHUFFLE(a, b, index) \
    SHUFFLE(vi, a, b, index(0), index(1), index(2), index(3), index(4), index(5), index(6), index(7), \
            index(8), index(9), index(10), index(11), index(12), index(13), index(14), index(15))
#elif VF_WIDTH == 8
#define VF_SHUFFLE(a, b, index) \
    SHUFFLE(vi, a, b, index(0), index(1), index(2), index(3), index(4), index(5), index(6), index(7))
#else
#define VF_SHUFFLE(a, b, index) SHUFFLE(vi, a, b, index(0), index(1), index(2), index(3))
#endif

/* VF_SWAP(v, n), n = 1, 2, 4 or 8: each element changes places with its neighbour n away. */
#define VF_NEIGHBOUR_1(i) ((i) ^ 1)
#define VF_NEIGHBOUR_2(i) ((i) ^ 2)
#define VF_NEIGHBOUR_4(i) ((i) ^ 4)
#define VF_NEIGHBOUR_8(i) ((i) ^ 8)
#define VF_SWAP(v, n) VF_SHUFFLE(v, v, VF_NEIGHBOUR_##n)

/* VF_SHUFFLE(v, v, VF_TWICE): each of the lower half of the elements twice. */
#define VF_TWICE(i) ((i) / 2)

/* STEP(v, n) for n = VF_WIDTH / 2, ..., 2, 1, which combines every element with its neighbour n away: over all elements
 * of one vector, in halves, always in the same order. */
#undef VF_REDUCE
#if VF_WIDTH == 16
#define VF_REDUCE(STEP, v) STEP(v, 8); STEP(v, 4); STEP(v, 2); STEP(v, 1)
#elif VF_WIDTH == 8
#define VF_REDUCE(STEP, v) STEP(v, 4); STEP(v, 2); STEP(v, 1)
#else
#define VF_REDUCE(STEP, v) STEP(v, 2); STEP(v, 1)
#endif
#define VF_ADD(v, n) v += VF_SWAP(v, n)
#define VF_TAKE_LARGER(v, n) v = vf_max(v, VF_SWAP(v, n))
VF_INLINE float vf_sum(vf v) { VF_REDUCE(VF_ADD, v); return v[0]; }
VF_INLINE float vf_maximum(vf v) { VF_REDUCE(VF_TAKE_LARGER, v); return v[0]; }

/* rows[i][j] <-> rows[j][i] for a square of VF_WIDTH vectors, by log2(VF_WIDTH) perfect shuffles: each deals out the
 * elements of two vectors in turn, first from their lower halves, then from their upper ones. */
#define VF_DEAL_LOW(i) ((i) / 2 + (i) % 2 * VF_WIDTH)
#define VF_DEAL_HIGH(i) ((i) / 2 + (i) % 2 * VF_WIDTH + VF_WIDTH / 2)
VF_INLINE void vf_transpose(vf *rows) {
    vf next[VF_WIDTH];
#pragma GCC unroll 4
    for (int round = VF_WIDTH; round > 1; round /= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < VF_WIDTH / 2; i++) {
            next[2 * i] = VF_SHUFFLE(rows[i], rows[i + VF_WIDTH / 2], VF_DEAL_LOW);
            next[2 * i + 1] = VF_SHUFFLE(rows[i], rows[i + VF_WIDTH / 2], VF_DEAL_HIGH);
        }
#pragma GCC unroll 16
        for (int i = 0; i < VF_WIDTH; i++) rows[i] = next[i];
    }
}

/* exp(x), within 1.6 ulp (all float32 from -87.3 to 88.7 tried); 0 below -87.7, infinity above 88.7, NaN for NaN.
 * x = n ln 2 + r, |r| <= ln 2 / 2; exp(r) by its Taylor series to r^7; times 2^n through the exponent bits, which for
 * the lowest n = -127 spell zero. */
VF_INLINE vf vf_exp(vf x) {
    x = vf_max(vf_set1(-88), x);
    const vf round = vf_set1(12582912.0f);                       /* 1.5 * 2^23: adding it rounds to an integer */
    const vf n = vf_min((x * 1.44269504f + round) - round, vf_set1(127));
    const vf r = (x - n * 0.693359375f) - n * -2.12194440e-4f;   /* ln 2 in two parts: the first product is exact */
    vf p = vf_set1(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const vi exponent = (__builtin_convertvector(n, vi) + 127) << 23;
    return p * (vf)exponent;
}

VF_INLINE vf vf_abs(vf x) { return (vf)((vi)x & 0x7fffffff); }

/* tanh(x), within 1.4 ulp; NaN for NaN. For |x| < 0.625 x + x^3 times a minimax polynomial of x^2, else
 * 1 - 2 / (1 + exp(2 |x|)) with the sign of x. */
VF_INLINE vf vf_tanh(vf x) {
    const vf size = vf_abs(x), square = x * x, far = 1 - 2 / (1 + vf_exp(2 * size));
    vf p = vf_set1(-5.71699487e-3f);
    p = p * square + 2.06505377e-2f;
    p = p * square - 5.37434816e-2f;
    p = p * square + 1.33314908e-1f;
    p = p * square - 3.33332837e-1f;
    const vf near = x + x * square * p;
    return vf_select(size < 0.625f, near, (vf)((vi)far | ((vi)x & (int)0x80000000)));
}

/* cap tanh(x / cap): x where it is small beside the cap, and never beyond it. */
VF_INLINE vf vf_soft_cap(vf x, float cap) { return cap * vf_tanh(x / cap); }

/* vd: VF_WIDTH / 2 float64, for sums that need them. vd_load reads as many float32; its loop becomes one conversion. */
VF_INLINE vd vd_load(const float *p) {
    vd v;
    for (int i = 0; i < VF_WIDTH / 2; i++) v[i] = p[i];
    return v;
}
VF_INLINE double vd_sum(vd v) {
    double sum = 0;
    for (int i = 0; i < VF_WIDTH / 2; i++) sum += v[i];
    return sum;
}

/* sum_i a[i] * b[i], products and sum in float64. */
VF_INLINE double vd_dot(const float *a, const float *b, ptrdiff_t n) {
    vd even = {0}, odd = {0};                                    /* two chains, to hide the latency of the addition */
    ptrdiff_t i = 0;
    for (; i + VF_WIDTH <= n; i += VF_WIDTH) {
        even += vd_load(a + i) * vd_load(b + i);
        odd += vd_load(a + i + VF_WIDTH / 2) * vd_load(b + i + VF_WIDTH / 2);
    }
    double sum = vd_sum(even + odd);
    for (; i < n; i++) sum += (double)a[i] * b[i];
    return sum;
}
