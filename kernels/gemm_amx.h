/* The AMX core (Intel, Sapphire Rapids and later): tiles of bfloat16, float32 sums, 1024 operations a cycle.
 *
 * A float32 is split into two bfloat16, v = high + low, which keeps 16 of its 24 significant bits. Of the four products
 * of a split x split the smallest, low . low, is dropped (below 2^-16 of the whole). Three tile products in place of
 * one still run five times as fast as float32 arithmetic, with an NMSE of about 2e-11 (kernels/README.md).
 *
 * A tile is 1 KB: 16 rows of 64 bytes. TDPBF16PS computes C[16][16] += A[16][32] . B[32][16], where B has 16 rows of
 * (even, odd) pairs.
 *   forward    C = y^T tile    A = rows of W as they lie     B = x^T, pairs along k
 *   backward   C = dx tile     A = rows of dy as they lie    B = rows n, n+1 of W interleaved
 * "Quad": the four tiles that 32 rows (or lanes) x 32 values along the sum need: low 0, low 1, high 0, high 1.
 */
#ifndef LORAFAST_GEMM_AMX_H
#define LORAFAST_GEMM_AMX_H

#if SIMD_X86
SIMD_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,amx-tile,amx-bf16")

#define AMX_TILE 512            /* bfloat16 values in a tile */
#define AMX_QUAD (4 * AMX_TILE)
#define AMX_ROWS 256            /* rows of W in a panel (forward) at most */
#define AMX_DEPTH 256           /* values along K unpacked at a time: a multiple of every block size */
#define AMX_STRIP 8             /* quads along the sum that a product of tiles takes at a time: 32 x 256 split values of
                                 * A and as many of B, 32 KB each, so that one stays in L1 while the other passes by */
#define AMX_COLUMNS 256         /* columns of W in a slice (backward): a multiple of every block size */
#define AMX_CHUNK 256           /* rows of W unpacked at a time (backward): 256 x 256 split values are 256 KB */
#define AMX_PREFETCH 16         /* rows of W from the one that is unpacked to the one that is fetched */

typedef uint16_t bf16;

/* Every tile register as 16 rows of 64 bytes. In read-only memory: GCC 12 takes the instruction to read 8 bytes of it
 * only, and would leave out stores to the rest. */
static const struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_per_row[16];
    uint8_t rows[16];
} amx_config = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

static inline void amx_begin(void) { _tile_loadconfig(&amx_config); }
static inline void amx_end(void) { _tile_release(); }

/* 32 float32 -> 32 high and 32 low bfloat16. */
VF_INLINE void amx_split(__m512 a, __m512 b, __m512i *high, __m512i *low) {
    const __m512i h = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    const __m512 ha = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(h)), 16);
    const __m512 hb = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(h, 1)), 16);
    *high = h;
    *low = (__m512i)_mm512_cvtne2ps_pbh(_mm512_sub_ps(b, hb), _mm512_sub_ps(a, ha));
}

/* C (32 x 32 float32, four tiles) = or += three of the four products of split A and split B over `quads` times 32
 * values. */
