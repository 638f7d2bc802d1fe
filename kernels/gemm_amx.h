/* The AMX core (Intel, Sapphire Rapids and later): tiles of bfloat16, float32 sums, 1024 operations a cycle.
 *
 * A float32 is split into two bfloat16, v = high + low, which keeps 16 of its 24 significant bits. Of the four products of a
 * split x split the smallest, low . low, is dropped (below 2^-16 of the whole). Three tile products in place of one still run
 * five times as fast as float32 arithmetic, with a normalised mean square error of about 1e-10.
 *
 * A tile is 1 KB: 16 rows of 64 bytes. TDPBF16PS computes C[16][16] += A[16][32] . B[32][16], B as 16 rows of (even, odd) pairs.
 *   forward   C = y^T tile    A = rows of W as they lie           B = x^T, pairs along k
 *   backward  C = dx tile     A = rows of dy as they lie          B = rows n, n+1 of W interleaved
 * "Quad": the four tiles that 32 rows (or lanes) x 32 values along the sum need: low 0, low 1, high 0, high 1.
 */
#ifndef LORAFAST_GEMM_AMX_H
#define LORAFAST_GEMM_AMX_H

#if SIMD_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")

#define AMX_TILE 512            /* bfloat16 values in a tile */
#define AMX_QUAD (4 * AMX_TILE)
#define AMX_ROWS 256            /* rows of W in a panel (forward) at most */
#define AMX_DEPTH 512           /* values along K unpacked at a time: 256 x 512 split values are 512 KB of L2 */
#define AMX_COLUMNS 256         /* columns of W in a slice (backward): a multiple of every block size */
#define AMX_CHUNK 256           /* rows of W unpacked at a time (backward): 256 x 256 split values are 256 KB */

typedef uint16_t bf16;

/* Every tile register as 16 rows of 64 bytes. */
static inline void amx_begin(void) {
    struct { uint8_t palette, start_row, reserved[14]; uint16_t bytes_per_row[16]; uint8_t rows[16]; } config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.bytes_per_row[i] = 64, config.rows[i] = 16;
    _tile_loadconfig(&config);
}
static inline void amx_end(void) { _tile_release(); }

/* 32 float32 -> 32 high and 32 low bfloat16. */
static inline __attribute__((always_inline)) void amx_split(__m512 a, __m512 b, __m512i *high, __m512i *low) {
    const __m512i h = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    const __m512 ha = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(h)), 16);
    const __m512 hb = (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(h, 1)), 16);
    *high = h;
    *low = (__m512i)_mm512_cvtne2ps_pbh(_mm512_sub_ps(b, hb), _mm512_sub_ps(a, ha));
}

/* C (32 x 32 float32, four tiles) += three of the four products of split A and split B over `quads` times 32 values. */
static void amx_tile_product(float *c, ptrdiff_t ldc, const bf16 *a, const bf16 *b, int quads) {
    const int stride = (int)(ldc * sizeof(float));
    _tile_loadd(0, c, stride);
    _tile_loadd(1, c + 16, stride);
    _tile_loadd(2, c + 16 * ldc, stride);
    _tile_loadd(3, c + 16 * ldc + 16, stride);
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

/* n (at most 32) values of a row into row i of a quad of A; the rest of the 32 is zero. */
static inline __attribute__((always_inline)) void amx_store_row(bf16 *quad, int i, const float *v, int n) {
    __m512 v0, v1;
    if (n >= 32) v0 = _mm512_loadu_ps(v), v1 = _mm512_loadu_ps(v + 16);
    else {
        const uint32_t mask = (1u << n) - 1;
        v0 = _mm512_maskz_loadu_ps((__mmask16)mask, v), v1 = _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), v + 16);
    }
    __m512i high, low;
    amx_split(v0, v1, &high, &low);
    bf16 *row = quad + (i / 16) * AMX_TILE + (i % 16) * 32;
    _mm512_storeu_si512(row, low);
    _mm512_storeu_si512(row + 2 * AMX_TILE, high);
}

/* --- forward --- */

static ptrdiff_t amx_packed_floats(int T, int K) { return (ptrdiff_t)ROUND_UP(T, 32) * ROUND_UP(K, 32); }

