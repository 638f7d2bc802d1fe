/* Cross entropy of one row of logits. Each function reads it from memory once; later passes find it in cache. */

#define CROSS_ENTROPY_BLOCK 2048

/* max = max_v x[v] and sum = sum_v exp(x[v] - max), in one pass: block by block, the sum being rescaled when the
 * maximum grows. A block's sum is taken in float32 over VF_WIDTH lanes, the sum over blocks in float64. */
static void FN(softmax_sum)(float *max, double *sum, const float *x, ptrdiff_t V) {
    *max = -FLT_MAX;
    *sum = 0;
    for (ptrdiff_t begin = 0; begin < V; begin += CROSS_ENTROPY_BLOCK) {
        const ptrdiff_t end = begin + CROSS_ENTROPY_BLOCK < V ? begin + CROSS_ENTROPY_BLOCK : V;
        const int tail = (end - begin) % VF_WIDTH;
        ptrdiff_t i;

        vf highest = vf_load_part_else(x + end - tail, tail, -INFINITY);
        for (i = begin; i + VF_WIDTH <= end; i += VF_WIDTH) highest = vf_max(highest, vf_load(x + i));
        const float block_max = vf_maximum(highest);
        if (block_max > *max) {
            *sum *= exp((double)*max - block_max);
            *max = block_max;
        }

        vf block_sum = vf_exp(vf_load_part_else(x + end - tail, tail, -INFINITY) - *max);
        for (i = begin; i + VF_WIDTH <= end; i += VF_WIDTH) block_sum += vf_exp(vf_load(x + i) - *max);
        *sum += vf_sum(block_sum);
    }
}

/* loss = -ln(p (1 - floor) + floor), p = exp(x[target] - max) / sum. */
VF_INLINE float FN(loss_of)(float x_target, float max, double sum, double floor) {
    const double log_p = (double)x_target - max - log(sum);
    return floor > 0 ? -log(exp(log_p) * (1 - floor) + floor) : -log_p;
}

/* dx[v] (+)= (p[v] (1 - floor) + floor - [v = target]) * dloss. dx may be x. */
VF_INLINE void FN(logits_gradient)(float *dx, const float *x, float max, double sum, ptrdiff_t V, int target,
                                   float dloss, double floor, int accumulate) {
    const float scale = dloss / sum * (1 - floor), least = dloss * floor;
    ptrdiff_t i = 0;
    for (; i + VF_WIDTH <= V; i += VF_WIDTH) {
        vf gradient = vf_exp(vf_load(x + i) - max) * scale + least;
        if (accumulate) gradient += vf_load(dx + i);
        vf_store(dx + i, gradient);
    }
    if (i < V) {
        const int n = V - i;
        vf gradient = vf_exp(vf_load_part(x + i, n) - max) * scale + least;
        if (accumulate) gradient += vf_load_part(dx + i, n);
        vf_store_part(dx + i, gradient, n);
    }
    dx[target] -= dloss;
}

static float FN(cross_entropy_row)(const float *x, ptrdiff_t V, int target, double floor) {
    float max;
    double sum;
    if (target < 0) return 0;
    FN(softmax_sum)(&max, &sum, x, V);
    return FN(loss_of)(x[target], max, sum, floor);
}

static void FN(cross_entropy_backward_row)(float *dx, float dloss, const float *x, ptrdiff_t V, int target, double floor) {
    float max;
    double sum;
    if (target < 0) return;
    FN(softmax_sum)(&max, &sum, x, V);
    FN(logits_gradient)(dx, x, max, sum, V, target, dloss, floor, 1);
}

/* Both at once; the gradient takes the logits' place. */
static float FN(cross_entropy_forward_backward_row)(float *x, ptrdiff_t V, int target, float dloss, double floor) {
    float max;
    double sum;
    if (target < 0) {
        memset(x, 0, sizeof(float) * V);
        return 0;
    }
    FN(softmax_sum)(&max, &sum, x, V);
    const float loss = FN(loss_of)(x[target], max, sum, floor);
    FN(logits_gradient)(x, x, max, sum, V, target, dloss, floor, 0);
    return loss;
}

#undef CROSS_ENTROPY_BLOCK
