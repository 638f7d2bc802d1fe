/* The gated delta rule of one head, chunk by chunk; the letters are those of delta_net.pyx. Matrices are row-major with
 * columns padded by zeros to whole vectors. */

/* c (rows, vectors) = alpha a b, or c += alpha a b; rows and vectors are compile-time constants. */
VF_INLINE void FN(delta_tile)(float *c, ptrdiff_t ld_c, const float *a, ptrdiff_t a_row, ptrdiff_t a_col,
                              const float *b, ptrdiff_t ld_b, int K, float alpha, int add, const int rows,
                              const int vectors) {
    vf sum[6][2] = {{{0}}};
    for (int k = 0; k < K; k++) {
        const vf b0 = vf_load(b + k * ld_b), b1 = vectors > 1 ? vf_load(b + k * ld_b + VF_WIDTH) : b0;
#pragma GCC unroll 6
        for (int i = 0; i < rows; i++) {
            const vf x = vf_set1(a[i * a_row + k * a_col]);
            sum[i][0] += x * b0;
            if (vectors > 1) sum[i][1] += x * b1;
        }
    }
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) {
            float *p = c + i * ld_c + j * VF_WIDTH;
            vf_store(p, add ? vf_load(p) + alpha * sum[i][j] : alpha * sum[i][j]);
        }
}

#define DELTA_TILE(rows, vectors) \
    FN(delta_tile)(c_i, ld_c, a_i, a_row, a_col, b, ld_b, K, alpha, add, rows, vectors)

/* The same for a strip of columns and any number of rows. */
VF_INLINE void FN(delta_strip)(float *c, ptrdiff_t ld_c, int rows, const float *a, ptrdiff_t a_row, ptrdiff_t a_col,
                               const float *b, ptrdiff_t ld_b, int K, float alpha, int add, const int vectors) {
    for (int i = 0; i < rows; i += 6) {
        float *c_i = c + i * ld_c;
        const float *a_i = a + i * a_row;
        switch (rows - i) {
            case 1: DELTA_TILE(1, vectors); break;
            case 2: DELTA_TILE(2, vectors); break;
            case 3: DELTA_TILE(3, vectors); break;
            case 4: DELTA_TILE(4, vectors); break;
            case 5: DELTA_TILE(5, vectors); break;
            default: DELTA_TILE(6, vectors);
        }
    }
}
#undef DELTA_TILE

/* c (rows, columns) = alpha a b, or += with `add`; a (rows, K) by its strides, b (K, columns); columns: of 16. */
static void FN(delta_product)(float *c, ptrdiff_t ld_c, int rows, int columns, const float *a, ptrdiff_t a_row,
                              ptrdiff_t a_col, const float *b, ptrdiff_t ld_b, int K, float alpha, int add) {
    int j = 0;
    for (; j + 2 * VF_WIDTH <= columns; j += 2 * VF_WIDTH)
        FN(delta_strip)(c + j, ld_c, rows, a, a_row, a_col, b + j, ld_b, K, alpha, add, 2);
    for (; j < columns; j += VF_WIDTH)
        FN(delta_strip)(c + j, ld_c, rows, a, a_row, a_col, b + j, ld_b, K, alpha, add, 1);
}

static inline int FN(delta_rows)(int n, int r) { return n - r < DELTA_BLOCK ? n - r : DELTA_BLOCK; }

