"""Products with frozen weights of any GGML type: y = x Wᵀ and dx += dy W, each with a rank-R update.

The weights are read where they lie, in the mapping of the model file, and unpacked a panel at a time in cache (gemm.h).
"""
from cython.parallel cimport prange, threadid
from libc.stdint cimport uint8_t
from libc.string cimport memset

from parallel cimport threads_for_rows

cdef extern from "experts.h" nogil:
    enum:
        TOKENS_AT_ONCE, GEMV_TOKENS, MAX_PROJECTIONS, EXPERT_PROJECTIONS
    ctypedef struct projection
    ctypedef struct gemm_core:
        const char *arithmetic
        int token_tile
        Py_ssize_t (*packed_x)(int T, int K) noexcept nogil
        Py_ssize_t (*forward_scratch)(int T) noexcept nogil
        Py_ssize_t (*backward_scratch)(int T) noexcept nogil
        void (*pack_x)(float *packed, const float *x, int T, int K, int tile) noexcept nogil
        void (*pack_dy)(float *packed, const float *dy, int T, int N, int n0, int n, int tile) noexcept nogil
    ctypedef struct projection:
        const gemm_core *core
        const float *packed
        const uint8_t *weight
        Py_ssize_t row_bytes
        int type
        int N
        int first_row
        float *y
        const float *residual
        const float *dy
        int R
        const float *c
        const float *v
    const gemm_core *linear_core(int type, int precision)
    const gemm_core *linear_forward_core(int type, int precision, int T)
    int linear_slice_columns(const gemm_core *core, int K, int block, int n_threads)
    int GGML_N_TYPES
    bint ggml_is_known(int type)
    ctypedef struct ggml_format:
        int block_size, type_size
    ggml_format ggml_formats[]

    ctypedef struct panel_plan:
        int first[]
    ctypedef struct slice_plan:
        int pieces
    int linear_tiles(const gemm_core *core, int T)
    panel_plan linear_plan_panels(const projection *p, int n, int n_threads)
    int linear_shares_x_with(const projection *p, int i)
    Py_ssize_t linear_place_x(projection *p, int n, int T, int K, float *packed)
    void linear_forward_panel(projection *p, const panel_plan *plan, int panel, int T, int K, float *scratch)
    slice_plan linear_plan_slices(const projection *p, int T, int K, int n_threads)
    int linear_dy_chunks(int N)
    Py_ssize_t linear_packed_dy(const gemm_core *core, int T, int N)
    void linear_pack_dy(float *packed, const projection *p, int T, int chunk, int tile)
    void linear_backward_piece(float *dx, int K, const projection *all, int n, int index, const slice_plan *plan,
                               int piece, int T, int chunk, bint overwrite, const float *packed, float *scratch)
    void linear_next_tokens(projection *p, int n, int T)

    ctypedef struct segment:
        int n
    ctypedef struct expert_product:
        const gemm_core *core
        const uint8_t *weight
        Py_ssize_t expert_bytes, row_bytes
        int type, precision, N
        const float *bias
    int experts_fill_part(segment *part, const int *begin, int E, int *expert, int *row)
    int experts_rows(const segment *part, int n)
    panel_plan experts_plan_panels(const expert_product *products, int n_products, int n_threads)
    Py_ssize_t experts_place_x(segment *part, int n, const expert_product *products, int n_products, int K,
                               float *packed)
    void experts_pack_x(const segment *s, int n_products, const float *x, int K, const int *tokens, float *gathered)
    void experts_forward_panel(const expert_product *products, const panel_plan *plan, int panel, const segment *part,
                               int n, int K, float **ys, float *total, const float *scale, const int *tokens,
                               float *buffer, float *scratch)
    Py_ssize_t experts_place_dy(segment *part, int n, const expert_product *product, float *packed)
    void experts_pack_dy(const segment *s, const expert_product *product, const float *dy, const int *tokens,
                         bint is_sum, int chunk, float *gathered)
    void experts_backward_slice(float *dx, int K, const float *dy, const expert_product *product, const segment *part,
                                int n, const int *tokens, bint is_sum, int chunk, int k0, int n_columns, bint is_first,
                                bint is_last, float *buffer, float *scratch)

