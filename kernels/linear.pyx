"""Products with frozen weights of any GGML type: y = x Wᵀ and dx += dy W, each with a rank-R update.

The weights are read where they lie, in the mapping of the model file, and unpacked a panel at a time in cache (gemm.h).
"""
from cython.parallel cimport prange, threadid
from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset

from parallel cimport threads_for_rows

cdef extern from "linear.h" nogil:
    ctypedef struct projection
    ctypedef struct gemm_core:
        const char *arithmetic
        int token_tile
        Py_ssize_t (*packed_x)(int T, int K) noexcept nogil
        Py_ssize_t (*packed_dy)(int T, int n) noexcept nogil
        Py_ssize_t (*forward_scratch)(int T) noexcept nogil
        Py_ssize_t (*backward_scratch)(int T) noexcept nogil
        void (*pack_x)(float *packed, const float *x, int T, int K, int tile) noexcept nogil
        void (*forward_panel)(const projection *p, const float *packed, int T, int K, int n0, int n_rows,
                              float *scratch) noexcept nogil
        void (*pack_dy)(float *packed, const float *dy, int T, int N, int n0, int n, int tile) noexcept nogil
        void (*backward_slice)(float *dx, int K, const projection *p, const float *packed, int all_T, int n0, int n,
                               int k0, int n_columns, int t0, int t1, float *scratch) noexcept nogil
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
    enum:
        TOKENS_AT_ONCE
        DY_COLUMNS
    const gemm_core *linear_core(int type, int precision)
    const gemm_core *linear_forward_core(int type, int precision, int T)
    int linear_panel_rows(const gemm_core *core, int N, int n_threads)
    int linear_slice_columns(const gemm_core *core, int K, int block, int n_threads)
    void linear_clear(float *dx, int K, int k0, int n_columns, int t0, int t1)
    void linear_add_low_rank(float *dx, int K, const projection *p, int n_projections, int k0, int n_columns,
                             int t0, int t1)
    int GGML_N_TYPES
    bint ggml_is_known(int type)
    ctypedef struct ggml_format:
        int block_size, type_size
    ggml_format ggml_formats[]

cdef extern from "scratch.h" nogil:
    void *scratch_get(size_t bytes)

cdef enum:
    MAX_PROJECTIONS = 8
    EXPERT_PROJECTIONS = 2

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

    @property
    def arithmetic(self) -> str:
        """What products of more than a few tokens are made of: the precision, unless the type or this processor gains
        nothing from it."""
        return linear_core(self.type, self.precision).arithmetic.decode()


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
        return linear_core(self.type, self.precision).arithmetic.decode()


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
    cdef int first_panel[MAX_PROJECTIONS + 1]
    cdef int rows[MAX_PROJECTIONS]
    cdef int first_with_core[MAX_PROJECTIONS]
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

    cdef int tokens = min(T, TOKENS_AT_ONCE), panel, t0, tile, tiles, total = 0
    for i in range(n):
        total += p[i].N
    first_panel[0] = 0
    for i in range(n):
        rows[i] = linear_panel_rows(p[i].core, total, n_threads)
        first_panel[i + 1] = first_panel[i] + (p[i].N + rows[i] - 1) // rows[i]
    # x is packed once for each core among the projections
    cdef Py_ssize_t packed_size = 0, thread_size = 0
    for i in range(n):
        first_with_core[i] = 0
        while p[first_with_core[i]].core != p[i].core:
            first_with_core[i] += 1
        if first_with_core[i] == i:
            packed_size += p[i].core.packed_x(tokens, K)
            thread_size = max(thread_size, p[i].core.forward_scratch(tokens))
    cdef float *packed = <float *>scratch_get(sizeof(float) * (packed_size + n_threads * thread_size))
    if packed == NULL:
        raise MemoryError("linear_forward: no memory for packed activations")
    cdef float *scratch = packed + packed_size
    for t0 in range(0, T, TOKENS_AT_ONCE):
        tokens = min(T - t0, TOKENS_AT_ONCE)
        packed_size = 0
        for i in range(n):
            if first_with_core[i] != i:
                p[i].packed = p[first_with_core[i]].packed
                continue
            p[i].packed = packed + packed_size
            packed_size += p[i].core.packed_x(tokens, K)
            tiles = (tokens + p[i].core.token_tile - 1) // p[i].core.token_tile
            for tile in prange(tiles, nogil=True, schedule="static",
                               num_threads=threads_for_rows(tiles, p[i].core.token_tile * K, n_threads)):
                p[i].core.pack_x(<float *>p[i].packed, &x[t0, 0], tokens, K, tile)
        for panel in prange(first_panel[n], nogil=True, num_threads=n_threads, schedule="dynamic", chunksize=1):
            forward_panel(p, first_panel, rows, panel, tokens, K, scratch + threadid() * thread_size)
        for i in range(n):      # on to the next tokens
            p[i].y += <Py_ssize_t>tokens * p[i].N
            p[i].c += <Py_ssize_t>tokens * p[i].R
            if p[i].residual != NULL:
                p[i].residual += <Py_ssize_t>tokens * p[i].N


