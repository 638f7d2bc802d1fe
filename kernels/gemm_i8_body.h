/* The int8 core: weights as bytes times activations or gradients rounded to bytes, summed exactly in int32; twice the
 * work an instruction of the int16 core (whose structure this is), where a processor multiplies bytes.
 *
 *     acc[i][lane] = sum_d a[i][d] b[d][lane]      b as [d / per_lane][lane][per_lane], per_lane = 4 or 8
 *
 *   forward    a = q of rows of W, plus an offset    b = x^T rounded           lanes = tokens
 *              Over 256 values of k a token has one scale (base), over 32 of them a power of two: the sum, converted,
 *              is scaled by adding to its exponent.
 *   backward   a = dy rounded                        b = W', plus an offset    lanes = columns
 *              Over 64 rows n of W, the scales d[n][k / 32] go into W' = q d / D, rounded, D being the largest |d|. dy
 *              is divided by its largest magnitude in the 64 columns over 127 and rounded up or down at random, with
 *              probabilities that make the mean exact: errors then cancel from token to token, those of rounding
 *              to nearest add up (Gupta et al., Deep Learning with Limited Numerical Precision, 2015). The random
 *              number comes from the value and its column, so it does not depend on threads or on how a batch is cut.
 *
 * This file packs x and dy and, with gemm_i8_unpack_body.h, unpacks W, which is the same everywhere. Then it includes
 * gemm_i8_core_body.h for each way in which a processor of this width may multiply bytes (gemm_i8_tile_body.h): a core
 * each.
 */
#define LANES (2 * VF_WIDTH)
#define DEPTH 256               /* values along the sum unpacked at a time; along k, those that share a base */
#define LDA (DEPTH + 64)        /* bytes from row to row of W (forward), padded to spread rows over cache sets */
#define PANEL_ROWS 96           /* rows of W in a panel (forward): a multiple of every core's MR */
#define COLUMNS 256             /* of W in a slice (backward); with 512, sums and W' overflow the second-level cache */
#define CHUNK 64                /* rows of W that share D, columns of dy that share a scale (backward) */
#define CHUNKS (DEPTH / CHUNK)
#define GROUP 12                /* tokens a group (backward): likewise */
#define LDC (COLUMNS + 16)      /* floats from row to row of the sums of dx (backward) */
#define X_BLOCK (10 * LANES)    /* floats of packed x for 32 k: bytes, exponents, sums of the bytes */
#define X_DEPTH (8 * X_BLOCK + LANES)       /* of 256 k: these blocks, and the base */
#define EXPONENT 24             /* a block is at most 2^24 below the largest of its 256 values; less counts as that */

#define I8_TINY 1e-28f          /* values that are all smaller are rounded to zero: 2^24 / max must be finite */

#define I8_INLINE static inline __attribute__((always_inline, unused))

typedef unsigned FN(vui_type) __attribute__((vector_size(4 * VF_WIDTH), may_alias));

I8_INLINE vi FN(i8_set_four)(const void *a) { int32_t four; memcpy(&four, a, 4); return four - (vi){0}; }
I8_INLINE vi FN(i8_load)(const void *p) { vi v; memcpy(&v, p, sizeof v); return v; }

/* VF_WIDTH lanes of b: four values of d each, or, of two vectors, eight. */
I8_INLINE void FN(i8_store_lanes)(void *to, const vi fours[2], int per_lane) {
    if (per_lane == 4) memcpy(to, fours, sizeof *fours);
    else {
        const vi eights[2] = { VF_SHUFFLE(fours[0], fours[1], VF_DEAL_LOW),
                               VF_SHUFFLE(fours[0], fours[1], VF_DEAL_HIGH) };
        memcpy(to, eights, sizeof eights);
    }
}

#include "gemm_i8_unpack_body.h"

/* ---- forward ---- */

static ptrdiff_t FN(i8_packed_floats)(int T, int K) {
    return (ptrdiff_t)ROUND_UP(T, LANES) / LANES * (ROUND_UP(K, DEPTH) / DEPTH) * X_DEPTH;
}

/* x^T of 32 k and VF_WIDTH tokens: v[k][token]; zeros for tokens beyond n. */
I8_INLINE void FN(i8_load_x)(vf v[32], const float *x, int K, int n) {
    for (int j = 0; j < 32; j += VF_WIDTH) {
        for (int i = 0; i < VF_WIDTH; i++) v[j + i] = i < n ? vf_load(x + (ptrdiff_t)i * K + j) : vf_set1(0);
        vf_transpose(v + j);
    }
}