/* c (n, n) = a b, its lower triangle and the blocks around the diagonal; a (n, K), b (K, n). */
static void FN(delta_lower)(float *c, int n, const float *a, ptrdiff_t ld_a, const float *b, int K) {
    for (int r = 0; r < n; r += DELTA_BLOCK)
        FN(delta_product)(c + r * DELTA_LD_N, DELTA_LD_N, FN(delta_rows)(n, r), r + DELTA_BLOCK, a + r * ld_a, ld_a, 1,
                          b, DELTA_LD_N, K, 1, 0);
}
/* y (n, columns) += L x for a lower triangular L; y and x have rows of ld floats. */
static void FN(delta_lower_times)(float *y, int n, int columns, const float *L, const float *x, ptrdiff_t ld) {
    for (int r = 0; r < n; r += DELTA_BLOCK)
        FN(delta_product)(y + r * ld, ld, FN(delta_rows)(n, r), columns, L + r * DELTA_LD_N, DELTA_LD_N, 1, x, ld,
                          r + FN(delta_rows)(n, r), 1, 1);
}
/* y (n, columns) += Lᵀ x */
static void FN(delta_upper_times)(float *y, int n, int columns, const float *L, const float *x, ptrdiff_t ld) {
    for (int r = 0; r < n; r += DELTA_BLOCK)
        FN(delta_product)(y + r * ld, ld, FN(delta_rows)(n, r), columns, L + r * DELTA_LD_N + r, 1, DELTA_LD_N,
                          x + r * ld, ld, n - r, 1, 1);
}

/* y += alpha x */
VF_INLINE void FN(delta_add)(float *y, const float *x, float alpha, int columns) {
    for (int j = 0; j < columns; j += VF_WIDTH) vf_store(y + j, vf_load(y + j) + alpha * vf_load(x + j));
}
VF_INLINE void FN(delta_scale)(float *y, const float *x, float alpha, int columns) {
    for (int j = 0; j < columns; j += VF_WIDTH) vf_store(y + j, alpha * vf_load(x + j));
}
VF_INLINE float FN(delta_dot)(const float *x, const float *y, int columns) {
    vf sum = {0};
    for (int j = 0; j < columns; j += VF_WIDTH) sum += vf_load(x + j) * vf_load(y + j);
    return vf_sum(sum);
}

/* x = (I + A)⁻¹ x, A strictly lower triangular: (n, columns), in place. */
static void FN(delta_solve)(float *x, int n, int columns, const float *A, ptrdiff_t ld) {
    for (int r = 0; r < n; r += DELTA_BLOCK) {
        const int end = r + FN(delta_rows)(n, r);
        if (r) FN(delta_product)(x + r * ld, ld, end - r, columns, A + r * DELTA_LD_N, DELTA_LD_N, 1, x, ld, r, -1, 1);
        for (int t = r + 1; t < end; t++)
            for (int i = r; i < t; i++) FN(delta_add)(x + t * ld, x + i * ld, -A[t * DELTA_LD_N + i], columns);
    }
}
/* x = (I + Aᵀ)⁻¹ x */
static void FN(delta_solve_transposed)(float *x, int n, int columns, const float *A, ptrdiff_t ld) {
    for (int r = (n - 1) / DELTA_BLOCK * DELTA_BLOCK; r >= 0; r -= DELTA_BLOCK) {
        const int end = r + FN(delta_rows)(n, r);
        if (end < n)
            FN(delta_product)(x + r * ld, ld, end - r, columns, A + end * DELTA_LD_N + r, 1, DELTA_LD_N, x + end * ld,
                              ld, n - end, -1, 1);
        for (int t = end - 2; t >= r; t--)
            for (int i = t + 1; i < end; i++) FN(delta_add)(x + t * ld, x + i * ld, -A[i * DELTA_LD_N + t], columns);
    }
}

/* to (columns, rows) = from (rows, columns), and zeros in what pads its rows. */
static void FN(delta_transpose)(float *to, ptrdiff_t ld_to, const float *from, ptrdiff_t ld_from, int rows,
                                int columns) {
    for (int j = 0; j < columns; j += 8)
        for (int i = 0; i < delta_padded(rows); i++)
            for (int l = j; l < j + 8; l++) to[l * ld_to + i] = i < rows ? from[i * ld_from + l] : 0;
}