static void amx_tile_product(float *c, ptrdiff_t ldc, const bf16 *a, const bf16 *b, int quads, int accumulate) {
    const int stride = (int)(ldc * sizeof(float));
    if (accumulate) {
        _tile_loadd(0, c, stride);
        _tile_loadd(1, c + 16, stride);
        _tile_loadd(2, c + 16 * ldc, stride);
        _tile_loadd(3, c + 16 * ldc + 16, stride);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int i = 0; i < quads; i++, a += AMX_QUAD, b += AMX_QUAD) {
        _tile_loadd(4, a, 64);                          /* low of A x high of B */
        _tile_loadd(5, a + AMX_TILE, 64);
        _tile_loadd(6, b + 2 * AMX_TILE, 64);
        _tile_loadd(7, b + 3 * AMX_TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(4, a + 2 * AMX_TILE, 64);           /* high x high */
        _tile_loadd(5, a + 3 * AMX_TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        _tile_loadd(6, b, 64);                          /* high x low */
        _tile_loadd(7, b + AMX_TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, stride);
    _tile_stored(1, c + 16, stride);
    _tile_stored(2, c + 16 * ldc, stride);
    _tile_stored(3, c + 16 * ldc + 16, stride);
}

/* 32 values into row i of a quad of A. */
VF_INLINE void amx_store_row(bf16 *quad, int i, __m512 v0, __m512 v1) {
    __m512i high, low;
    amx_split(v0, v1, &high, &low);
    bf16 *row = quad + (i / 16) * AMX_TILE + (i % 16) * 32;
    _mm512_storeu_si512(row, low);
    _mm512_storeu_si512(row + 2 * AMX_TILE, high);
}

/* The first n of 32 values, the rest zero. */
VF_INLINE void amx_load_32(const float *v, int n, __m512 *v0, __m512 *v1) {
    if (n >= 32) *v0 = _mm512_loadu_ps(v), *v1 = _mm512_loadu_ps(v + 16);
    else {
        const uint32_t mask = n > 0 ? (1u << n) - 1 : 0;
        *v0 = _mm512_maskz_loadu_ps((__mmask16)mask, v), *v1 = _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), v + 16);
    }
}

/* A stretch of a row of W, at most 256 values from a block boundary on, as it comes out of the unpackers: integers and
 * scales, which amx_row_32 turns to float32 on the way to the tiles, or float32 for the float types. */
typedef struct {
    int16_t q[AMX_DEPTH] __attribute__((aligned(64)));
    float scale[AMX_DEPTH / 32], min[AMX_DEPTH / 16];
    float value[AMX_DEPTH] __attribute__((aligned(64)));
} amx_row;

/* Row n of W, columns k0 .. k0+n_values. */
static inline void amx_unpack_row(amx_row *row, const projection *p, int n, int k0, int n_values) {
    const ggml_format *format = &ggml_formats[p->type];
    const uint8_t *stored = p->weight + n * p->row_bytes + (ptrdiff_t)k0 / format->block_size * format->type_size;
    const ptrdiff_t bytes = (ptrdiff_t)n_values / format->block_size * format->type_size;
    for (ptrdiff_t i = 0; i < bytes; i += 64) __builtin_prefetch(stored + AMX_PREFETCH * p->row_bytes + i);
    if (ggml_is_float(p->type)) unpack_to_f32_avx512(p->type, p->weight + n * p->row_bytes, k0, n_values, row->value);
    else unpackers_avx512[p->type](stored, n_values / format->block_size, row->q, row->scale, row->min);
}

/* Values 32 block .. 32 block + 32 of a stretch of n_values; zeros behind its end. */
VF_INLINE void amx_row_32(const amx_row *row, const ggml_format *format, int block, int n_values, __m512 *v0,
                          __m512 *v1) {
    if (format->q_max == 0) {
        amx_load_32(row->value + 32 * block, n_values - 32 * block, v0, v1);
        return;
    }
    const __m512 scale = _mm512_set1_ps(row->scale[block]);
    *v0 = _mm512_mul_ps(scale, (__m512)load_q_avx512(row->q + 32 * block));
    *v1 = _mm512_mul_ps(scale, (__m512)load_q_avx512(row->q + 32 * block + 16));
    if (format->min_every) {
        *v0 = _mm512_sub_ps(*v0, _mm512_set1_ps(row->min[2 * block]));
        *v1 = _mm512_sub_ps(*v1, _mm512_set1_ps(row->min[2 * block + 1]));
    }
}

/* --- forward --- */

static ptrdiff_t amx_packed_floats(int T, int K) { return (ptrdiff_t)ROUND_UP(T, 32) * ROUND_UP(K, 32); }

/* Tokens 32 tile .. 32 tile + 32 of x (T, K) become quads of B, packed[tile][k / 32]; tokens beyond T are zero. */
static void amx_pack_tokens(float *packed, const float *x, int T, int K, int tile) {
    bf16 *quad = (bf16 *)packed + (ptrdiff_t)tile * ROUND_UP(K, 32) / 32 * AMX_QUAD;
    for (int k = 0; k < K; k += 32, quad += AMX_QUAD)
        for (int half = 0; half < 2; half++) {
            const int n = K - k;
            const __mmask16 m0 = n >= 16 ? 0xffff : (1u << n) - 1;
            const __mmask16 m1 = n >= 32 ? 0xffff : n > 16 ? (1u << (n - 16)) - 1 : 0;
            vf_type_avx512 high[16], low[16];           /* row = token, each 32 bits a pair along k */
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) {
                const int t = tile * 32 + half * 16 + i;
                __m512i h = _mm512_setzero_si512(), l = h;
                if (t < T) {
                    const float *row = x + (ptrdiff_t)t * K + k;
                    amx_split(_mm512_maskz_loadu_ps(m0, row), _mm512_maskz_loadu_ps(m1, row + 16), &h, &l);
                }
                high[i] = (vf_type_avx512)h, low[i] = (vf_type_avx512)l;
            }
            vf_transpose__avx512(high);
            vf_transpose__avx512(low);
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) {
                _mm512_storeu_ps(quad + half * AMX_TILE + i * 32, (__m512)low[i]);
                _mm512_storeu_ps(quad + (half + 2) * AMX_TILE + i * 32, (__m512)high[i]);
            }
        }
}