cdef void forward_panel(projection *p, int *first_panel, int *rows, int panel, int T, int K,
                        float *scratch) noexcept nogil:
    """Panel `panel` of all projections' panels: projection i has them from first_panel[i] on, of rows[i] rows."""
    cdef int i = 0, n0
    while panel >= first_panel[i + 1]:
        i += 1
    n0 = (panel - first_panel[i]) * rows[i]
    p[i].core.forward_panel(&p[i], p[i].packed, T, K, n0, min(rows[i], p[i].N - n0), scratch)


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
        packed_size = max(packed_size, packed_dy(p[i].core, tokens, p[i].N))
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
        for i in range(n):      # on to the next tokens
            p[i].dy += <Py_ssize_t>tokens * p[i].N
            p[i].c += <Py_ssize_t>tokens * p[i].R


cdef Py_ssize_t packed_dy(const gemm_core *core, int T, int N) noexcept nogil:
    """Floats of packed dy; 0 where a core takes it as it lies."""
    return core.packed_dy(T, min(N, DY_COLUMNS)) if core.packed_dy != NULL else 0


cdef void backward_projection(float *dx, int K, projection *all, int n, int index, int T, bint overwrite,
                              float *packed, float *scratch, Py_ssize_t thread_size, int n_threads) noexcept nogil:
    """dx (T, K) += dy W of projection `index` of n: slices of columns are dealt out to threads.

    To overwrite it, the first projection clears dx before, and the last one adds the rank-R updates of all, each
    slice while it is in cache.
    """
    cdef projection *p = &all[index]
    cdef int columns = linear_slice_columns(p.core, K, ggml_formats[p.type].block_size, n_threads)
    cdef int slices = (K + columns - 1) // columns, chunks = (p.N + DY_COLUMNS - 1) // DY_COLUMNS
    cdef int chunk, n0, width, tile, item, piece, k0, n_columns, t0, t1, pieces = 1
    # slices that don't divide evenly: deal out tokens too, so that no thread waits (each piece unpacks W again)
    while slices * pieces % n_threads and slices * pieces < 4 * n_threads and T // pieces >= 128:
        pieces *= 2
    piece = ((T + pieces - 1) // pieces + 31) // 32 * 32
    pieces = (T + piece - 1) // piece
    for chunk in range(chunks):
        n0 = chunk * DY_COLUMNS
        width = min(DY_COLUMNS, p.N - n0)
        if p.core.pack_dy != NULL:
            for tile in prange((T + p.core.token_tile - 1) // p.core.token_tile, num_threads=n_threads,
                               schedule="static"):
                # columns are counted from the first one of the matrix that this is a piece of
                p.core.pack_dy(packed, p.dy - p.first_row, T, p.N, p.first_row + n0, width, tile)
        for item in prange(slices * pieces, num_threads=n_threads, schedule="dynamic", chunksize=1):
            k0 = item % slices * columns
            n_columns = min(columns, K - k0)
            t0 = item // slices * piece
            t1 = min(T, t0 + piece)
            if index == 0 and chunk == 0 and overwrite:
                linear_clear(dx, K, k0, n_columns, t0, t1)
            p.core.backward_slice(dx, K, p, packed, T, n0, width, k0, n_columns, t0, t1,
                                  scratch + threadid() * thread_size)
            if index == n - 1 and chunk == chunks - 1:
                linear_add_low_rank(dx, K, all, n, k0, n_columns, t0, t1)


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
            largest = max(largest, packed_dy(core, tokens, N) + n_threads * core.backward_scratch(tokens))
    return sizeof(float) * largest


# Experts. The rows of a batch are sorted by their expert: row r is of token tokens[r], and expert e has the rows from
# begin[e] to begin[e + 1]. What they make is worked on for some experts at a time: a part. Each of its products has
# panels (forward) or slices (backward) of columns that are dealt out to threads, over all experts of the part: so one
# thread owns every element that the rows of several experts are added to, and small experts cost no parallel region.

cdef struct segment:
    int expert, row, n, at              # its first row, and the place of that in the part
    const gemm_core *core[EXPERT_PROJECTIONS]
    float *packed[EXPERT_PROJECTIONS]


cdef struct expert_product:             # of all experts with one matrix each
    const gemm_core *core
    const uint8_t *weight
    Py_ssize_t expert_bytes, row_bytes
    int type, precision, N
    const float *bias                   # (E, N) or NULL


cdef int fill_part(segment *part, const int *begin, int E, int *expert, int *row) noexcept nogil:
    """The next segments, TOKENS_AT_ONCE rows in all at most, from *row of *expert on; these move on. Their number: 0
    at the end. An expert's rows stay together where they fit, so that its matrices are read once."""
    cdef int n = 0, at = 0, left
    while expert[0] < E:
        left = begin[expert[0] + 1] - row[0]
        if left == 0:
            expert[0] += 1
            continue
        if at > 0 and at + left > TOKENS_AT_ONCE:
            break
        left = min(left, TOKENS_AT_ONCE)
        part[n].expert, part[n].row, part[n].n, part[n].at = expert[0], row[0], left, at
        n, at, row[0] = n + 1, at + left, row[0] + left
    return n


cdef int rows_of_part(const segment *part, int n) noexcept nogil:
    return part[n - 1].at + part[n - 1].n


cdef Py_ssize_t place_packed_x(segment *part, int n, const expert_product *product, int n_products, int K,
                               float *packed) noexcept nogil:
    """Chooses the cores of a part's segments, and where each finds its x packed; floats of it in all."""
    cdef Py_ssize_t size = 0
    cdef int s, i
    for s in range(n):
        for i in range(n_products):
            part[s].core[i] = linear_forward_core(product[i].type, product[i].precision, part[s].n)
            if i > 0 and part[s].core[i] == part[s].core[0]:
                part[s].packed[i] = part[s].packed[0]
                continue
            part[s].packed[i] = packed + size
            size += part[s].core[i].packed_x(part[s].n, K)
    return size


cdef Py_ssize_t place_packed_dy(segment *part, int n, const expert_product *product, float *packed) noexcept nogil:
    """The same of dy, for one product."""
    cdef Py_ssize_t size = 0
    cdef int s
    for s in range(n):
        part[s].packed[0] = packed + size
        size += packed_dy(product.core, part[s].n, product.N)
    return size


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
    cdef int first_panel[EXPERT_PROJECTIONS + 1]
    cdef int rows[EXPERT_PROJECTIONS]
    cdef int expert = 0, row = 0, n, s, i, panel, N = 0
    cdef Py_ssize_t packed_size = 0, thread_size = 0, gathered = 0
    cdef const int *to_gather = NULL
    if total == NULL:
        to_gather = tokens
    first_panel[0] = 0
    for i in range(n_products):
        N += products[i].N
    for i in range(n_products):
        rows[i] = linear_panel_rows(products[i].core, N, n_threads)
        first_panel[i + 1] = first_panel[i] + (products[i].N + rows[i] - 1) // rows[i]
        thread_size = max(thread_size, products[i].core.forward_scratch(TOKENS_AT_ONCE))
    n = fill_part(part, begin, E, &expert, &row)
    while n:
        packed_size = max(packed_size, place_packed_x(part, n, products, n_products, K, NULL))
        gathered = max(gathered, rows_of_part(part, n))
        n = fill_part(part, begin, E, &expert, &row)
    gathered = (gathered * (N if total != NULL else K) + 15) // 16 * 16
    cdef float *scratch = <float *>scratch_get(sizeof(float) * (gathered + packed_size + n_threads * thread_size))
    if scratch == NULL:
        raise MemoryError("experts_forward: no memory for packed activations")
    expert, row = 0, 0
    n = fill_part(part, begin, E, &expert, &row)
    while n:
        place_packed_x(part, n, products, n_products, K, scratch + gathered)
        for s in prange(n, nogil=True, schedule="dynamic", chunksize=1, num_threads=n_threads if n > 1 else 1):
            pack_segment(&part[s], n_products, x, K, to_gather, scratch)
        for panel in prange(first_panel[n_products], nogil=True, schedule="dynamic", chunksize=1,
                            num_threads=n_threads):
            expert_panel(products, first_panel, rows, panel, part, n, K, ys, total, scale, tokens, scratch,
                         scratch + gathered + packed_size + threadid() * thread_size)
        n = fill_part(part, begin, E, &expert, &row)
    return 0


cdef void pack_segment(const segment *s, int n_products, const float *x, int K, const int *tokens,
                       float *gathered) noexcept nogil:
    """Packs the segment's rows of x; with `tokens` those of its tokens, which are gathered first."""
    cdef int r, i, tile
    x += <Py_ssize_t>s.row * K if tokens == NULL else 0
    if tokens != NULL:
        gathered += <Py_ssize_t>s.at * K
        for r in range(s.n):
            memcpy(gathered + <Py_ssize_t>r * K, x + <Py_ssize_t>tokens[s.row + r] * K, sizeof(float) * K)
        x = gathered
    for i in range(n_products):
        if i > 0 and s.packed[i] == s.packed[0]:
            continue
        for tile in range((s.n + s.core[i].token_tile - 1) // s.core[i].token_tile):
            s.core[i].pack_x(s.packed[i], x, s.n, K, tile)


cdef void expert_panel(const expert_product *products, const int *first_panel, const int *rows, int panel,
                       const segment *part, int n, int K, float **ys, float *total, const float *scale,
                       const int *tokens, float *buffer, float *scratch) noexcept nogil:
    """Panel `panel` of the products' panels, of all segments: columns of ys, or added to those of the total."""
    cdef projection p
    cdef const expert_product *product
    cdef const segment *of
    cdef const float *bias
    cdef int i = 0, n0, n_rows, s
    while panel >= first_panel[i + 1]:
        i += 1
    product = &products[i]
    n0 = (panel - first_panel[i]) * rows[i]
    n_rows = min(rows[i], product.N - n0)
    p.row_bytes, p.type, p.N, p.residual, p.R = product.row_bytes, product.type, product.N, NULL, 0
    for s in range(n):
        of = &part[s]
        p.core, p.packed = of.core[i], of.packed[i]
        p.weight = product.weight + of.expert * product.expert_bytes
        p.y = (ys[i] + <Py_ssize_t>of.row * p.N) if total == NULL else buffer + <Py_ssize_t>of.at * p.N
        p.core.forward_panel(&p, p.packed, of.n, K, n0, n_rows, scratch)
        bias = product.bias
        if bias != NULL:
            bias += <Py_ssize_t>of.expert * p.N + n0
        finish_segment(p.y + n0, of, n_rows, p.N, bias, total + n0 if total != NULL else total, scale, tokens)


cdef void finish_segment(float *y, const segment *s, int n_rows, int N, const float *bias, float *total,
                         const float *scale, const int *tokens) noexcept nogil:
    """Some columns of a segment's y (rows of N): adds the bias, and with `total` puts them, scaled, to their tokens."""
    cdef int r, j
    cdef float *out
    for r in range(s.n):
        if bias != NULL:
            for j in range(n_rows):
                y[j] += bias[j]
        if total != NULL:
            out = total + <Py_ssize_t>tokens[s.row + r] * N
            for j in range(n_rows):
                out[j] += scale[s.row + r] * y[j]
        y += N


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
    n = fill_part(part, begin, E, &expert, &row)
    while n:
        for i in range(n_products):
            packed_size = max(packed_size, place_packed_dy(part, n, &products[i], NULL))
        gathered = max(gathered, rows_of_part(part, n))
        n = fill_part(part, begin, E, &expert, &row)
    gathered = (gathered * (products[0].N if is_sum else K) + 15) // 16 * 16
    cdef float *scratch = <float *>scratch_get(sizeof(float) * (gathered + packed_size + n_threads * thread_size))
    if scratch == NULL:
        raise MemoryError("experts_backward: no memory for packed gradients")
    expert, row = 0, 0
    n = fill_part(part, begin, E, &expert, &row)
    while n:
        with nogil:
            for i in range(n_products):
                place_packed_dy(part, n, &products[i], scratch + gathered)
                backward_part(dx, K, dys[i], products, i, n_products, part, n, tokens, is_sum, scratch,
                              scratch + gathered + packed_size, thread_size, n_threads)
        n = fill_part(part, begin, E, &expert, &row)
    return 0


cdef void backward_part(float *dx, int K, const float *dy, const expert_product *products, int index, int n_products,
                        const segment *part, int n, const int *tokens, bint is_sum, float *buffer, float *scratch,
                        Py_ssize_t thread_size, int n_threads) noexcept nogil:
    """dx of one product, for all segments: slices of columns are dealt out to threads."""
    cdef const expert_product *product = &products[index]
    cdef int columns = linear_slice_columns(product.core, K, ggml_formats[product.type].block_size, n_threads)
    cdef int chunk, chunks = (product.N + DY_COLUMNS - 1) // DY_COLUMNS, slice, s, is_first, is_last
    for chunk in range(chunks):
        for s in prange(n, schedule="dynamic", chunksize=1, num_threads=n_threads if n > 1 else 1):
            pack_dy_of_segment(&part[s], product, dy, tokens, is_sum, chunk, buffer)
        is_first, is_last = index == 0 and chunk == 0, index == n_products - 1 and chunk == chunks - 1
        for slice in prange((K + columns - 1) // columns, schedule="dynamic", chunksize=1, num_threads=n_threads):
            expert_slice(dx, K, dy, product, part, n, tokens, is_sum, chunk, slice * columns,
                         min(columns, K - slice * columns), is_first, is_last, buffer,
                         scratch + threadid() * thread_size)


cdef void pack_dy_of_segment(const segment *s, const expert_product *product, const float *dy, const int *tokens,
                             bint is_sum, int chunk, float *gathered) noexcept nogil:
    cdef int n0 = chunk * DY_COLUMNS, r, tile, N = product.N
    if is_sum:
        gathered += <Py_ssize_t>s.at * N
        if chunk == 0:
            for r in range(s.n):
                memcpy(gathered + <Py_ssize_t>r * N, dy + <Py_ssize_t>tokens[s.row + r] * N, sizeof(float) * N)
        dy = gathered
    else:
        dy += <Py_ssize_t>s.row * N
    if product.core.pack_dy != NULL:
        for tile in range((s.n + product.core.token_tile - 1) // product.core.token_tile):
            product.core.pack_dy(s.packed[0], dy, s.n, N, n0, min(DY_COLUMNS, N - n0), tile)


cdef void expert_slice(float *dx, int K, const float *dy, const expert_product *product, const segment *part, int n,
                       const int *tokens, bint is_sum, int chunk, int k0, int n_columns, bint is_first, bint is_last,
                       float *buffer, float *scratch) noexcept nogil:
    """Columns k0 .. of dx of all segments, from a chunk of dy: in place, or in the buffer until the last one."""
    cdef projection p
    cdef int s, r, j, n0 = chunk * DY_COLUMNS
    cdef const segment *of
    cdef float *rows
    cdef float *out
    p.core, p.row_bytes, p.type, p.N, p.R = product.core, product.row_bytes, product.type, product.N, 0
    for s in range(n):
        of = &part[s]
        rows = dx + <Py_ssize_t>of.row * K if is_sum else buffer + <Py_ssize_t>of.at * K
        p.weight = product.weight + of.expert * product.expert_bytes
        p.dy = dy + <Py_ssize_t>of.row * p.N
        if is_sum:
            p.dy = buffer + <Py_ssize_t>of.at * p.N
        if is_first:
            linear_clear(rows, K, k0, n_columns, 0, of.n)
        p.core.backward_slice(rows, K, &p, of.packed[0], of.n, n0, min(DY_COLUMNS, p.N - n0), k0, n_columns,
                              0, of.n, scratch)
        if is_last and not is_sum:
            for r in range(of.n):
                out = dx + <Py_ssize_t>tokens[of.row + r] * K
                for j in range(k0, k0 + n_columns):
                    out[j] += rows[<Py_ssize_t>r * K + j]


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
                packed = max(packed, segments * packed_dy(core, n, N))
                packed = max(packed, 2 * segments * (core if n > 4 else few).packed_x(n, K))
            largest = max(largest, packed + n_threads * max(core.forward_scratch(rows), core.backward_scratch(rows)))
    return sizeof(float) * (largest + rows * max(N, K) + 16)