cdef extern from "scratch.h" nogil:
    void *scratch_get(size_t bytes)

PRECISIONS = ("float32", "int16", "int8")
"""What activations and gradients can be rounded to before they meet quantised weights: by the numbers of linear.h."""


cdef class Weight:
    """A frozen matrix W (N, K), as it lies in the file.

    data       uint8 (N, bytes a row), C-contiguous, may be read-only
    type       ggml type id of its blocks
    K          values a row
    precision  one of PRECISIONS: what products with it round the other side to. F32, F16 and BF16 always take float32
    first_row  place of these rows in the matrix they are a piece of: int8's random rounding goes by it
    Raises ValueError when the type is not trainable, the row length doesn't fit K, or the precision has no such name.
    """
    cdef readonly int N, K, type, first_row
    cdef int precision
    cdef const uint8_t[:, ::1] data

    def __init__(self, const uint8_t[:, ::1] data not None, int type, int K, str precision="int16",
                 int first_row=0):
        if precision not in PRECISIONS:
            raise ValueError(f"Weight: precision is '{precision}', wanted one of {', '.join(PRECISIONS)}")
        if not ggml_is_known(type):
            raise ValueError(f"Weight: ggml type {type} has no kernel")
        cdef int block = ggml_formats[type].block_size
        if K % block or data.shape[1] != K // block * ggml_formats[type].type_size:
            raise ValueError(f"Weight: rows of {data.shape[1]} bytes do not hold {K} values of ggml type {type}")
        self.data, self.type, self.N, self.K = data, type, data.shape[0], K
        self.precision, self.first_row = PRECISIONS.index(precision), first_row

    @staticmethod
    def arithmetic_of(int type, str precision) -> str:
        """What products of more than a few tokens with a ggml type are made of: the precision, unless the type or this
        processor gains nothing from it; on AMX bfloat16 for int8, and pieces of it for int16. ValueError for a type
        without a kernel."""
        if not ggml_is_known(type):
            raise ValueError(f"Weight: ggml type {type} has no kernel")
        return linear_core(type, PRECISIONS.index(precision)).arithmetic.decode()

    @property
    def arithmetic(self) -> str:
        """The same of this weight."""
        return Weight.arithmetic_of(self.type, PRECISIONS[self.precision])


cdef class ExpertWeights:
    """The frozen matrices W_e (N, K) of E experts, as they lie in the file, one behind the other.

    data       uint8 (E, N, bytes a row), may be read-only; a part of each expert's rows is a view with larger strides
    type, K, precision  as of Weight, and the errors, too
    """
    cdef readonly int E, N, K, type
    cdef int precision
    cdef const uint8_t[:, :, :] data

    def __init__(self, const uint8_t[:, :, :] data not None, int type, int K, str precision="int16"):
        cdef Weight of_first = Weight(data[0], type, K, precision)
        self.data, self.type, self.K, self.precision = data, type, K, of_first.precision
        self.E, self.N = data.shape[0], data.shape[1]

    @property
    def arithmetic(self) -> str:
        """As of Weight."""
        return Weight.arithmetic_of(self.type, PRECISIONS[self.precision])


cdef int check(name, argument, got, wanted) except -1:
    if tuple(got) != tuple(wanted):
        raise ValueError(f"{name}: {argument} has shape {tuple(got)}, wanted {tuple(wanted)}")
    return 0