static ptrdiff_t amx_forward_scratch(int T) {
    return AMX_ROWS * AMX_DEPTH + (ptrdiff_t)AMX_ROWS * (ROUND_UP(T, 32) + 16);
}

/* Rows n0 .. n0+n_rows (at most AMX_ROWS) of W times all T tokens. */
static void amx_forward_panel(const projection *p, const float *packed, int T, int K, int n0, int n_rows,
                              float *scratch) {
    const int padded = ROUND_UP(n_rows, 32), ldc = ROUND_UP(T, 32) + 16;
    const int k_quads = ROUND_UP(K, 32) / 32, tiles = ROUND_UP(T, 32) / 32;
    bf16 *w = (bf16 *)scratch;                          /* [row / 32][quad] */
    float *c = scratch + AMX_ROWS * AMX_DEPTH;
    amx_row row;
    amx_begin();
    for (int k0 = 0; k0 < K; k0 += AMX_DEPTH) {
        const int depth = MIN(AMX_DEPTH, K - k0), quads = ROUND_UP(depth, 32) / 32;
        for (int i = 0; i < padded; i++) {
            if (i < n_rows) amx_unpack_row(&row, p, n0 + i, k0, depth);
            for (int q = 0; q < quads; q++) {
                __m512 v0 = _mm512_setzero_ps(), v1 = v0;
                if (i < n_rows) amx_row_32(&row, &ggml_formats[p->type], q, depth, &v0, &v1);
                amx_store_row(w + ((ptrdiff_t)(i / 32) * quads + q) * AMX_QUAD, i % 32, v0, v1);
            }
        }
        for (int strip = 0; strip < quads; strip += AMX_STRIP)
            for (int t = 0; t < tiles; t++) {
                const bf16 *x = (const bf16 *)packed + ((ptrdiff_t)t * k_quads + k0 / 32 + strip) * AMX_QUAD;
                for (int i = 0; i < padded; i += 32)
                    amx_tile_product(c + (ptrdiff_t)i * ldc + 32 * t, ldc,
                                     w + ((ptrdiff_t)i / 32 * quads + strip) * AMX_QUAD, x,
                                     MIN(AMX_STRIP, quads - strip), k0 + strip > 0);
            }
    }
    amx_end();
    write_outputs_avx512(p, c, ldc, n0, n_rows, T);
}

/* --- backward --- */

/* Tokens 32 tile .. of dy (T, N), columns n0 .. n0+n, become quads of A, packed[tile][n / 32]. */
static void amx_pack_dy(float *packed, const float *dy, int T, int N, int n0, int n, int tile) {
    const int quads = ROUND_UP(n, 32) / 32;
    bf16 *quad = (bf16 *)packed + (ptrdiff_t)tile * quads * AMX_QUAD;
    for (int i = 0; i < 32; i++) {
        const ptrdiff_t t = tile * 32 + i;
        for (int q = 0; q < quads; q++) {
            __m512 v0, v1;
            amx_load_32(dy + t * N + n0 + 32 * q, t < T ? n - 32 * q : 0, &v0, &v1);
            amx_store_row(quad + q * AMX_QUAD, i, v0, v1);
        }
    }
}

#define AMX_LDC (AMX_COLUMNS + 16)
static ptrdiff_t amx_backward_scratch(int T) { return AMX_CHUNK * AMX_COLUMNS + (ptrdiff_t)ROUND_UP(T, 32) * AMX_LDC; }

