/* Activations of one row, a(z), and gated units, h = a(gate) up. `kind` is a compile-time constant.
 * SiLU and GELU are a(z) = z sigmoid(s(z)). SiLU: s(z) = z. GELU in its tanh form:
 * s(z) = 2 sqrt(2 / pi) (z + 0.044715 z^3), since (1 + tanh(u)) / 2 = sigmoid(2 u). Squared ReLU: a(z) = max(z, 0)^2.
 * The clamped unit of gpt-oss: s(z) = 1.702 z of z = min(gate, 7), and clamp(up, -7, 7) + 1 in the place of up.
 * Sigmoid: a(z) = sigmoid(z). */

#define CLAMP 7.0f
VF_INLINE vf FN(clamped_gate)(int kind, vf z) {
    if (kind != ACTIVATION_CLAMPED_SILU) return z;
    return vf_min(vf_set1(CLAMP), z);
}
VF_INLINE vf FN(clamped_up)(int kind, vf u) {
    if (kind != ACTIVATION_CLAMPED_SILU) return u;
    return 1 + vf_max(vf_set1(-CLAMP), vf_min(vf_set1(CLAMP), u));
}
/* The gradients d behind the clamps: none where they hold. */
VF_INLINE vf FN(behind_gate_clamp)(int kind, vf d, vf z) {
    if (kind != ACTIVATION_CLAMPED_SILU) return d;
    return vf_select(z > CLAMP, vf_set1(0), d);
}
VF_INLINE vf FN(behind_up_clamp)(int kind, vf d, vf u) {
    if (kind != ACTIVATION_CLAMPED_SILU) return d;
    return vf_select((u > CLAMP) | (u < -CLAMP), vf_set1(0), d);
}

VF_INLINE vf FN(argument)(int kind, vf z) {
    if (kind == ACTIVATION_GELU) return 1.5957691f * (z + 0.044715f * z * z * z);
    if (kind == ACTIVATION_CLAMPED_SILU) return 1.702f * z;
    return z;
}
VF_INLINE vf FN(argument_slope)(int kind, vf z) {
    if (kind == ACTIVATION_GELU) return 1.5957691f * (1 + 0.134145f * z * z);
    return vf_set1(kind == ACTIVATION_CLAMPED_SILU ? 1.702f : 1);
}
VF_INLINE vf FN(sigmoid)(vf z) { return 1 / (1 + vf_exp(-z)); }

/* x times the activation of z. */
VF_INLINE vf FN(times_activation)(int kind, vf x, vf z) {
    const vf positive = vf_max(vf_set1(0), z);
    if (kind == ACTIVATION_RELU_SQUARED) return x * positive * positive;
    if (kind == ACTIVATION_SIGMOID) return x * FN(sigmoid)(z);
    return x * z * FN(sigmoid)(FN(argument)(kind, z));
}

/* x times the slope of the activation at z.  forward: a = z sigmoid(s(z)), max(z, 0)^2 or sigmoid(z) */
VF_INLINE vf FN(times_slope)(int kind, vf x, vf z) {
    if (kind == ACTIVATION_RELU_SQUARED) return x * 2 * vf_max(vf_set1(0), z);
    const vf sigmoid = FN(sigmoid)(FN(argument)(kind, z));
    if (kind == ACTIVATION_SIGMOID) return x * sigmoid * (1 - sigmoid);
    return x * sigmoid * (1 + z * (1 - sigmoid) * FN(argument_slope)(kind, z));
}

VF_INLINE vf FN(gated)(int kind, vf z, vf u) {
    return FN(times_activation)(kind, vf_set1(1), FN(clamped_gate)(kind, z)) * FN(clamped_up)(kind, u);
}
VF_INLINE vf FN(dgate)(int kind, vf d, vf z, vf u) {
    const vf dz = FN(times_slope)(kind, d * FN(clamped_up)(kind, u), FN(clamped_gate)(kind, z));
    return FN(behind_gate_clamp)(kind, dz, z);
}
VF_INLINE vf FN(dup)(int kind, vf d, vf z, vf u) {
    return FN(behind_up_clamp)(kind, FN(times_activation)(kind, d, FN(clamped_gate)(kind, z)), u);
}