cdef int set_projection(projection *p, name, Weight w, Py_ssize_t T, Py_ssize_t update_width, low_rank) except -1:
    """Fills in the weight and its rank-R update (c (T, R), v (R, update_width)), or None."""
    cdef const float[:, ::1] c, v
    p.weight, p.row_bytes, p.type, p.N = &w.data[0, 0], w.data.shape[1], w.type, w.N
    p.residual, p.dy, p.y, p.R, p.first_row = NULL, NULL, NULL, 0, w.first_row
    if low_rank is None:
        return 0
    c, v = low_rank
    check(name, "c of a low-rank update", (c.shape[0], c.shape[1]), (T, v.shape[0]))
    check(name, "v of a low-rank update", (v.shape[0], v.shape[1]), (v.shape[0], update_width))
    if v.shape[0]:
        p.R, p.c, p.v = v.shape[0], &c[0, 0], &v[0, 0]
    return 0


def linear_forward(list ys not None, const float[:, ::1] x not None, list weights not None, list low_rank not None,
                   const float[:, ::1] residual, int n_threads):
    """y_i = x W_iᵀ + c_i v_i (+ residual), for projections i that share an input: query, key and value; gate and up.

    ys         list of float32 (T, N_i), OUT
    x          float32 (T, K)
    weights    list of Weight (N_i, K)
    low_rank   list of None or (c (T, R), v (R, N_i)), float32: LoRA's update with c = s·x Aᵀ (lora.pyx) and v = B
    residual   float32 (T, N) or None; only with a single projection
    Raises ValueError for a shape that does not fit, MemoryError. Twin: lorafast.reference.linear.
    """
    cdef projection p[MAX_PROJECTIONS]
    cdef int T = x.shape[0], K = x.shape[1], n = len(weights), i
    cdef float[:, ::1] y
    if not 0 < n <= MAX_PROJECTIONS or len(ys) != n or len(low_rank) != n:
        raise ValueError(f"linear_forward: {len(ys)} outputs, {n} weights and {len(low_rank)} low-rank updates")
    for i in range(n):
        if (<Weight?>weights[i]).K != K:
            raise ValueError(f"linear_forward: x has shape {(T, K)}, weight {i} wants K = {(<Weight>weights[i]).K}")
        y = ys[i]
        check("linear_forward", f"y {i}", (y.shape[0], y.shape[1]), (T, (<Weight>weights[i]).N))
        set_projection(&p[i], "linear_forward", weights[i], T, (<Weight>weights[i]).N, low_rank[i])
        p[i].core = linear_forward_core(p[i].type, (<Weight>weights[i]).precision, T)
        if T:
            p[i].y = &y[0, 0]
    if residual is not None:
        if n != 1:
            raise ValueError("linear_forward: a residual needs a single projection")
        check("linear_forward", "residual", (residual.shape[0], residual.shape[1]), (T, p[0].N))
        if T:
            p[0].residual = &residual[0, 0]
    if T == 0:
        return

    cdef int tokens = min(T, TOKENS_AT_ONCE), panel, t0, tile, tiles
    cdef panel_plan plan = linear_plan_panels(p, n, n_threads)
    cdef Py_ssize_t packed_size = linear_place_x(p, n, tokens, K, NULL), thread_size = 0
    for i in range(n):
        thread_size = max(thread_size, p[i].core.forward_scratch(tokens))
    cdef float *packed = <float *>scratch_get(sizeof(float) * (packed_size + n_threads * thread_size))
    if packed == NULL:
        raise MemoryError("linear_forward: no memory for packed activations")
    for t0 in range(0, T, TOKENS_AT_ONCE):
        tokens = min(T - t0, TOKENS_AT_ONCE)
        linear_place_x(p, n, tokens, K, packed)
        for i in range(n):
            if linear_shares_x_with(p, i) == i:
                tiles = linear_tiles(p[i].core, tokens)
                for tile in prange(tiles, nogil=True, schedule="static",
                                   num_threads=threads_for_rows(tiles, p[i].core.token_tile * K, n_threads)):
                    p[i].core.pack_x(<float *>p[i].packed, &x[t0, 0], tokens, K, tile)
        for panel in prange(plan.first[n], nogil=True, num_threads=n_threads, schedule="dynamic", chunksize=1):
            linear_forward_panel(p, &plan, panel, tokens, K, packed + packed_size + threadid() * thread_size)
        linear_next_tokens(p, n, tokens)