/* The largest magnitudes of 32 k, as bits (i16_larger). */
I8_INLINE vi FN(i8_largest)(const vf v[32]) {
    vi largest = {0};
    for (int j = 0; j < 32; j++) largest = FN(i16_larger)(largest, v[j]);
    return largest;
}

/* VF_WIDTH tokens of a block of 32 k into their lanes of it: top is the largest magnitude of the 256 k around. */
I8_INLINE void FN(i8_pack_block)(float *block, const vf v[32], vi top, int half, int per_lane) {
    const vf inverse = vf_select((vf)top > I8_TINY, 127 / (vf)top, vf_set1(0));
    vi below = (top - FN(i8_largest)(v)) >> 23;         /* the power of two between the two, rounded down */
    below = (vi)vf_select(below > EXPONENT, (vf)(EXPONENT - (vi){0}), (vf)below);
    const vf factor = (vf)((vi)inverse + (below << 23));
    const vf magic = vf_set1(ROUND_MAGIC);
    FN(vui_type) q_sum = (FN(vui_type))magic * -32u;
    for (int j = 0; j < 32; j += per_lane) {
        vi fours[2] = {{0}};
        for (int i = 0; i < per_lane; i++) {
            const vi q = (vi)(v[j + i] * factor + magic);       /* the bits of magic, plus the integer */
            fours[i / 4] |= (q & 255) << 8 * (i % 4), q_sum += (FN(vui_type))q;
        }
        FN(i8_store_lanes)((int8_t *)block + (j * LANES + per_lane * half), fours, per_lane);
    }
    const vi exponent = (EXPONENT - below) << 23;
    memcpy(block + 8 * LANES + half, &exponent, sizeof exponent);
    memcpy(block + 9 * LANES + half, &q_sum, sizeof q_sum);
}

/* Tokens tile * LANES .. of x (T, K) become packed[tile][k / 256]; what is beyond T and K is zero. */
I8_INLINE void FN(i8_pack_tokens)(float *packed, const float *x, int T, int K, int tile, int per_lane) {
    packed += (ptrdiff_t)tile * (ROUND_UP(K, DEPTH) / DEPTH) * X_DEPTH;
    for (int k0 = 0; k0 < K; k0 += DEPTH, packed += X_DEPTH)
        for (int half = 0; half < LANES; half += VF_WIDTH) {
            const int t0 = tile * LANES + half, n = MIN(VF_WIDTH, T - t0), depth = MIN(DEPTH, K - k0);
            const float *from = x + (ptrdiff_t)t0 * K + k0;
            float top[VF_WIDTH] = {0};
            for (int i = 0; i < n; i++) top[i] = FN(i16_largest)(from + (ptrdiff_t)i * K, depth);
            const vf tops = vf_load(top);
            for (int k = 0; k < depth; k += 32) {
                vf v[32];
                FN(i8_load_x)(v, from + k, K, n);
                FN(i8_pack_block)(packed + k / 32 * X_BLOCK, v, (vi)tops, half, per_lane);
            }
            vf_store(packed + 8 * X_BLOCK + half, tops * (1 / (127 * 0x1p24f)));
        }
}

static ptrdiff_t FN(i8_forward_scratch)(int T) {
    return PANEL_ROWS * (LDA / 4 + DEPTH / 32 + DEPTH / 16) + (ptrdiff_t)PANEL_ROWS * (ROUND_UP(T, LANES) + 16);
}

/* n values of rows n0 .. n0+n_rows of W from column k0 on; zeros up to `padded` rows. With minima apart if it is
 * to keep them. */
static void FN(i8_unpack_panel)(uint8_t *w, float *scale, float *min, const projection *p, int n0, int n_rows,
                                int padded, int k0, int n, int keeps_min, int offset) {
    const ggml_format *format = &ggml_formats[p->type];
    const uint8_t *blocks = p->weight + n0 * p->row_bytes + k0 / format->block_size * format->type_size;
    if (keeps_min)
        for (int i = 0; i < n_rows; i++, blocks += p->row_bytes) {
            int16_t q[DEPTH];
            FN(unpackers)[p->type](blocks, n / format->block_size, q, scale + i * DEPTH / 32, min + i * DEPTH / 16);
            FN(i8_narrow)(w + i * LDA, q, n, offset);
        }
    else FN(i8_unpack_rows)(w, LDA, scale, DEPTH / 32, p, blocks, n_rows, n, offset);
    for (int i = n_rows; i < padded; i++) {
        memset(w + i * LDA, 0, n);
        memset(scale + i * DEPTH / 32, 0, sizeof *scale * DEPTH / 32);
        memset(min + i * DEPTH / 16, 0, sizeof *min * DEPTH / 16);
    }
}