/* h = a(gate) up. h may be gate or up. */
VF_INLINE void FN(gated_row)(int kind, float *h, const float *gate, const float *up, ptrdiff_t F) {
    ptrdiff_t i = 0;
    for (; i + VF_WIDTH <= F; i += VF_WIDTH)
        vf_store(h + i, FN(gated)(kind, vf_load(gate + i), vf_load(up + i)));
    if (i < F)
        vf_store_part(h + i, FN(gated)(kind, vf_load_part(gate + i, F - i), vf_load_part(up + i, F - i)), F - i);
}

/* forward: h = a(gate) up. The results may take the place of gate, up or dh: each value is read before it is written. */
VF_INLINE void FN(gated_backward_row)(int kind, float *dgate, float *dup, const float *dh, const float *gate,
                                      const float *up, ptrdiff_t F) {
    ptrdiff_t i = 0;
    for (; i + VF_WIDTH <= F; i += VF_WIDTH) {
        const vf d = vf_load(dh + i), z = vf_load(gate + i), u = vf_load(up + i);
        vf_store(dgate + i, FN(dgate)(kind, d, z, u));
        vf_store(dup + i, FN(dup)(kind, d, z, u));
    }
    if (i < F) {
        const int n = F - i;
        const vf d = vf_load_part(dh + i, n), z = vf_load_part(gate + i, n), u = vf_load_part(up + i, n);
        vf_store_part(dgate + i, FN(dgate)(kind, d, z, u), n);
        vf_store_part(dup + i, FN(dup)(kind, d, z, u), n);
    }
}

/* y = a(x). y may be x. */
VF_INLINE void FN(activation_row)(int kind, float *y, const float *x, ptrdiff_t F) {
    ptrdiff_t i = 0;
    for (; i + VF_WIDTH <= F; i += VF_WIDTH)
        vf_store(y + i, FN(times_activation)(kind, vf_set1(1), vf_load(x + i)));
    if (i < F) vf_store_part(y + i, FN(times_activation)(kind, vf_set1(1), vf_load_part(x + i, F - i)), F - i);
}

/* forward: y = a(x). dx may be dy or x. */
VF_INLINE void FN(activation_backward_row)(int kind, float *dx, const float *dy, const float *x, ptrdiff_t F) {
    ptrdiff_t i = 0;
    for (; i + VF_WIDTH <= F; i += VF_WIDTH)
        vf_store(dx + i, FN(times_slope)(kind, vf_load(dy + i), vf_load(x + i)));
    if (i < F) {
        const int n = F - i;
        vf_store_part(dx + i, FN(times_slope)(kind, vf_load_part(dy + i, n), vf_load_part(x + i, n)), n);
    }
}

#define GATED_UNIT(name, kind) \
    static void FN(name##_row)(float *h, const float *gate, const float *up, ptrdiff_t F) { \
        FN(gated_row)(kind, h, gate, up, F); \
    } \
    static void FN(name##_backward_row)(float *dgate, float *dup, const float *dh, const float *gate, const float *up, \
                                        ptrdiff_t F) { \
        FN(gated_backward_row)(kind, dgate, dup, dh, gate, up, F); \
    }
#define UNGATED_UNIT(name, kind) \
    static void FN(name##_row)(float *y, const float *x, ptrdiff_t F) { FN(activation_row)(kind, y, x, F); } \
    static void FN(name##_backward_row)(float *dx, const float *dy, const float *x, ptrdiff_t F) { \
        FN(activation_backward_row)(kind, dx, dy, x, F); \
    }

GATED_UNIT(swiglu, ACTIVATION_SILU)
GATED_UNIT(geglu, ACTIVATION_GELU)
GATED_UNIT(reglu2, ACTIVATION_RELU_SQUARED)
GATED_UNIT(clamped_swiglu, ACTIVATION_CLAMPED_SILU)
GATED_UNIT(glu, ACTIVATION_SIGMOID)
UNGATED_UNIT(gelu, ACTIVATION_GELU)
UNGATED_UNIT(relu_squared, ACTIVATION_RELU_SQUARED)

#undef CLAMP
#undef GATED_UNIT
#undef UNGATED_UNIT