/* n rows of a head, `stride` floats apart, into rows of ld floats whose padding is zero; and back. */
static void FN(delta_load)(float *to, ptrdiff_t ld, const float *from, ptrdiff_t stride, int n, int columns) {
    for (int t = 0; t < n; t++) {
        memcpy(to + t * ld, from + t * stride, columns * sizeof *to);
        memset(to + t * ld + columns, 0, (delta_padded(columns) - columns) * sizeof *to);
    }
}
static void FN(delta_store)(float *to, ptrdiff_t stride, const float *from, ptrdiff_t ld, int n, int columns, int add) {
    for (int t = 0; t < n; t++) {
        if (add)
            for (int j = 0; j < columns; j++) to[t * stride + j] += from[t * ld + j];
        else
            memcpy(to + t * stride, from + t * ld, columns * sizeof *to);
    }
}

/* What a chunk's decays come to. G_t = sum of g up to t; E_ti = exp(G_t - G_i) for i <= t, else 0; from_start_t =
 * exp(G_t); to_end_t = exp(G_n - G_t). Sums in float64: their differences count. */
typedef struct {
    float beta[DELTA_CHUNK], from_start[DELTA_CHUNK], to_end[DELTA_CHUNK], whole;
} FN(delta_decays);

static void FN(delta_decay)(FN(delta_decays) *d, float *E, const delta_net *a, ptrdiff_t row, int head, int n) {
    double G[DELTA_CHUNK];
    float difference[DELTA_CHUNK];
    double sum = 0;
    for (int t = 0; t < n; t++) {
        G[t] = sum += a->g[(row + t) * a->n_head_v + head];
        d->beta[t] = a->beta[(row + t) * a->n_head_v + head];
    }
    for (int t = 0; t < n; t++) {
        d->from_start[t] = expf(G[t]);
        d->to_end[t] = expf(sum - G[t]);
        for (int i = 0; i <= t; i++) difference[i] = G[t] - G[i];
        const int end = (t / DELTA_BLOCK + 1) * DELTA_BLOCK;
        for (int i = t + 1; i < end; i++) difference[i] = -1000;            /* exp: 0 */
        for (int i = 0; i < end; i += VF_WIDTH) vf_store(E + t * DELTA_LD_N + i, vf_exp(vf_load(difference + i)));
    }
    d->whole = d->from_start[n - 1];
}

/* W = the strictly lower part of E ∘ W, A = diag(beta) W. */
static void FN(delta_mix)(float *A, float *W, const float *E, const FN(delta_decays) *d, int n) {
    for (int t = 0; t < n; t++) {
        const int end = (t / DELTA_BLOCK + 1) * DELTA_BLOCK;
        for (int i = 0; i < end; i++) {
            const ptrdiff_t at = t * DELTA_LD_N + i;
            W[at] = i < t ? W[at] * E[at] : 0;
            A[at] = d->beta[t] * W[at];
        }
    }
}

/* y = E ∘ y */
static void FN(delta_weigh)(float *y, const float *E, int n) {
    for (int t = 0; t < n; t++)
        for (int i = 0; i < (t / DELTA_BLOCK + 1) * DELTA_BLOCK; i++) y[t * DELTA_LD_N + i] *= E[t * DELTA_LD_N + i];
}

/* X = V - diag(from_start) K S, in the place of V; U is scratch. Without a state X is V. */
static void FN(delta_errors)(float *V, float *U, const float *K, const float *S, const FN(delta_decays) *d,
                             const delta_net *a, int n, int has_state) {
    const ptrdiff_t ld_k = delta_ld(a->D), ld_v = delta_ld(a->DV);
    if (!has_state) return;
    FN(delta_product)(U, ld_v, n, delta_padded(a->DV), K, ld_k, 1, S, ld_v, a->D, 1, 0);
    for (int t = 0; t < n; t++) FN(delta_add)(V + t * ld_v, U + t * ld_v, -d->from_start[t], delta_padded(a->DV));
}