/* Tokens 32 tile .. 32 tile + 32 of x (T, K) become quads of B, packed[tile][k / 32]; tokens beyond T are zero. */
static void amx_pack_tokens(bf16 *packed, const float *x, int T, int K, int tile) {
    packed += (ptrdiff_t)tile * ROUND_UP(K, 32) / 32 * AMX_QUAD;
    for (int k = 0; k < K; k += 32, packed += AMX_QUAD)
        for (int half = 0; half < 2; half++) {
            const int n = K - k;
            const __mmask16 m0 = n >= 16 ? 0xffff : (1u << n) - 1, m1 = n >= 32 ? 0xffff : n > 16 ? (1u << (n - 16)) - 1 : 0;
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
            transpose_avx512(high);
            transpose_avx512(low);
#pragma GCC unroll 16
            for (int i = 0; i < 16; i++) {
                _mm512_storeu_ps(packed + half * AMX_TILE + i * 32, (__m512)low[i]);
                _mm512_storeu_ps(packed + (half + 2) * AMX_TILE + i * 32, (__m512)high[i]);
            }
        }
}

static ptrdiff_t amx_forward_scratch(int T) { return AMX_ROWS * AMX_DEPTH + (ptrdiff_t)AMX_ROWS * (ROUND_UP(T, 32) + 16); }

/* Rows n0 .. n0+n_rows (at most AMX_ROWS) of W times all T tokens. */
static void amx_forward_panel(const projection *p, const bf16 *packed, int T, int K, int n0, int n_rows, float *scratch) {
    const int padded = ROUND_UP(n_rows, 32), ldc = ROUND_UP(T, 32) + 16, k_quads = ROUND_UP(K, 32) / 32;
    bf16 *w = (bf16 *)scratch;
    float *c = scratch + AMX_ROWS * AMX_DEPTH, row[AMX_DEPTH] __attribute__((aligned(64)));
    memset(c, 0, sizeof(float) * padded * ldc);
    amx_begin();
    for (int k0 = 0; k0 < K; k0 += AMX_DEPTH) {
        const int depth = MIN(AMX_DEPTH, K - k0), quads = ROUND_UP(depth, 32) / 32;
        for (int i = 0; i < padded; i++) {              /* w[i / 32][k / 32] */
            if (i < n_rows) unpack_to_f32_avx512(p->type, p->weight + (n0 + i) * p->row_bytes, k0, depth, row);
            else memset(row, 0, sizeof row);
            for (int q = 0; q < quads; q++)
                amx_store_row(w + ((ptrdiff_t)(i / 32) * quads + q) * AMX_QUAD, i % 32, row + 32 * q, depth - 32 * q);
        }
        for (int t = 0; t < T; t += 32)
            for (int i = 0; i < padded; i += 32)
                amx_tile_product(c + (ptrdiff_t)i * ldc + t, ldc, w + (ptrdiff_t)i / 32 * quads * AMX_QUAD,
                                 packed + ((ptrdiff_t)(t / 32) * k_quads + k0 / 32) * AMX_QUAD, quads);
    }
    amx_end();
    write_outputs_avx512(p, c, ldc, n0, n_rows, 0, T);
}

/* --- backward --- */

/* Tokens 32 tile .. of dy (T, N), columns n0 .. n0+n, become quads of A, packed[tile][n / 32]. */
static void amx_pack_dy(bf16 *packed, const float *dy, int T, int N, int n0, int n, int tile) {
    const int quads = ROUND_UP(n, 32) / 32;
    packed += (ptrdiff_t)tile * quads * AMX_QUAD;
    for (int i = 0; i < 32; i++) {
        const ptrdiff_t t = tile * 32 + i;
        for (int q = 0; q < quads; q++)
            amx_store_row(packed + q * AMX_QUAD, i, dy + t * N + n0 + 32 * q, t < T ? MIN(32, n - 32 * q) : 0);
    }
}

static ptrdiff_t amx_backward_scratch(void) { return AMX_CHUNK * AMX_COLUMNS + 2 * AMX_COLUMNS + 32 * 32; }