def linear_backward(float[:, ::1] dx not None, list dys not None, list weights not None, list low_rank not None,
                    int n_threads):
    """dx = sum_i (dy_i W_i + c_i v_i): differentiates y_i = x W_iᵀ + ... with respect to x.

    dx         OUT float32 (T, K), overwritten
    dys        list of float32 (T, N_i)
    weights    list of Weight (N_i, K)
    low_rank   list of None or (c (T, R), v (R, K)), float32: LoRA's path with c = s·dy Bᵀ (lora.pyx) and v = A
    Raises ValueError for a shape that does not fit, MemoryError. Twin: lorafast.reference.linear.
    """
    backward("linear_backward", dx, dys, weights, low_rank, True, n_threads)


def linear_backward_add(float[:, ::1] dx not None, list dys not None, list weights not None, list low_rank not None,
                        int n_threads):
    """dx += sum_i (dy_i W_i + c_i v_i): where others read x too, or the rows of a matrix come by pieces.

    The arguments, the errors and the twin's place are those of linear_backward; dx is accumulated.
    """
    backward("linear_backward_add", dx, dys, weights, low_rank, False, n_threads)


cdef backward(str op, float[:, ::1] dx, list dys, list weights, list low_rank, bint overwrite, int n_threads):
    cdef projection p[MAX_PROJECTIONS]
    cdef int T = dx.shape[0], K = dx.shape[1], n = len(weights), i, tokens = min(T, TOKENS_AT_ONCE)
    cdef Py_ssize_t packed_size = 0, thread_size = 0
    cdef const float[:, ::1] dy
    if not 0 < n <= MAX_PROJECTIONS or len(dys) != n or len(low_rank) != n:
        raise ValueError(f"{op}: {len(dys)} gradients, {n} weights and {len(low_rank)} low-rank updates")
    for i in range(n):
        if (<Weight?>weights[i]).K != K:
            raise ValueError(f"{op}: dx has shape {(T, K)}, weight {i} wants K = {(<Weight>weights[i]).K}")
        dy = dys[i]
        check(op, f"dy {i}", (dy.shape[0], dy.shape[1]), (T, (<Weight>weights[i]).N))
        set_projection(&p[i], op, weights[i], T, K, low_rank[i])
        p[i].core = linear_core(p[i].type, (<Weight>weights[i]).precision)
        thread_size = max(thread_size, p[i].core.backward_scratch(tokens))
        packed_size = max(packed_size, linear_packed_dy(p[i].core, tokens, p[i].N))
        if T:
            p[i].dy = &dy[0, 0]
    if T == 0:
        return

    cdef int t0
    cdef float *packed = <float *>scratch_get(sizeof(float) * (packed_size + n_threads * thread_size))
    if packed == NULL:
        raise MemoryError(f"{op}: no memory for packed gradients")
    for t0 in range(0, T, TOKENS_AT_ONCE):
        tokens = min(T - t0, TOKENS_AT_ONCE)
        with nogil:
            for i in range(n):
                backward_projection(&dx[t0, 0], K, p, n, i, tokens, overwrite, packed, packed + packed_size,
                                    thread_size, n_threads)
        linear_next_tokens(p, n, tokens)


cdef void backward_projection(float *dx, int K, projection *all, int n, int index, int T, bint overwrite,
                              float *packed, float *scratch, Py_ssize_t thread_size, int n_threads) noexcept nogil:
    """dx (T, K) += dy W of projection `index` of n, and what linear_backward_piece does before and after."""
    cdef projection *p = &all[index]
    cdef slice_plan plan = linear_plan_slices(p, T, K, n_threads)
    cdef int chunk, tile, piece
    for chunk in range(linear_dy_chunks(p.N)):
        if p.core.pack_dy != NULL:
            for tile in prange(linear_tiles(p.core, T), num_threads=n_threads, schedule="static"):
                linear_pack_dy(packed, p, T, chunk, tile)
        for piece in prange(plan.pieces, num_threads=n_threads, schedule="dynamic", chunksize=1):
            linear_backward_piece(dx, K, all, n, index, &plan, piece, T, chunk, overwrite, packed,
                                  scratch + threadid() * thread_size)