/* S = whole S + (diag(to_end) K)ᵀ Delta; K becomes diag(to_end) K. */
static void FN(delta_next_state)(float *S, float *K, const float *Delta, const FN(delta_decays) *d, const delta_net *a,
                                 int n) {
    const ptrdiff_t ld_k = delta_ld(a->D), ld_v = delta_ld(a->DV);
    const int columns = delta_padded(a->DV);
    for (int t = 0; t < n; t++) FN(delta_scale)(K + t * ld_k, K + t * ld_k, d->to_end[t], delta_padded(a->D));
    for (int i = 0; i < a->D; i++) FN(delta_scale)(S + i * ld_v, S + i * ld_v, d->whole, columns);
    FN(delta_product)(S, ld_v, a->D, columns, K, 1, ld_k, Delta, ld_v, n, 1, 1);
}

static void FN(delta_forward)(const delta_net *a, int sequence, int head, float *scratch) {
    const int D = a->D, DV = a->DV, columns = delta_padded(DV), head_k = head % a->n_head_k;
    const ptrdiff_t ld_k = delta_ld(D), ld_v = delta_ld(DV);
    const ptrdiff_t stride_k = (ptrdiff_t)a->n_head_k * D, stride_v = (ptrdiff_t)a->n_head_v * DV;
    float *K = scratch, *Q = K + DELTA_CHUNK * ld_k, *V = Q + DELTA_CHUNK * ld_k, *U = V + DELTA_CHUNK * ld_v;
    float *O = U + DELTA_CHUNK * ld_v, *A = O + DELTA_CHUNK * ld_v, *P = A + DELTA_CHUNK * DELTA_LD_N;
    float *E = P + DELTA_CHUNK * DELTA_LD_N, *KT = E + DELTA_CHUNK * DELTA_LD_N;
    float *S = KT + delta_padded(D) * DELTA_LD_N, *state = a->state ? a->state + (ptrdiff_t)head * D * DV : NULL;
    FN(delta_decays) d;
    if (state) FN(delta_load)(S, ld_v, state, DV, D, DV);
    else memset(S, 0, delta_state_size(a) * sizeof *S);
    for (ptrdiff_t row = a->begin[sequence]; row < a->begin[sequence + 1]; row += DELTA_CHUNK) {
        const int left = a->begin[sequence + 1] - row, n = left < DELTA_CHUNK ? left : DELTA_CHUNK;
        const int has_state = state || row > a->begin[sequence];
        FN(delta_load)(K, ld_k, a->k + row * stride_k + head_k * D, stride_k, n, D);
        FN(delta_load)(Q, ld_k, a->q + row * stride_k + head_k * D, stride_k, n, D);
        FN(delta_load)(V, ld_v, a->v + row * stride_v + head * DV, stride_v, n, DV);
        FN(delta_transpose)(KT, DELTA_LD_N, K, ld_k, n, delta_padded(D));
        FN(delta_decay)(&d, E, a, row, head, n);
        FN(delta_lower)(A, n, K, ld_k, KT, D);
        FN(delta_lower)(P, n, Q, ld_k, KT, D);
        FN(delta_mix)(A, A, E, &d, n);
        FN(delta_weigh)(P, E, n);
        FN(delta_errors)(V, U, K, S, &d, a, n, has_state);
        for (int t = 0; t < n; t++) FN(delta_scale)(V + t * ld_v, V + t * ld_v, d.beta[t], columns);
        FN(delta_solve)(V, n, columns, A, ld_v);
        if (has_state) FN(delta_product)(O, ld_v, n, columns, Q, ld_k, 1, S, ld_v, D, 1, 0);
        for (int t = 0; t < n; t++) {
            if (has_state) FN(delta_scale)(O + t * ld_v, O + t * ld_v, d.from_start[t], columns);
            else memset(O + t * ld_v, 0, columns * sizeof *O);
        }
        FN(delta_lower_times)(O, n, columns, P, V, ld_v);
        FN(delta_store)(a->o + row * stride_v + head * DV, stride_v, O, ld_v, n, DV, 0);
        if (state || left > n) FN(delta_next_state)(S, K, V, &d, a, n);
    }
    if (state) FN(delta_store)(state, DV, S, ld_v, D, DV, 0);
}

