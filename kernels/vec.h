/* vf: a vector of VF_WIDTH float32, with GCC's vector extensions, so that + - * / and comparisons are plain C.
 * Included once per instruction set by simd_foreach.h; every name carries the set's suffix through FN.
 * The compiler contracts a * b + c into a fused multiply-add where the set has one.
 */

typedef float FN(vf_type) __attribute__((vector_size(4 * VF_WIDTH), may_alias));
typedef int FN(vi_type) __attribute__((vector_size(4 * VF_WIDTH), may_alias));
typedef double FN(vd_type) __attribute__((vector_size(4 * VF_WIDTH), may_alias));

#ifndef VEC_H_NAMES      /* the short names; they expand through FN, so one definition serves every instruction set */
#define VEC_H_NAMES
#define VF_INLINE static inline __attribute__((always_inline, unused))
#define vf FN(vf_type)
#define vi FN(vi_type)
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
#define vf_exp FN(vf_exp_)
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

/* One instruction each (a loop over the elements is two against a constant, in GCC 12). A NaN in b stays. */
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

/* VF_SWAP(v, n), n a power of two: each element changes places with its neighbour n away (element i with i ^ n). */
#undef VF_INDEX
#if VF_WIDTH == 16
#define VF_INDEX ((vi){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15})
#elif VF_WIDTH == 8
#define VF_INDEX ((vi){0, 1, 2, 3, 4, 5, 6, 7})
#else
#define VF_INDEX ((vi){0, 1, 2, 3})
#endif
#define VF_SWAP(v, n) __builtin_shuffle(v, VF_INDEX ^ (n))

/* Over the elements of one vector, in halves: always in the same order. */
VF_INLINE float vf_sum(vf v) {
#if VF_WIDTH > 8
    v += VF_SWAP(v, 8);
#endif
#if VF_WIDTH > 4
    v += VF_SWAP(v, 4);
#endif
    v += VF_SWAP(v, 2);
    v += VF_SWAP(v, 1);
    return v[0];
}
VF_INLINE float vf_maximum(vf v) {
#if VF_WIDTH > 8
    v = vf_max(v, VF_SWAP(v, 8));
#endif
#if VF_WIDTH > 4
    v = vf_max(v, VF_SWAP(v, 4));
#endif
    v = vf_max(v, VF_SWAP(v, 2));
    v = vf_max(v, VF_SWAP(v, 1));
    return v[0];
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
