/* Forward for a sequence with a single query: a token after its cache. Memory bandwidth decides, so K and V are read
 * where they lie, a few keys for all heads at a time: what one head reads of a row is next to what the following head
 * reads. Here the vector lanes are keys, or values of a row; the softmax is online all the same.
 */

/* q . k of VF_WIDTH keys, one a lane: vectors of products, transposed to be summed. */
VF_INLINE vf FN(dots)(const float *q, const float *k, ptrdiff_t k_stride, int d) {
    vf sums[VF_WIDTH];
#pragma GCC unroll 16
    for (int r = 0; r < VF_WIDTH; r++) sums[r] = vf_set1(0);
    int i = 0;
    for (; i + VF_WIDTH <= d; i += VF_WIDTH)
#pragma GCC unroll 16
        for (int r = 0; r < VF_WIDTH; r++) sums[r] += vf_load(q + i) * vf_load(k + r * k_stride + i);
    vf_transpose(sums);
#pragma GCC unroll 4
    for (int n = VF_WIDTH / 2; n; n /= 2)
#pragma GCC unroll 8
        for (int r = 0; r < n; r++) sums[r] += sums[r + n];
    for (; i < d; i++)
        for (int r = 0; r < VF_WIDTH; r++) sums[0][r] += q[i] * k[r * k_stride + i];
    return sums[0];
}

/* o = decay o + sum_j p_j v_j, n_vectors (a constant, at most 4) wide. */
VF_INLINE void FN(weighted_sum)(int n_vectors, float *o, float decay, const float *p, const float *v,
                                ptrdiff_t v_stride, int n_keys) {
    vf sums[4];
#pragma GCC unroll 4
    for (int i = 0; i < n_vectors; i++) sums[i] = decay * vf_load(o + i * VF_WIDTH);
    for (int j = 0; j < n_keys; j++)
#pragma GCC unroll 4
        for (int i = 0; i < n_vectors; i++) sums[i] += p[j] * vf_load(v + j * v_stride + i * VF_WIDTH);
#pragma GCC unroll 4
    for (int i = 0; i < n_vectors; i++) vf_store(o + i * VF_WIDTH, sums[i]);
}

#define QUERY_KEYS 32           /* keys at a time: few enough that the next head of the group finds them in cache */

/* Query heads head .. head_end of sequence seq. */
static void FN(attention_forward_query)(const attention *a, int seq, int head, int head_end, float *scratch) {
    const int d = a->head_size, dv = a->value_size, key_end = attention_n_keys(a, seq);
    const ptrdiff_t k_stride = (ptrdiff_t)a->n_head_kv * d, v_stride = (ptrdiff_t)a->n_head_kv * dv;
    const ptrdiff_t row = (ptrdiff_t)a->q_begin[seq] * a->n_head;
    float *maximum = scratch, *sum = scratch + a->n_head;
    for (int h = head; h < head_end; h++) FN(begin_softmax)(a, h, maximum + h, sum + h);
    memset(a->o_out + (row + head) * dv, 0, sizeof(float) * (head_end - head) * dv);

    for (int key = key_end > a->window ? key_end - a->window : 0; key < key_end; key += QUERY_KEYS)
        for (int h = head; h < head_end; h++) {
            const int n_keys = MIN(QUERY_KEYS, key_end - key);
            const ptrdiff_t index = attention_key(a, seq, h / a->group, key);
            const float *q = a->q + (row + h) * d, *k = a->k + index * d, *v = a->v + index * dv;
            float *o = a->o_out + (row + h) * dv, p[QUERY_KEYS];
            vf maxima = vf_set1(maximum[h]);
            for (int j = 0; j < n_keys; j += VF_WIDTH) {
                vf s = vf_set1(-INFINITY);
                if (n_keys - j >= VF_WIDTH) s = FN(dots)(q, k + j * k_stride, k_stride, d);
                else for (int r = 0; r < n_keys - j; r++) s[r] = FN(dot)(q, k + (j + r) * k_stride, d);
                s *= a->scale * (float)M_LOG2E;
                if (a->soft_cap > 0) {
                    s = vf_soft_cap(s, a->soft_cap * (float)M_LOG2E);
                    for (int r = n_keys - j; r < VF_WIDTH; r++) s[r] = -INFINITY;
                }
                vf_store(p + j, s);
                maxima = vf_max(maxima, s);
            }
            const float now = vf_maximum(maxima), decay = FN(exp2)(vf_set1(maximum[h] - now))[0];
            vf total = vf_set1(0);
            for (int j = 0; j < n_keys; j += VF_WIDTH) {
                const vf p_j = FN(exp2)(vf_load(p + j) - now);
                vf_store(p + j, p_j);
                total += p_j;
            }
            maximum[h] = now;
            sum[h] = decay * sum[h] + vf_sum(total);
            int i = 0;
            for (; i + 4 * VF_WIDTH <= dv; i += 4 * VF_WIDTH)
                FN(weighted_sum)(4, o + i, decay, p, v + i, v_stride, n_keys);
            for (; i + VF_WIDTH <= dv; i += VF_WIDTH) FN(weighted_sum)(1, o + i, decay, p, v + i, v_stride, n_keys);
            for (; i < dv; i++) {
                o[i] *= decay;
                for (int j = 0; j < n_keys; j++) o[i] += p[j] * v[j * v_stride + i];
            }
        }
    for (int h = head; h < head_end; h++) {
        float *o = a->o_out + (row + h) * dv;
        FN(scale_row)(o, o, 1 / sum[h], dv);
        a->lse_out[row + h] = maximum[h] * (float)M_LN2 + logf(sum[h]);
    }
}