/* Where backward keeps what it works with. */
typedef struct {
    float *K, *Q, *Kend, *dQ, *dK;                  /* (chunk, D) */
    float *V, *Delta, *dDelta, *dO;                 /* (chunk, DV) */
    float *W, *A, *P, *E, *M;                       /* (chunk, chunk) */
    float *KT, *DeltaT, *ST, *dST, *dS;             /* (D, chunk), (DV, chunk), (DV, D) twice, (D, DV) */
    float *states, *errors;                         /* of each chunk, (D, DV) and (chunk, DV) */
} FN(delta_places);

static FN(delta_places) FN(delta_place)(const delta_net *a, float *p, int n_chunks) {
    const ptrdiff_t of_k = DELTA_CHUNK * delta_ld(a->D), of_v = DELTA_CHUNK * delta_ld(a->DV);
    const ptrdiff_t of_n = DELTA_CHUNK * DELTA_LD_N;
    FN(delta_places) s;
    s.K = p, s.Q = s.K + of_k, s.Kend = s.Q + of_k, s.dQ = s.Kend + of_k, s.dK = s.dQ + of_k, p = s.dK + of_k;
    s.V = p, s.Delta = s.V + of_v, s.dDelta = s.Delta + of_v, s.dO = s.dDelta + of_v, p = s.dO + of_v;
    s.W = p, s.A = s.W + of_n, s.P = s.A + of_n, s.E = s.P + of_n, s.M = s.E + of_n, p = s.M + of_n;
    s.KT = p, s.DeltaT = s.KT + delta_padded(a->D) * DELTA_LD_N, s.ST = s.DeltaT + delta_padded(a->DV) * DELTA_LD_N;
    s.dST = s.ST + delta_padded(a->DV) * delta_ld(a->D), s.dS = s.dST + delta_padded(a->DV) * delta_ld(a->D);
    s.states = s.dS + delta_state_size(a);
    s.errors = s.states + n_chunks * delta_state_size(a);
    return s;
}

/* K, W and A of a chunk. */
static void FN(delta_prepare)(const FN(delta_places) *s, FN(delta_decays) *d, const delta_net *a, ptrdiff_t row,
                              int head, int n) {
    const ptrdiff_t ld_k = delta_ld(a->D), stride_k = (ptrdiff_t)a->n_head_k * a->D;
    FN(delta_load)(s->K, ld_k, a->k + row * stride_k + head % a->n_head_k * a->D, stride_k, n, a->D);
    FN(delta_transpose)(s->KT, DELTA_LD_N, s->K, ld_k, n, delta_padded(a->D));
    FN(delta_decay)(d, s->E, a, row, head, n);
    FN(delta_lower)(s->W, n, s->K, ld_k, s->KT, a->D);
    FN(delta_mix)(s->A, s->W, s->E, d, n);
}

/* Delta = (I + A)⁻¹ diag(beta) X */
static void FN(delta_deltas)(float *Delta, const float *X, const float *A, const FN(delta_decays) *d, const delta_net *a,
                             int n) {
    const ptrdiff_t ld_v = delta_ld(a->DV);
    for (int t = 0; t < n; t++) FN(delta_scale)(Delta + t * ld_v, X + t * ld_v, d->beta[t], delta_padded(a->DV));
    FN(delta_solve)(Delta, n, delta_padded(a->DV), A, ld_v);
}

