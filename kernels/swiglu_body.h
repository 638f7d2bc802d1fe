/* Gated units of one row: h = act(gate) * up, where act(z) = z * sigmoid(s(z)).
 * SiLU: s(z) = z. GELU in its tanh form: s(z) = 2 sqrt(2 / pi) (z + 0.044715 z^3), since (1 + tanh(u)) / 2 =
 * sigmoid(2 u). */

VF_INLINE vf FN(argument)(vf z, int gelu) {
    if (gelu) return 1.5957691f * (z + 0.044715f * z * z * z);
    return z;
}
VF_INLINE vf FN(argument_slope)(vf z, int gelu) {
    if (gelu) return 1.5957691f * (1 + 0.134145f * z * z);
    return vf_set1(1);
}
VF_INLINE vf FN(sigmoid)(vf z) { return 1 / (1 + vf_exp(-z)); }

VF_INLINE vf FN(gated)(vf gate, vf up, int gelu) { return gate * FN(sigmoid)(FN(argument)(gate, gelu)) * up; }

VF_INLINE void FN(gated_row)(float *h, const float *gate, const float *up, ptrdiff_t F, int gelu) {
    ptrdiff_t i = 0;
    for (; i + VF_WIDTH <= F; i += VF_WIDTH) vf_store(h + i, FN(gated)(vf_load(gate + i), vf_load(up + i), gelu));
    if (i < F) vf_store_part(h + i, FN(gated)(vf_load_part(gate + i, F - i), vf_load_part(up + i, F - i), gelu), F - i);
}

/* forward: h = z * sigmoid(s(z)) * up, so dh/dz = sigmoid * (1 + z * (1 - sigmoid) * s'(z)) * up. */
VF_INLINE void FN(gated_gradients)(vf *dgate, vf *dup, vf dh, vf z, vf up, int gelu) {
    const vf sigmoid = FN(sigmoid)(FN(argument)(z, gelu));
    *dgate += dh * up * sigmoid * (1 + z * (1 - sigmoid) * FN(argument_slope)(z, gelu));
    *dup += dh * z * sigmoid;
}

/* Adds to dgate and dup; or overwrites them, which may then be gate, up or dh: each value is read before it is
 * written. */
VF_INLINE void FN(gated_backward_row)(float *dgate, float *dup, const float *dh, const float *gate, const float *up,
                                      ptrdiff_t F, int gelu, int accumulate) {
    ptrdiff_t i = 0;
    for (; i + VF_WIDTH <= F; i += VF_WIDTH) {
        vf dg = vf_set1(0), du = vf_set1(0);
        if (accumulate) dg = vf_load(dgate + i), du = vf_load(dup + i);
        FN(gated_gradients)(&dg, &du, vf_load(dh + i), vf_load(gate + i), vf_load(up + i), gelu);
        vf_store(dgate + i, dg);
        vf_store(dup + i, du);
    }
    if (i < F) {
        const int n = F - i;
        vf dg = vf_set1(0), du = vf_set1(0);
        if (accumulate) dg = vf_load_part(dgate + i, n), du = vf_load_part(dup + i, n);
        const vf h = vf_load_part(dh + i, n), z = vf_load_part(gate + i, n), u = vf_load_part(up + i, n);
        FN(gated_gradients)(&dg, &du, h, z, u, gelu);
        vf_store_part(dgate + i, dg, n);
        vf_store_part(dup + i, du, n);
    }
}

static void FN(swiglu_row)(float *h, const float *gate, const float *up, ptrdiff_t F) {
    FN(gated_row)(h, gate, up, F, 0);
}
static void FN(geglu_row)(float *h, const float *gate, const float *up, ptrdiff_t F) {
    FN(gated_row)(h, gate, up, F, 1);
}

static void FN(swiglu_backward_row)(float *dgate, float *dup, const float *dh, const float *gate, const float *up,
                                    ptrdiff_t F) {
    FN(gated_backward_row)(dgate, dup, dh, gate, up, F, 0, 1);
}
static void FN(swiglu_overwrite_row)(float *dgate, float *dup, const float *dh, const float *gate, const float *up,
                                     ptrdiff_t F) {
    FN(gated_backward_row)(dgate, dup, dh, gate, up, F, 0, 0);
}
static void FN(geglu_backward_row)(float *dgate, float *dup, const float *dh, const float *gate, const float *up,
                                   ptrdiff_t F) {
    FN(gated_backward_row)(dgate, dup, dh, gate, up, F, 1, 1);
}
static void FN(geglu_overwrite_row)(float *dgate, float *dup, const float *dh, const float *gate, const float *up,
                                    ptrdiff_t F) {
    FN(gated_backward_row)(dgate, dup, dh, gate, up, F, 1, 0);
}