def linear_scratch_bytes(int T, int K, int N, int n_threads) -> int:
    """Bytes of working memory that the products of T tokens with a weight (N, K) take and keep: of any type, in any
    precision."""
    cdef int tokens = min(T, TOKENS_AT_ONCE), type, precision
    cdef const gemm_core *core
    cdef Py_ssize_t largest = 0
    for type in range(GGML_N_TYPES):
        for precision in range(len(PRECISIONS) if ggml_is_known(type) else 0):
            core = linear_core(type, precision)
            largest = max(largest, core.packed_x(tokens, K) + n_threads * core.forward_scratch(tokens))
            largest = max(largest, linear_packed_dy(core, tokens, N) + n_threads * core.backward_scratch(tokens))
    return sizeof(float) * largest


cdef int set_expert_product(expert_product *p, ExpertWeights w, const float *bias) except -1:
    p.weight, p.expert_bytes, p.row_bytes, p.type = &w.data[0, 0, 0], w.data.strides[0], w.data.strides[1], w.type
    p.precision, p.N, p.bias, p.core = w.precision, w.N, bias, linear_core(w.type, w.precision)
    return 0


cdef int check_routing(name, const int[::1] begin, const int[::1] tokens, Py_ssize_t E, Py_ssize_t T) except -1:
    """The rows' experts and tokens."""
    cdef Py_ssize_t e, r
    check(name, "begin", (begin.shape[0],), (E + 1,))
    if begin[0] != 0 or begin[E] != tokens.shape[0]:
        raise ValueError(f"{name}: begin runs from {begin[0]} to {begin[E]}, wanted 0 to {tokens.shape[0]} rows")
    for e in range(E):
        if begin[e] > begin[e + 1]:
            raise ValueError(f"{name}: begin falls from {begin[e]} to {begin[e + 1]} at expert {e}")
    for r in range(tokens.shape[0]):
        if not 0 <= tokens[r] < T:
            raise ValueError(f"{name}: row {r} is of token {tokens[r]}, of {T}")
    return 0


cdef const float *bias_of(name, bias, ExpertWeights w) except? NULL:
    cdef const float[:, ::1] values
    if bias is None:
        return NULL
    values = bias
    check(name, "a bias", (values.shape[0], values.shape[1]), (w.E, w.N))
    return &values[0, 0]


def experts_forward(list ys not None, const float[:, ::1] x not None, list weights not None, list biases not None,
                    const int[::1] begin not None, const int[::1] tokens not None, int n_threads):
    """y_i[r] = W_i,e x[tokens[r]] (+ b_i,e) for each row r, e being its expert: gate and up.

    ys       list of float32 (M, N_i), OUT
    x        float32 (T, K)
    weights  list of at most two ExpertWeights (E, N_i, K)
    biases   list of float32 (E, N_i) or None
    begin    int32 (E + 1,), first row of each expert, and M
    tokens   int32 (M,), the token of each row
    Raises ValueError for a shape that does not fit, MemoryError. Twin: lorafast.reference.linear.
    """
    cdef expert_product products[EXPERT_PROJECTIONS]
    cdef float *outputs[EXPERT_PROJECTIONS]
    cdef int n = len(weights), i, M = tokens.shape[0]
    cdef float[:, ::1] y
    if not 0 < n <= EXPERT_PROJECTIONS or len(ys) != n or len(biases) != n:
        raise ValueError(f"experts_forward: {len(ys)} outputs, {n} weights and {len(biases)} biases")
    check_routing("experts_forward", begin, tokens, (<ExpertWeights?>weights[0]).E, x.shape[0])
    for i in range(n):
        check("experts_forward", "x", (x.shape[0], x.shape[1]), (x.shape[0], (<ExpertWeights?>weights[i]).K))
        y = ys[i]
        check("experts_forward", f"y {i}", (y.shape[0], y.shape[1]), (M, (<ExpertWeights>weights[i]).N))
        set_expert_product(&products[i], weights[i], bias_of("experts_forward", biases[i], weights[i]))
        outputs[i] = &y[0, 0] if M else NULL
    if M:
        forward_experts(products, n, outputs, NULL, NULL, &x[0, 0], x.shape[1], &begin[0], begin.shape[0] - 1,
                        &tokens[0], n_threads)