/* ---- backward ---- */

/* Packed dy: a chunk of CHUNK columns after the other, in each a row of bytes a token, with zeros behind column n.
 * Behind all of them S, [chunk][token], the largest |dy| of the chunk / 127, and then what sums start from. GROUP
 * tokens of zeros follow the last one. */
static ptrdiff_t FN(i8_dy_rows)(int T, int n) { return (ptrdiff_t)ROUND_UP(n, CHUNK) / CHUNK * (T + GROUP); }
static ptrdiff_t FN(i8_packed_dy_floats)(int T, int n) { return ROUND_UP(FN(i8_dy_rows)(T, n) * (CHUNK / 4 + 2), 16); }

/* Numbers from 0 to below 1 made of a value and its column: the finalizer of MurmurHash3, shortened. */
I8_INLINE vf FN(i8_random)(vf value, unsigned column) {
    const unsigned apart = 0x9E3779B1u;
    FN(vui_type) lanes;
    for (int lane = 0; lane < VF_WIDTH; lane++) lanes[lane] = lane * apart;
    FN(vui_type) h = (FN(vui_type))value + lanes + column * apart;
    h ^= h >> 16, h *= 0x85EBCA6Bu, h ^= h >> 13, h *= 0xC2B2AE35u;
    return __builtin_convertvector((vi)(h >> 9), vf) * 0x1p-23f;
}

/* n values, the first of them in that column, over S, their largest magnitude / 127, rounded up or down; zeros up to
 * CHUNK. And what sums start from where 128 is added to W': -128 times the sum of these. */
I8_INLINE void FN(i8_pack_row)(int8_t *to, float *S, int32_t *start, const float *from, int n, int column) {
    typedef int8_t bytes __attribute__((vector_size(VF_WIDTH)));
    const float max = FN(i16_largest)(from, n), inverse = max > I8_TINY ? 127 / max : 0;
    vi all = {0};
    for (int j = 0; j < CHUNK; j += VF_WIDTH) {
        const vf v = j + VF_WIDTH <= n ? vf_load(from + j) : vf_load_part(from + j, MAX(0, n - j));
        /* 256 more, so that cutting off rounds down; what is beyond 127 by a rounding error stays there */
        const vf up = vf_min(v * inverse + FN(i8_random)(v, column + j), vf_set1(127)) + 256;
        const vi q = __builtin_convertvector(up, vi);        /* whose lowest byte counts */
        const bytes b = __builtin_convertvector(q, bytes);
        memcpy(to + j, &b, sizeof b);
        all += (q << 24) >> 24;
    }
    VF_REDUCE(VF_ADD, all);
    *S = max / 127;
    *start = -128 * all[0];
}

/* Tokens tile * LANES .. of dy (T, N), columns n0 .. n0+n. */
static void FN(i8_pack_dy)(float *packed, const float *dy, int T, int N, int n0, int n, int tile) {
    const ptrdiff_t rows = FN(i8_dy_rows)(T, n);
    const int end = MIN(T, (tile + 1) * LANES);
    int8_t *q = (int8_t *)packed;
    float *S = packed + rows * CHUNK / 4;
    int32_t *start = (int32_t *)(S + rows);
    for (int j = 0; j < n; j += CHUNK, q += (T + GROUP) * CHUNK, S += T + GROUP, start += T + GROUP) {
        for (ptrdiff_t t = tile * LANES; t < end; t++) {
            const float *from = dy + t * N + n0 + j;
            const int width = MIN(CHUNK, n - j);
            if (width == CHUNK) FN(i8_pack_row)(q + t * CHUNK, &S[t], &start[t], from, CHUNK, n0 + j);
            else FN(i8_pack_row)(q + t * CHUNK, &S[t], &start[t], from, width, n0 + j);
        }
        if (end < T) continue;
        memset(q + T * CHUNK, 0, GROUP * CHUNK);
        memset(S + T, 0, sizeof *S * GROUP), memset(start + T, 0, sizeof *start * GROUP);
    }
}