/* Forward once more, for the state before each chunk and its errors X. */
static void FN(delta_states)(const FN(delta_places) *s, const delta_net *a, int sequence, int head) {
    const ptrdiff_t ld_v = delta_ld(a->DV), stride_v = (ptrdiff_t)a->n_head_v * a->DV, size = delta_state_size(a);
    const int begin = a->begin[sequence], T = a->begin[sequence + 1] - begin, n_chunks = delta_chunks(T);
    FN(delta_decays) d;
    memset(s->states, 0, size * sizeof *s->states);
    for (int chunk = 0; chunk < n_chunks; chunk++) {
        const int first = chunk * DELTA_CHUNK, n = T - first < DELTA_CHUNK ? T - first : DELTA_CHUNK;
        const ptrdiff_t row = begin + first;
        float *X = s->errors + first * ld_v, *S = s->states + chunk * size;
        FN(delta_prepare)(s, &d, a, row, head, n);
        FN(delta_load)(X, ld_v, a->v + row * stride_v + head * a->DV, stride_v, n, a->DV);
        FN(delta_errors)(X, s->dDelta, s->K, S, &d, a, n, chunk > 0);
        if (chunk + 1 == n_chunks) break;
        FN(delta_deltas)(s->Delta, X, s->A, &d, a, n);
        memcpy(S + size, S, size * sizeof *S);
        FN(delta_next_state)(S + size, s->K, s->Delta, &d, a, n);
    }
}

/* M, the gradient of a product whose lower part was weighed by E, becomes that of the product itself. `weighed` is what
 * came of it, E_ti having risen with G_t and fallen with G_i. scale: of each row, or NULL. */
static void FN(delta_weigh_backward)(double *dG, float *M, const float *weighed, const float *E, const float *scale,
                                     int n, int strictly) {
    for (int t = 0; t < n; t++) {
        double sum = 0;
        for (int i = 0; i < (t / DELTA_BLOCK + 1) * DELTA_BLOCK; i++) {
            const ptrdiff_t at = t * DELTA_LD_N + i;
            if (i > t - strictly) {
                M[at] = 0;
                continue;
            }
            const float m = scale ? M[at] * scale[t] : M[at], change = m * weighed[at];
            sum += change;
            dG[i] -= change;
            M[at] = m * E[at];
        }
        dG[t] += sum;
    }
}

/* forward: O = diag(from_start) Q S + P Delta, P = E ∘ Q Kᵀ. Sets dQ, dK, and dDelta's share; dO becomes
 * diag(from_start) dO. */
static void FN(delta_output_backward)(const FN(delta_places) *s, double *dG, const FN(delta_decays) *d,
                                      const delta_net *a, int n) {
    const ptrdiff_t ld_k = delta_ld(a->D), ld_v = delta_ld(a->DV);
    const int of_k = delta_padded(a->D), of_v = delta_padded(a->DV);
    memset(s->dDelta, 0, n * ld_v * sizeof *s->dDelta);
    FN(delta_upper_times)(s->dDelta, n, of_v, s->P, s->dO, ld_v);
    FN(delta_lower)(s->M, n, s->dO, ld_v, s->DeltaT, a->DV);
    FN(delta_weigh_backward)(dG, s->M, s->P, s->E, NULL, n, 0);
    for (int t = 0; t < n; t++) FN(delta_scale)(s->dO + t * ld_v, s->dO + t * ld_v, d->from_start[t], of_v);
    FN(delta_product)(s->dQ, ld_k, n, of_k, s->dO, ld_v, 1, s->ST, ld_k, a->DV, 1, 0);
    for (int t = 0; t < n; t++) dG[t] += FN(delta_dot)(s->dQ + t * ld_k, s->Q + t * ld_k, of_k);
    FN(delta_lower_times)(s->dQ, n, of_k, s->M, s->K, ld_k);
    memset(s->dK, 0, n * ld_k * sizeof *s->dK);
    FN(delta_upper_times)(s->dK, n, of_k, s->M, s->Q, ld_k);
}