def experts_sum_forward(float[:, ::1] y not None, const float[:, ::1] x not None, ExpertWeights weight not None,
                        const float[:, ::1] bias, const float[::1] scale not None, const int[::1] begin not None,
                        const int[::1] tokens not None, int n_threads):
    """y[t] = Σ_r scale[r] (W_e x[r] (+ b_e)) over the rows r of token t, in the order of their experts: down.

    y       float32 (T, N), OUT
    x       float32 (M, K)
    weight  (E, N, K)
    bias    float32 (E, N) or None
    scale   float32 (M,)
    begin, tokens  as in experts_forward
    Raises ValueError for a shape that does not fit, MemoryError. Twin: lorafast.reference.linear.
    """
    cdef expert_product product
    cdef int M = tokens.shape[0], T = y.shape[0], N = y.shape[1], t
    check_routing("experts_sum_forward", begin, tokens, weight.E, T)
    check("experts_sum_forward", "x", (x.shape[0], x.shape[1]), (M, weight.K))
    check("experts_sum_forward", "y", (T, N), (T, weight.N))
    check("experts_sum_forward", "scale", (scale.shape[0],), (M,))
    set_expert_product(&product, weight, bias_of("experts_sum_forward", bias, weight))
    for t in prange(T, nogil=True, schedule="static", num_threads=threads_for_rows(T, N, n_threads)):
        memset(&y[t, 0], 0, sizeof(float) * N)
    if M:
        forward_experts(&product, 1, NULL, &y[0, 0], &scale[0], &x[0, 0], weight.K, &begin[0], weight.E, &tokens[0],
                        n_threads)


cdef int forward_experts(expert_product *products, int n_products, float **ys, float *total, const float *scale,
                         const float *x, int K, const int *begin, int E, const int *tokens, int n_threads) except -1:
    """experts_forward, or with `total` experts_sum_forward."""
    cdef segment part[TOKENS_AT_ONCE]
    cdef panel_plan plan = experts_plan_panels(products, n_products, n_threads)
    cdef int expert = 0, row = 0, n, s, i, panel
    cdef Py_ssize_t packed_size = 0, thread_size = 0, gathered = 0
    cdef const int *to_gather = NULL
    if total == NULL:
        to_gather = tokens
    for i in range(n_products):
        thread_size = max(thread_size, products[i].core.forward_scratch(TOKENS_AT_ONCE))
    n = experts_fill_part(part, begin, E, &expert, &row)
    while n:
        packed_size = max(packed_size, experts_place_x(part, n, products, n_products, K, NULL))
        gathered = max(gathered, experts_rows(part, n))
        n = experts_fill_part(part, begin, E, &expert, &row)
    gathered = (gathered * (products[0].N if total != NULL else K) + 15) // 16 * 16
    cdef float *scratch = <float *>scratch_get(sizeof(float) * (gathered + packed_size + n_threads * thread_size))
    if scratch == NULL:
        raise MemoryError("experts_forward: no memory for packed activations")
    expert, row = 0, 0
    n = experts_fill_part(part, begin, E, &expert, &row)
    while n:
        experts_place_x(part, n, products, n_products, K, scratch + gathered)
        for s in prange(n, nogil=True, schedule="dynamic", chunksize=1, num_threads=n_threads if n > 1 else 1):
            experts_pack_x(&part[s], n_products, x, K, to_gather, scratch)
        for panel in prange(plan.first[n_products], nogil=True, schedule="dynamic", chunksize=1,
                            num_threads=n_threads):
            experts_forward_panel(products, &plan, panel, part, n, K, ys, total, scale, tokens, scratch,
                                  scratch + gathered + packed_size + threadid() * thread_size)
        n = experts_fill_part(part, begin, E, &expert, &row)
    return 0


