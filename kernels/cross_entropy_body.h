/* Cross entropy of one row of logits. Each function reads it from memory once; later passes find it in cache. */

#define CROSS_ENTROPY_BLOCK 2048

/* y = cap tanh(x / cap). y may be x. */
VF_INLINE void FN(cap_logits)(float *y, const float *x, ptrdiff_t n, float cap) {
    ptrdiff_t i = 0;
    for (; i + VF_WIDTH <= n; i += VF_WIDTH) vf_store(y + i, vf_soft_cap(vf_load(x + i), cap));
    if (i < n) vf_store_part(y + i, vf_soft_cap(vf_load_part(x + i, n - i), cap), n - i);
}

/* max = max_v x[v] and sum = sum_v exp(x[v] - max), in one pass: block by block, the sum being rescaled when the
 * maximum grows. A block's sum is taken in float32 over VF_WIDTH lanes, the sum over blocks in float64. With a cap
 * (0: none), x[v] is capped first. Both go on from what columns before these have given: -FLT_MAX and 0 at first. */
static void FN(softmax_sum)(float *max, double *sum, const float *x, ptrdiff_t V, float cap) {
    float capped[CROSS_ENTROPY_BLOCK];
    for (ptrdiff_t begin = 0; begin < V; begin += CROSS_ENTROPY_BLOCK) {
        const ptrdiff_t n = begin + CROSS_ENTROPY_BLOCK < V ? CROSS_ENTROPY_BLOCK : V - begin;
        const int tail = n % VF_WIDTH;
        const float *block = x + begin;
        ptrdiff_t i;
        if (cap > 0) {
            FN(cap_logits)(capped, block, n, cap);
            block = capped;
        }

        vf highest = vf_load_part_else(block + n - tail, tail, -INFINITY);
        for (i = 0; i + VF_WIDTH <= n; i += VF_WIDTH) highest = vf_max(highest, vf_load(block + i));
        const float block_max = vf_maximum(highest);
        if (block_max > *max) {
            *sum *= exp((double)*max - block_max);
            *max = block_max;
        }

        vf block_sum = vf_exp(vf_load_part_else(block + n - tail, tail, -INFINITY) - *max);
        for (i = 0; i + VF_WIDTH <= n; i += VF_WIDTH) block_sum += vf_exp(vf_load(block + i) - *max);
        *sum += vf_sum(block_sum);
    }
}

/* loss = -ln(p (1 - floor) + floor), p = exp(x_target - max) / sum. */
VF_INLINE float FN(loss_of)(float x_target, float max, double sum, double floor) {
    const double log_p = (double)x_target - max - log(sum);
    return floor > 0 ? -log(exp(log_p) * (1 - floor) + floor) : -log_p;
}

/* The gradient takes the place of the logits x, which are capped where there is a cap:
 * (p[v] (1 - floor) + floor - [v = target]) dloss, times 1 - (x[v] / cap)^2 for what the cap did. The target may be
 * among other columns than these V. */
VF_INLINE void FN(logits_gradient)(float *x, float max, double sum, ptrdiff_t V, int target, float dloss, double floor,
                                   float cap) {
    const float scale = dloss / sum * (1 - floor), least = dloss * floor;
    const int is_here = target >= 0 && target < V;
    const float slope = is_here && cap > 0 ? 1 - x[target] / cap * (x[target] / cap) : 1;
    ptrdiff_t i = 0;
    for (; i + VF_WIDTH <= V; i += VF_WIDTH) {
        const vf y = vf_load(x + i);
        vf gradient = vf_exp(y - max) * scale + least;
        if (cap > 0) gradient *= 1 - y / cap * (y / cap);
        vf_store(x + i, gradient);
    }
    if (i < V) {
        const int n = V - i;
        const vf y = vf_load_part(x + i, n);
        vf gradient = vf_exp(y - max) * scale + least;
        if (cap > 0) gradient *= 1 - y / cap * (y / cap);
        vf_store_part(x + i, gradient, n);
    }
    if (is_here) x[target] -= dloss * slope;
}

static float FN(cross_entropy_row)(const float *x, ptrdiff_t V, int target, double floor, float cap) {
    float max = -FLT_MAX, x_target = target < 0 ? 0 : x[target];
    double sum = 0;
    if (target < 0) return 0;
    if (cap > 0) FN(cap_logits)(&x_target, &x_target, 1, cap);
    FN(softmax_sum)(&max, &sum, x, V, cap);
    return FN(loss_of)(x_target, max, sum, floor);
}

/* Loss and gradient at once; the gradient takes the logits' place. */
static float FN(cross_entropy_forward_backward_row)(float *x, ptrdiff_t V, int target, float dloss, double floor,
                                                    float cap) {
    float max = -FLT_MAX;
    double sum = 0;
    if (target < 0) {
        memset(x, 0, sizeof(float) * V);
        return 0;
    }
    if (cap > 0) FN(cap_logits)(x, x, V, cap);
    FN(softmax_sum)(&max, &sum, x, V, 0);
    const float loss = FN(loss_of)(x[target], max, sum, floor);
    FN(logits_gradient)(x, max, sum, V, target, dloss, floor, cap);
    return loss;
}

/* Of a piece of the columns: max and sum go on, and the target's logit is noted if it is here. */
static void FN(cross_entropy_piece_row)(float *max, double *sum, float *chosen, const float *x, ptrdiff_t n, int target,
                                        float cap) {
    FN(softmax_sum)(max, sum, x, n, cap);
    if (target < 0 || target >= n) return;
    *chosen = x[target];
    if (cap > 0) FN(cap_logits)(chosen, chosen, 1, cap);
}

/* The gradient takes the place of a piece's logits. */
static void FN(cross_entropy_piece_backward_row)(float *x, float max, double sum, ptrdiff_t n, int target, float dloss,
                                                 double floor, float cap) {
    if (cap > 0) FN(cap_logits)(x, x, n, cap);
    FN(logits_gradient)(x, max, sum, n, target, dloss, floor, cap);
}

static float FN(cross_entropy_loss_of)(float chosen, float max, double sum, double floor) {
    return FN(loss_of)(chosen, max, sum, floor);
}

#undef CROSS_ENTROPY_BLOCK