/* forward: S' = whole S + Kendᵀ Delta, Kend = diag(to_end) K. Adds to dK and dDelta. */
static void FN(delta_state_backward)(const FN(delta_places) *s, double *dG, const FN(delta_decays) *d, const float *S,
                                     const delta_net *a, int n) {
    const ptrdiff_t ld_k = delta_ld(a->D), ld_v = delta_ld(a->DV);
    const int of_k = delta_padded(a->D), of_v = delta_padded(a->DV);
    for (int t = 0; t < n; t++) FN(delta_scale)(s->Kend + t * ld_k, s->K + t * ld_k, d->to_end[t], of_k);
    FN(delta_product)(s->dDelta, ld_v, n, of_v, s->Kend, ld_k, 1, s->dS, ld_v, a->D, 1, 1);
    FN(delta_transpose)(s->dST, ld_k, s->dS, ld_v, a->D, of_v);
    double whole = 0;
    for (int i = 0; i < a->D; i++) whole += FN(delta_dot)(S + i * ld_v, s->dS + i * ld_v, of_v);
    dG[n - 1] += d->whole * whole;
    FN(delta_product)(s->Kend, ld_k, n, of_k, s->Delta, ld_v, 1, s->dST, ld_k, a->DV, 1, 0);      /* now its gradient */
    for (int t = 0; t < n; t++) {
        const float change = d->to_end[t] * FN(delta_dot)(s->Kend + t * ld_k, s->K + t * ld_k, of_k);
        dG[n - 1] += change;
        dG[t] -= change;
        FN(delta_add)(s->dK + t * ld_k, s->Kend + t * ld_k, d->to_end[t], of_k);
    }
}

/* forward: Delta = (I + A)⁻¹ diag(beta) X, A = diag(beta) W, W = E ∘ K Kᵀ, X = V - diag(from_start) K S. dDelta becomes
 * dV, and V's memory diag(from_start) dV. */
static void FN(delta_solve_backward)(const FN(delta_places) *s, double *dG, float *dbeta, const float *X,
                                     const FN(delta_decays) *d, const delta_net *a, int n) {
    const ptrdiff_t ld_k = delta_ld(a->D), ld_v = delta_ld(a->DV);
    const int of_k = delta_padded(a->D), of_v = delta_padded(a->DV);
    float minus_beta[DELTA_CHUNK];
    FN(delta_solve_transposed)(s->dDelta, n, of_v, s->A, ld_v);
    FN(delta_lower)(s->M, n, s->dDelta, ld_v, s->DeltaT, a->DV);                /* -dA */
    for (int t = 0; t < n; t++) {
        float sum = FN(delta_dot)(s->dDelta + t * ld_v, X + t * ld_v, of_v);
        for (int i = 0; i < t; i++) sum -= s->M[t * DELTA_LD_N + i] * s->W[t * DELTA_LD_N + i];
        dbeta[t] = sum;
        minus_beta[t] = -d->beta[t];
    }
    FN(delta_weigh_backward)(dG, s->M, s->W, s->E, minus_beta, n, 1);
    FN(delta_lower_times)(s->dK, n, of_k, s->M, s->K, ld_k);
    FN(delta_upper_times)(s->dK, n, of_k, s->M, s->K, ld_k);
    for (int t = 0; t < n; t++) {
        float *dV = s->dDelta + t * ld_v, *V = s->V + t * ld_v;
        FN(delta_scale)(dV, dV, d->beta[t], of_v);
        dG[t] -= FN(delta_dot)(dV, V, of_v) - FN(delta_dot)(dV, X + t * ld_v, of_v);
        FN(delta_scale)(V, dV, d->from_start[t], of_v);
    }
    FN(delta_product)(s->dK, ld_k, n, of_k, s->V, ld_v, 1, s->ST, ld_k, a->DV, -1, 1);
}