/* Rows n0 .. n0+32 of W, columns k0 .. k0+n_columns, become quads of B, w[column / 32][quad of `quads`]. */
static void amx_interleave_rows(bf16 *w, const projection *p, int n0, int k0, int n_columns, int quads, float *rows) {
    for (int i = 0; i < 32; i += 2) {
        for (int j = 0; j < 2; j++)
            if (n0 + i + j < p->N)
                unpack_to_f32_avx512(p->type, p->weight + (n0 + i + j) * p->row_bytes, k0, n_columns, rows + j * AMX_COLUMNS);
            else memset(rows + j * AMX_COLUMNS, 0, sizeof(float) * n_columns);
        for (int k = 0; k < n_columns; k += 16) {
            const __mmask16 mask = n_columns - k >= 16 ? 0xffff : (1u << (n_columns - k)) - 1;
            const __m512 v0 = _mm512_maskz_loadu_ps(mask, rows + k), v1 = _mm512_maskz_loadu_ps(mask, rows + AMX_COLUMNS + k);
            /* (row n in the low half, row n+1 in the high half) of each 32-bit element */
            const __m512i one_to_high = _mm512_set1_epi32((int)0xffff0000);
            const __m512i h0 = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v0));
            const __m512i h1 = _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v1)), 16);
            const __m512i high = _mm512_or_si512(h0, h1);
            const __m512 r0 = _mm512_sub_ps(v0, (__m512)_mm512_slli_epi32(high, 16));
            const __m512 r1 = _mm512_sub_ps(v1, (__m512)_mm512_and_si512(high, one_to_high));
            const __m512i l0 = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(r0));
            const __m512i l1 = _mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(r1)), 16);
            bf16 *tile = w + (ptrdiff_t)(k / 32) * quads * AMX_QUAD + (k / 16 % 2) * AMX_TILE + i / 2 * 32;
            _mm512_storeu_si512(tile, _mm512_or_si512(l0, l1));
            _mm512_storeu_si512(tile + 2 * AMX_TILE, high);
        }
    }
}

/* dx[t0 .. t1][k0 .. k0+n_columns] += dy[.][n0 .. n0+n] . W for one projection, dy packed for these n; t0 is a multiple of 32. */
static void amx_backward_slice(float *dx, int K, const projection *p, const bf16 *packed, int n0, int n, int k0, int n_columns,
                               int t0, int t1, float *scratch) {
    bf16 *w = (bf16 *)scratch;
    float *rows = scratch + AMX_CHUNK * AMX_COLUMNS, *edge = rows + 2 * AMX_COLUMNS;
    const int packed_quads = ROUND_UP(n, 32) / 32;
    amx_begin();
    for (int chunk = 0; chunk < n; chunk += AMX_CHUNK) {
        const int quads = ROUND_UP(MIN(AMX_CHUNK, n - chunk), 32) / 32;
        if (n_columns % 32) memset(w, 0, sizeof(bf16) * 2 * AMX_CHUNK * ROUND_UP(n_columns, 32));
        for (int q = 0; q < quads; q++) amx_interleave_rows(w + q * AMX_QUAD, p, n0 + chunk + 32 * q, k0, n_columns, quads, rows);
        for (int t = t0; t < t1; t += 32)
            for (int k = 0; k < n_columns; k += 32) {
                float *out = dx + (ptrdiff_t)t * K + k0 + k;
                const bf16 *a = packed + ((ptrdiff_t)(t / 32) * packed_quads + chunk / 32) * AMX_QUAD;
                const bf16 *b = w + (ptrdiff_t)(k / 32) * quads * AMX_QUAD;
                const int height = MIN(32, t1 - t), width = MIN(32, n_columns - k);
                if (height == 32 && width == 32) {
                    amx_tile_product(out, K, a, b, quads);
                    continue;
                }
                memset(edge, 0, sizeof(float) * 32 * 32);   /* a tile at the edge: computed aside, where a whole one fits */
                amx_tile_product(edge, 32, a, b, quads);
                for (int i = 0; i < height; i++)
                    for (int j = 0; j < width; j++) out[(ptrdiff_t)i * K + j] += edge[i * 32 + j];
            }
    }
    amx_end();
}

#pragma GCC pop_options
#endif
#endif