def experts_backward(float[:, ::1] dx not None, list dys not None, list weights not None,
                     const int[::1] begin not None, const int[::1] tokens not None, int n_threads):
    """dx[t] = Σ_r Σ_i dy_i[r] W_i,e over the rows r of token t: differentiates y_i[r] = W_i,e x[tokens[r]].

    dx       float32 (T, K), OUT
    dys      list of float32 (M, N_i)
    weights, begin, tokens  as in experts_forward
    Raises ValueError for a shape that does not fit, MemoryError. Twin: lorafast.reference.linear.
    """
    cdef expert_product products[EXPERT_PROJECTIONS]
    cdef const float *gradients[EXPERT_PROJECTIONS]
    cdef int n = len(weights), i, M = tokens.shape[0], T = dx.shape[0], K = dx.shape[1], t
    cdef const float[:, ::1] dy
    if not 0 < n <= EXPERT_PROJECTIONS or len(dys) != n:
        raise ValueError(f"experts_backward: {len(dys)} gradients and {n} weights")
    check_routing("experts_backward", begin, tokens, (<ExpertWeights?>weights[0]).E, T)
    for i in range(n):
        check("experts_backward", "dx", (T, K), (T, (<ExpertWeights?>weights[i]).K))
        dy = dys[i]
        check("experts_backward", f"dy {i}", (dy.shape[0], dy.shape[1]), (M, (<ExpertWeights>weights[i]).N))
        set_expert_product(&products[i], weights[i], NULL)
        gradients[i] = &dy[0, 0] if M else NULL
    for t in prange(T, nogil=True, schedule="static", num_threads=threads_for_rows(T, K, n_threads)):
        memset(&dx[t, 0], 0, sizeof(float) * K)
    if M:
        backward_experts(&dx[0, 0], K, gradients, products, n, &begin[0], begin.shape[0] - 1, &tokens[0], False,
                         n_threads)


def experts_sum_backward(float[:, ::1] dx not None, const float[:, ::1] dy not None, ExpertWeights weight not None,
                         const int[::1] begin not None, const int[::1] tokens not None, int n_threads):
    """dx[r] = dy[tokens[r]] W_e: with scale[r] times it, differentiates y[t] = Σ_r scale[r] W_e x[r]; and its sum of
    products with x[r] (and dy · b_e) is the gradient of scale[r].

    dx      float32 (M, K), OUT
    dy      float32 (T, N)
    weight, begin, tokens  as in experts_sum_forward
    Raises ValueError for a shape that does not fit, MemoryError. Twin: lorafast.reference.linear.
    """
    cdef expert_product product
    cdef const float *gradients[EXPERT_PROJECTIONS]
    cdef int M = tokens.shape[0]
    check_routing("experts_sum_backward", begin, tokens, weight.E, dy.shape[0])
    check("experts_sum_backward", "dx", (dx.shape[0], dx.shape[1]), (M, weight.K))
    check("experts_sum_backward", "dy", (dy.shape[0], dy.shape[1]), (dy.shape[0], weight.N))
    set_expert_product(&product, weight, NULL)
    if M:
        gradients[0] = &dy[0, 0]
        backward_experts(&dx[0, 0], weight.K, gradients, &product, 1, &begin[0], weight.E, &tokens[0], True, n_threads)