/* One chunk backward: dS, the gradient of the state behind it, becomes that of the state before it. */
static void FN(delta_chunk_backward)(const FN(delta_places) *s, const delta_net *a, int head, ptrdiff_t row, int n,
                                     const float *S, const float *X, int add) {
    const int D = a->D, DV = a->DV, head_k = head % a->n_head_k;
    const ptrdiff_t ld_k = delta_ld(D), ld_v = delta_ld(DV);
    const ptrdiff_t stride_k = (ptrdiff_t)a->n_head_k * D, stride_v = (ptrdiff_t)a->n_head_v * DV;
    FN(delta_decays) d;
    double dG[DELTA_CHUNK] = {0};
    float dbeta[DELTA_CHUNK];
    FN(delta_prepare)(s, &d, a, row, head, n);
    FN(delta_load)(s->Q, ld_k, a->q + row * stride_k + head_k * D, stride_k, n, D);
    FN(delta_load)(s->V, ld_v, a->v + row * stride_v + head * DV, stride_v, n, DV);
    FN(delta_load)(s->dO, ld_v, a->d_o + row * stride_v + head * DV, stride_v, n, DV);
    FN(delta_deltas)(s->Delta, X, s->A, &d, a, n);
    FN(delta_transpose)(s->DeltaT, DELTA_LD_N, s->Delta, ld_v, n, delta_padded(DV));
    FN(delta_transpose)(s->ST, ld_k, S, ld_v, D, delta_padded(DV));
    FN(delta_lower)(s->P, n, s->Q, ld_k, s->KT, D);
    FN(delta_weigh)(s->P, s->E, n);
    FN(delta_output_backward)(s, dG, &d, a, n);
    FN(delta_state_backward)(s, dG, &d, S, a, n);
    FN(delta_solve_backward)(s, dG, dbeta, X, &d, a, n);
    for (int i = 0; i < D; i++) FN(delta_scale)(s->dS + i * ld_v, s->dS + i * ld_v, d.whole, delta_padded(DV));
    FN(delta_product)(s->dS, ld_v, D, delta_padded(DV), s->Q, 1, ld_k, s->dO, ld_v, n, 1, 1);
    FN(delta_product)(s->dS, ld_v, D, delta_padded(DV), s->K, 1, ld_k, s->V, ld_v, n, -1, 1);

    FN(delta_store)(a->dq + row * stride_k + head_k * D, stride_k, s->dQ, ld_k, n, D, add);
    FN(delta_store)(a->dk + row * stride_k + head_k * D, stride_k, s->dK, ld_k, n, D, add);
    FN(delta_store)(a->dv + row * stride_v + head * DV, stride_v, s->dDelta, ld_v, n, DV, 0);
    double sum = 0;
    for (int t = n; t-- > 0;) {
        a->dg[(row + t) * a->n_head_v + head] = sum += dG[t];
        a->dbeta[(row + t) * a->n_head_v + head] = dbeta[t];
    }
}

/* All heads of values that share a head of keys, one after the other: dq and dk are their sums. */
static void FN(delta_backward)(const delta_net *a, int sequence, int head_k, float *scratch) {
    const int begin = a->begin[sequence], T = a->begin[sequence + 1] - begin, n_chunks = delta_chunks(T);
    const FN(delta_places) s = FN(delta_place)(a, scratch, n_chunks);
    for (int head = head_k; head < a->n_head_v; head += a->n_head_k) {
        FN(delta_states)(&s, a, sequence, head);
        memset(s.dS, 0, delta_state_size(a) * sizeof *s.dS);
        for (int chunk = n_chunks; chunk-- > 0;) {
            const int first = chunk * DELTA_CHUNK, n = T - first < DELTA_CHUNK ? T - first : DELTA_CHUNK;
            FN(delta_chunk_backward)(&s, a, head, begin + first, n, s.states + chunk * delta_state_size(a),
                                     s.errors + first * delta_ld(a->DV), head != head_k);
        }
    }
}