/* What a slice works on, in a thread's scratch memory. */
#define LDB (DEPTH * LANES + 64)        /* bytes from LANES columns of W' to the next, padded */
typedef struct {
    uint8_t w[COLUMNS / LANES * LDB];                   /* W' + offset: of LANES columns after the other, b */
    int8_t q[CHUNK * COLUMNS];                          /* q of a chunk, as unpacked */
    int16_t d[COLUMNS / 32 * CHUNK];                    /* d / D in units of 2^-15, rounded: [column / 32][row] */
    float row_scale[CHUNK * COLUMNS / 32];              /* d[row][column / 32] */
    float scale[COLUMNS / 32 * CHUNK];                  /* d[column / 32][row] */
    float unit[CHUNKS * COLUMNS / 32];                  /* what 1 in W' stands for: [chunk][column / 32] */
} __attribute__((aligned(64))) FN(i8_slice);

static ptrdiff_t FN(i8_backward_scratch)(int T) {
    return sizeof(FN(i8_slice)) / sizeof(float) + (ptrdiff_t)ROUND_UP(T, GROUP) * LDC;
}

/* The int16 of two vectors in turn. */
I8_INLINE void FN(i8_deal)(vh to[2], const vh from[2]) {
#if VF_WIDTH == 16
#define I8_DEAL(i) i, i + 32, i + 1, i + 33, i + 2, i + 34, i + 3, i + 35, \
                   i + 4, i + 36, i + 5, i + 37, i + 6, i + 38, i + 7, i + 39
    to[0] = SHUFFLE(vh, from[0], from[1], I8_DEAL(0), I8_DEAL(8));
    to[1] = SHUFFLE(vh, from[0], from[1], I8_DEAL(16), I8_DEAL(24));
#elif VF_WIDTH == 8
#define I8_DEAL(i) i, i + 16, i + 1, i + 17, i + 2, i + 18, i + 3, i + 19
    to[0] = SHUFFLE(vh, from[0], from[1], I8_DEAL(0), I8_DEAL(4));
    to[1] = SHUFFLE(vh, from[0], from[1], I8_DEAL(8), I8_DEAL(12));
#else
    to[0] = SHUFFLE(vh, from[0], from[1], 0, 8, 1, 9, 2, 10, 3, 11);
    to[1] = SHUFFLE(vh, from[0], from[1], 4, 12, 5, 13, 6, 14, 7, 15);
#endif
#undef I8_DEAL
}

/* Row `row` of a chunk of LANES columns, times gain, times d / D, rounded. */
I8_INLINE vh FN(i8_scaled)(const FN(i8_slice) *s, int row, int k, int gain) {
    const vh d = s->d[k / 32 * CHUNK + row] - (vh){0};
    int8_t q __attribute__((vector_size(LANES)));
    memcpy(&q, s->q + row * COLUMNS + k, sizeof q);
    return FN(i16_fraction_product)(__builtin_convertvector(q, vh) * (int16_t)gain, d);
}

/* Rows of a chunk become W'. Four at a time: two and two side by side as bytes, then the twos as int16. */
I8_INLINE void FN(i8_store_chunk)(FN(i8_slice) *s, int chunk, int n_columns, int gain, int offset, int per_lane) {
    for (int k = 0; k < n_columns; k += LANES)
        for (int row = 0; row < CHUNK; row += per_lane) {
            uint8_t *to = s->w + k / LANES * LDB + (chunk * CHUNK + row) * LANES;
            vi fours[2][2];                             /* of the lower and the upper lanes */
            for (int i = 0; i < per_lane; i += 4) {
                vh twos[2], four[2];
                for (int j = 0; j < 2; j++)
                    twos[j] = (FN(i8_scaled)(s, row + i + 2 * j, k, gain) & 255) |
                              FN(i8_scaled)(s, row + i + 2 * j + 1, k, gain) << 8;
                FN(i8_deal)(four, twos);
                for (int half = 0; half < 2; half++)
                    fours[half][i / 4] = (vi)four[half] ^ (int)(offset * 0x01010101u);
            }
            for (int half = 0; half < 2; half++)
                FN(i8_store_lanes)(to + half * per_lane * VF_WIDTH, fours[half], per_lane);
        }
}