cdef int backward_experts(float *dx, int K, const float **dys, expert_product *products, int n_products,
                          const int *begin, int E, const int *tokens, bint is_sum, int n_threads) except -1:
    """experts_backward, or experts_sum_backward: there dy is gathered, here dx is added to that of the tokens."""
    cdef segment part[TOKENS_AT_ONCE]
    cdef int expert = 0, row = 0, n, i
    cdef Py_ssize_t packed_size = 0, thread_size = 0, gathered = 0
    for i in range(n_products):
        thread_size = max(thread_size, products[i].core.backward_scratch(TOKENS_AT_ONCE))
    n = experts_fill_part(part, begin, E, &expert, &row)
    while n:
        for i in range(n_products):
            packed_size = max(packed_size, experts_place_dy(part, n, &products[i], NULL))
        gathered = max(gathered, experts_rows(part, n))
        n = experts_fill_part(part, begin, E, &expert, &row)
    gathered = (gathered * (products[0].N if is_sum else K) + 15) // 16 * 16
    cdef float *scratch = <float *>scratch_get(sizeof(float) * (gathered + packed_size + n_threads * thread_size))
    if scratch == NULL:
        raise MemoryError("experts_backward: no memory for packed gradients")
    expert, row = 0, 0
    n = experts_fill_part(part, begin, E, &expert, &row)
    while n:
        with nogil:
            for i in range(n_products):
                experts_place_dy(part, n, &products[i], scratch + gathered)
                backward_part(dx, K, dys[i], products, i, n_products, part, n, tokens, is_sum, scratch,
                              scratch + gathered + packed_size, thread_size, n_threads)
        n = experts_fill_part(part, begin, E, &expert, &row)
    return 0


cdef void backward_part(float *dx, int K, const float *dy, const expert_product *products, int index, int n_products,
                        const segment *part, int n, const int *tokens, bint is_sum, float *buffer, float *scratch,
                        Py_ssize_t thread_size, int n_threads) noexcept nogil:
    """dx of one product, for all segments: slices of columns are dealt out to threads."""
    cdef const expert_product *product = &products[index]
    cdef int columns = linear_slice_columns(product.core, K, ggml_formats[product.type].block_size, n_threads)
    cdef int chunk, chunks = linear_dy_chunks(product.N), slice, s, is_first, is_last
    for chunk in range(chunks):
        for s in prange(n, schedule="dynamic", chunksize=1, num_threads=n_threads if n > 1 else 1):
            experts_pack_dy(&part[s], product, dy, tokens, is_sum, chunk, buffer)
        is_first, is_last = index == 0 and chunk == 0, index == n_products - 1 and chunk == chunks - 1
        for slice in prange((K + columns - 1) // columns, schedule="dynamic", chunksize=1, num_threads=n_threads):
            experts_backward_slice(dx, K, dy, product, part, n, tokens, is_sum, chunk, slice * columns,
                                   min(columns, K - slice * columns), is_first, is_last, buffer,
                                   scratch + threadid() * thread_size)


def experts_scratch_bytes(int T, int K, int N, int n_experts, int n_used, int n_threads) -> int:
    """Bytes of working memory that products of T tokens with `n_used` of `n_experts` matrices (N, K) each take and
    keep: of any type, in any precision."""
    cdef int rows = min(T * n_used, TOKENS_AT_ONCE), type, precision, n, segments
    cdef const gemm_core *core
    cdef const gemm_core *few
    cdef Py_ssize_t largest = 0, packed = 0
    for type in range(GGML_N_TYPES):
        for precision in range(len(PRECISIONS) if ggml_is_known(type) else 0):
            core, few, packed = linear_core(type, precision), linear_forward_core(type, precision, 1), 0
            for n in range(1, rows + 1):        # rows of each expert
                segments = min(rows // n, n_experts)
                packed = max(packed, segments * linear_packed_dy(core, n, N))
                packed = max(packed, 2 * segments * (core if n > GEMV_TOKENS else few).packed_x(n, K))
            largest = max(largest, packed + n_threads * max(core.forward_scratch(rows), core.backward_scratch(rows)))
    return sizeof(float) * (largest + rows * max(N, K) + 16)
