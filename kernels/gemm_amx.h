/* The AMX cores (Intel, Sapphire Rapids and later): tiles of bfloat16, float32 sums, 1024 operations a cycle.
 *
 * A tile is 1 KB: 16 rows of 64 bytes. TDPBF16PS computes C[16][16] += A[16][32] . B[32][16], where B has 16 rows of
 * (even, odd) pairs.
 *   forward    C = y^T tile    A = rows of W as they lie     B = x^T, pairs along k
 *   backward   C = dx tile     A = rows of dy as they lie    B = rows n, n+1 of W interleaved
 * Two tiles of C are in registers, 16 x 32 sums: three loads for two products. Four would need four loads for four, and
 * are as fast on a core of one's own; but where another thread shares the core, eight registers in use take twice the
 * time (measured: 92 ns for what takes 52, and 23 alone).
 *
 * How many bfloat16 a value becomes makes the cores (gemm_amx_body.h, compiled for PIECES):
 *   1   the value rounded to 8 significant bits: the core of int8. NMSE 5e-6, a tenth of that of bytes with common
 *       scales, and faster here: products of bytes would have to leave the tiles for their scales every 32 values.
 *   2   v = high + low keeps 16 of 24 bits: the core of int16. Of the four products of a split x split the smallest,
 *       low . low, is dropped (below 2^-16 of the whole). NMSE 2e-11.
 */
#ifndef LORAFAST_GEMM_AMX_H
#define LORAFAST_GEMM_AMX_H

#if SIMD_X86
SIMD_TARGET(SIMD_AVX512_BF16)

#define AMX_TILE 512            /* bfloat16 values in a tile */
#define AMX_DEPTH 256           /* values along the sum at a time, a multiple of every block size: 32 x 256 values of the
                                 * side that stays in L1, while the other passes by from L2, are 16 KB a piece */
#define AMX_ROWS 256            /* rows of W in a panel (forward) at most */
#define AMX_COLUMNS 256         /* columns of W in a slice (backward): a multiple of every block size */
#define AMX_AHEAD 16            /* rows of W from the one that is unpacked to the one that is fetched */
#define AMX_LDC (AMX_COLUMNS + 16)      /* floats from row to row of the sums of dx */

typedef uint16_t bf16;

#ifndef SIMD_AVX512_IN_C
/* As in amxintrin.h; but those of GCC 12 do not say that they read memory. */
#define TILE_ASM(...) __asm__ volatile(__VA_ARGS__)
#define TILE_CONFIGURE(config) TILE_ASM("ldtilecfg %0" : : "m"(config))
#define TILE_RELEASE() TILE_ASM("tilerelease")
#define TILE_ZERO(tile) TILE_ASM("tilezero %%tmm" #tile : :)
#define TILE_LOAD(tile, from, stride) \
    TILE_ASM("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"((ptrdiff_t)(stride)) : "memory")
#define TILE_STORE(tile, to, stride) \
    TILE_ASM("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"((ptrdiff_t)(stride)) : "memory")
#define TILE_PRODUCTS(sum, a, b) TILE_ASM("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sum : :)
#endif

/* Every tile register as 16 rows of 64 bytes. */
typedef struct { uint8_t palette, start_row, reserved[14]; uint16_t bytes_per_row[16]; uint8_t rows[16]; } amx_config;
static inline void amx_begin(void) {
    static const amx_config config = {
        1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    TILE_CONFIGURE(config);
}
static inline void amx_end(void) { TILE_RELEASE(); }

typedef vf_type_avx512 amx_vf;  /* 16 float32 */
typedef vi_type_avx512 amx_vi;  /* 32 bfloat16, or 16 pairs of them */

VF_INLINE void amx_store(bf16 *to, amx_vi v) { memcpy(to, &v, sizeof v); }

/* The first n of 32 values, the rest zero. */
VF_INLINE void amx_load_32(const float *from, int n, amx_vf v[2]) {
    const uint32_t mask = n >= 32 ? UINT32_MAX : n > 0 ? (1u << n) - 1 : 0;
    v[0] = (amx_vf)_mm512_maskz_loadu_ps((__mmask16)mask, from);
    v[1] = (amx_vf)_mm512_maskz_loadu_ps((__mmask16)(mask >> 16), from + 16);
}

/* 32 values as bfloat16, those of a before those of b: as they are rounded, and what that leaves of them. */
typedef struct { amx_vi high, low; } amx_pieces;
VF_INLINE amx_pieces amx_split(amx_vf a, amx_vf b, int pieces) {
    amx_pieces split = {(amx_vi)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a), {0}};
    if (pieces == 2) {
        const __m512i high = (__m512i)split.high;
        const amx_vi of_a = (amx_vi)_mm512_cvtepu16_epi32(_mm512_castsi512_si256(high)) << 16;
        const amx_vi of_b = (amx_vi)_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(high, 1)) << 16;
        split.low = (amx_vi)_mm512_cvtne2ps_pbh((__m512)(b - (amx_vf)of_b), (__m512)(a - (amx_vf)of_a));
    }
    return split;
}

/* What amx_split has side by side, as pairs (a[i], b[i]). */
VF_INLINE amx_vi amx_pairs(amx_vi v) {
    const vh_type_avx512 side_by_side = (vh_type_avx512)v;
    return (amx_vi)SHUFFLE(vh_type_avx512, side_by_side, side_by_side, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22,
                           7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

/* A stretch of a row of W, at most 256 values from a block boundary on, as it comes out of the unpackers: integers and
 * scales, which amx_row_32 turns to float32 on the way to the tiles. Q8_0's integers are taken where they lie. */
typedef struct {
    const block_q8_0 *q8_0;
    int16_t q[256] __attribute__((aligned(64)));
    float scale[256 / 32], min[256 / 16];
} amx_row;

/* Values 32 block .. 32 block + 32 of it. */
VF_INLINE void amx_row_32(const amx_row *row, int is_q8_0, int has_min, int block, amx_vf v[2]) {
    for (int i = 0; i < 2; i++) {
        v[i] = is_q8_0 ? load_q8_avx512(row->q8_0[block].q + 16 * i) : load_q_avx512(row->q + 32 * block + 16 * i);
        v[i] *= row->scale[block];
        if (has_min) v[i] -= row->min[2 * block + i];
    }
}

/* n_values of row n of W, from column k0 on. */
VF_INLINE void amx_unpack_row(amx_row *row, const projection *p, int n, int k0, int n_values) {
    const ggml_format *format = &ggml_formats[p->type];
    const int n_blocks = n_values / format->block_size;
    const uint8_t *blocks = p->weight + n * p->row_bytes + (ptrdiff_t)k0 / format->block_size * format->type_size;
    prefetch_rows(blocks + AMX_AHEAD * p->row_bytes, 0, 1, n_blocks * format->type_size, 0, 1);
    row->q8_0 = (const block_q8_0 *)blocks;
    if (p->type == GGML_Q8_0) scales_q8_0_avx512(row->q8_0, n_blocks, row->scale);
    else unpackers_avx512[p->type](blocks, n_blocks, row->q, row->scale, row->min);
}

#define PIECES 1
#include "gemm_amx_body.h"
#undef PIECES
#define PIECES 2
#include "gemm_amx_body.h"
#undef PIECES

SIMD_TARGET_END
#endif
#endif