/* n_columns columns of rows n0 .. n0+n_rows (at most CHUNK) of W, from column k0 on, become a chunk of the slice. */
I8_INLINE void FN(i8_unpack_chunk)(FN(i8_slice) *s, const projection *p, int n0, int n_rows, int k0, int n_columns,
                                   int chunk, int offset, int per_lane) {
    const ggml_format *format = &ggml_formats[p->type];
    const int q_max = FN(i8_q_max)(format), gain = MAX(1, 127 / q_max);
    const int limit = q_max < 128 ? 32767 : 32511;                                      /* |W'| <= 127 */
    const uint8_t *blocks = p->weight + n0 * p->row_bytes + k0 / format->block_size * format->type_size;
    FN(i8_unpack_rows)((uint8_t *)s->q, COLUMNS, s->row_scale, COLUMNS / 32, p, blocks, n_rows, n_columns, 0);
    memset(s->q + n_rows * COLUMNS, 0, (CHUNK - n_rows) * COLUMNS);
    memset(s->row_scale + n_rows * COLUMNS / 32, 0, sizeof(float) * (CHUNK - n_rows) * COLUMNS / 32);
    for (int b = 0; b < n_columns / 32; b++) {
        float *scale = s->scale + b * CHUNK;
        for (int row = 0; row < CHUNK; row++) scale[row] = s->row_scale[row * COLUMNS / 32 + b];
        const float D = FN(i16_largest)(scale, CHUNK);
        FN(i16_round_row)(s->d + b * CHUNK, scale, CHUNK, D > I8_TINY ? limit / D : 0);
        s->unit[chunk * COLUMNS / 32 + b] = D / gain * (32768.0f / limit);
    }
    FN(i8_store_chunk)(s, chunk, n_columns, gain, offset, per_lane);
}

/* ---- the cores ---- */

/* The ways to multiply bytes. */
#define I8_PLAIN 0              /* C */
#define I8_SMALL 1              /* vpmaddubsw: pairs of products in 16 bits, for small integers */
#define I8_VNNI 2               /* vpdpbusd: four products, unsigned and signed */
#define I8_DOTPROD 3            /* sdot: the same, signed */
#define I8_MMLA 4               /* smmla: eight products each for two rows and two lanes, signed */

#define I8(name) SIMD_PASTE(name, I8_SUFFIX)
#define I8_SUFFIX SIMD_SUFFIX
#if SIMD_IS_AVX512
#define I8_KIND I8_VNNI
#elif SIMD_IS_AVX2
#define I8_KIND I8_SMALL
#include "gemm_i8_small_body.h"
#else
#define I8_KIND I8_PLAIN
#endif
#include "gemm_i8_core_body.h"
#undef I8_KIND
#undef I8_SUFFIX

#if SIMD_IS_AVX2
#define I8_SUFFIX avxvnni
#define I8_KIND I8_VNNI
#include "gemm_i8_core_body.h"
#elif SIMD_IS_NEON
SIMD_TARGET(SIMD_DOTPROD)
#define I8_SUFFIX dotprod
#define I8_KIND I8_DOTPROD
#include "gemm_i8_core_body.h"
#undef I8_KIND
#undef I8_SUFFIX
SIMD_TARGET_END

SIMD_TARGET(SIMD_I8MM)
#define I8_SUFFIX i8mm
#define I8_KIND I8_MMLA
#include "gemm_i8_core_body.h"
SIMD_TARGET_END
#endif

/* The core that the running machine gains from with weights of a type; NULL where it gains from none. */
static const gemm_core *FN(i8_core_for)(int type) {
#if SIMD_IS_AVX2
    if (simd_isa() == ISA_AVXVNNI) return i8_takes_avxvnni(type) ? &i8_core_avxvnni : NULL;
#elif SIMD_IS_NEON
    if (simd_isa() == ISA_NEON) return NULL;
    if (simd_isa() == ISA_I8MM) return i8_takes_i8mm(type) ? &i8_core_i8mm : NULL;
    return i8_takes_dotprod(type) ? &i8_core_dotprod : NULL;
#endif
    return FN(i8_takes)(type) ? &FN(i8_core) : NULL;
}

#undef I8
#undef I8_KIND
#undef I8_SUFFIX
#undef LDB
#undef ROWS
#undef LANES
#undef DEPTH
#undef LDA
#undef PANEL_ROWS
#undef COLUMNS
#undef CHUNK
#undef CHUNKS
#undef GROUP
#undef LDC
#undef X_BLOCK
#undef X_DEPTH
#undef EXPONENT