/* Rows n0 .. n0+32 of W, columns k0 .. k0+n_columns, become quads of B, w[column / 32][quad of `quads`]. */
static void amx_interleave_rows(bf16 *w, const projection *p, int n0, int k0, int n_columns, int quads) {
    const ggml_format *format = &ggml_formats[p->type];
    amx_row even, odd;
    for (int i = 0; i < 32; i += 2) {
        if (n0 + i < p->N) amx_unpack_row(&even, p, n0 + i, k0, n_columns);
        if (n0 + i + 1 < p->N) amx_unpack_row(&odd, p, n0 + i + 1, k0, n_columns);
        for (int block = 0; 32 * block < n_columns; block++) {
            __m512 a[2] = {{0}}, b[2] = {{0}};
            if (n0 + i < p->N) amx_row_32(&even, format, block, n_columns, &a[0], &a[1]);
            if (n0 + i + 1 < p->N) amx_row_32(&odd, format, block, n_columns, &b[0], &b[1]);
            bf16 *tile = w + (ptrdiff_t)block * quads * AMX_QUAD + i / 2 * 32;
            for (int half = 0; half < 2; half++) {      /* 16 columns: what amx_split has side by side becomes pairs */
                __m512i high, low;
                amx_split(a[half], b[half], &high, &low);
                const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                                       23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
                _mm512_storeu_si512(tile + half * AMX_TILE, _mm512_permutexvar_epi16(pairs, low));
                _mm512_storeu_si512(tile + (half + 2) * AMX_TILE, _mm512_permutexvar_epi16(pairs, high));
            }
        }
    }
}

/* dx[t0 .. t1][k0 .. k0+n_columns] += dy[.][n0 .. n0+n] . W for one projection; t0 is a multiple of 32. The sum is made
 * in scratch: rows of dx often lie a power of two apart and would fall on the same cache sets. */
static void amx_backward_slice(float *dx, int K, const projection *p, const float *packed, int all_T, int n0, int n,
                               int k0, int n_columns, int t0, int t1, float *scratch) {
    bf16 *w = (bf16 *)scratch;                          /* [column / 32][quad] */
    float *c = scratch + AMX_CHUNK * AMX_COLUMNS;
    const int packed_quads = ROUND_UP(n, 32) / 32, tiles = ROUND_UP(t1 - t0, 32) / 32;
    amx_begin();
    for (int chunk = 0; chunk < n; chunk += AMX_CHUNK) {
        const int quads = ROUND_UP(MIN(AMX_CHUNK, n - chunk), 32) / 32;
        for (int q = 0; q < quads; q++)
            amx_interleave_rows(w + q * AMX_QUAD, p, n0 + chunk + 32 * q, k0, n_columns, quads);
        for (int strip = 0; strip < quads; strip += AMX_STRIP)
            for (int t = 0; t < tiles; t++) {
                const ptrdiff_t quad = (ptrdiff_t)(t0 / 32 + t) * packed_quads + chunk / 32 + strip;
                const bf16 *a = (const bf16 *)packed + quad * AMX_QUAD;
                for (int k = 0; k < n_columns; k += 32)
                    amx_tile_product(c + (ptrdiff_t)t * 32 * AMX_LDC + k, AMX_LDC, a,
                                     w + ((ptrdiff_t)(k / 32) * quads + strip) * AMX_QUAD,
                                     MIN(AMX_STRIP, quads - strip), chunk + strip > 0);
            }
    }
    amx_end();
    add_sums_avx512(dx, K, c, AMX_LDC, k0, n_columns, t0, t1);
}

SIMD_TARGET_END

static const gemm_core amx_core = {
    .arithmetic = "bfloat16 pieces",
    .token_tile = 32, .panel_rows = AMX_ROWS, .panel_unit = 32, .slice_columns = AMX_COLUMNS,
    .packed_x = amx_packed_floats, .pack_x = amx_pack_tokens,
    .forward_scratch = amx_forward_scratch, .forward_panel = amx_forward_panel,
    .packed_dy = amx_packed_floats, .pack_dy = amx_pack_dy,
    .backward_scratch = amx_backward_scratch, .backward_slice = amx_backward_slice,
};
#endif
#endif
