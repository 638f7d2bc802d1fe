"""Products with frozen weights of any GGML type: y = x Wᵀ and dx += dy W, each with a rank-R update.

The weights are read where they lie, in the mapping of the model file, and unpacked a panel at a time in cache (gemm.h).
"""
from cython.parallel cimport prange, threadid
from libc.stdint cimport uint8_t

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
        float *y
        const float *residual
        const float *dy
        int R
        const float *c
        const float *v
    int TOKENS_AT_ONCE
    int DY_COLUMNS
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

PRECISIONS = ("float32", "int16", "int8")
"""What activations and gradients can be rounded to before they meet quantised weights: by the numbers of linear.h."""


cdef class Weight:
    """A frozen matrix W (N, K), as it lies in the file.

    data       uint8 (N, bytes a row), C-contiguous, may be read-only
    type       ggml type id of its blocks
    K          values a row
    precision  one of PRECISIONS: what products with it round the other side to. F32, F16 and BF16 always take float32
    Raises ValueError when the type is not trainable, the row length doesn't fit K, or the precision has no such name.
    """
    cdef readonly int N, K, type
    cdef int precision
    cdef const uint8_t[:, ::1] data

    def __init__(self, const uint8_t[:, ::1] data not None, int type, int K, str precision="int16"):
        if precision not in PRECISIONS:
            raise ValueError(f"Weight: precision is '{precision}', wanted one of {', '.join(PRECISIONS)}")
        if not ggml_is_known(type):
            raise ValueError(f"Weight: ggml type {type} has no kernel")
        cdef int block = ggml_formats[type].block_size
        if K % block or data.shape[1] != K // block * ggml_formats[type].type_size:
            raise ValueError(f"Weight: rows of {data.shape[1]} bytes do not hold {K} values of ggml type {type}")
        self.data, self.type, self.N, self.K = data, type, data.shape[0], K
        self.precision = PRECISIONS.index(precision)

    @property
    def arithmetic(self):
        """What products of more than a few tokens are made of: the precision, unless the type or this processor gains
        nothing from it."""
        return linear_core(self.type, self.precision).arithmetic.decode()


cdef int check(name, argument, got, wanted) except -1:
    if tuple(got) != tuple(wanted):
        raise ValueError(f"{name}: {argument} has shape {tuple(got)}, wanted {tuple(wanted)}")
    return 0


cdef int set_projection(projection *p, name, Weight w, Py_ssize_t T, Py_ssize_t update_width, low_rank) except -1:
    """Fills in the weight and its rank-R update (c (T, R), v (R, update_width)), or None."""
    cdef const float[:, ::1] c, v
    p.weight, p.row_bytes, p.type, p.N = &w.data[0, 0], w.data.shape[1], w.type, w.N
    p.residual, p.dy, p.y, p.R = NULL, NULL, NULL, 0
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
                    bint accumulate, int n_threads):
    """dx += sum_i (dy_i W_i + c_i v_i): differentiates y_i = x W_iᵀ + ... with respect to x.

    dx         float32 (T, K), accumulated; or OUT, overwritten, where accumulate is false (nobody else reads x)
    dys        list of float32 (T, N_i)
    weights    list of Weight (N_i, K)
    low_rank   list of None or (c (T, R), v (R, K)), float32: LoRA's path with c = s·dy Bᵀ (lora.pyx) and v = A
    Raises ValueError for a shape that does not fit, MemoryError. Twin: lorafast.reference.linear.
    """
    cdef projection p[MAX_PROJECTIONS]
    cdef int T = dx.shape[0], K = dx.shape[1], n = len(weights), i, tokens = min(T, TOKENS_AT_ONCE)
    cdef Py_ssize_t packed_size = 0, thread_size = 0
    cdef const float[:, ::1] dy
    if not 0 < n <= MAX_PROJECTIONS or len(dys) != n or len(low_rank) != n:
        raise ValueError(f"linear_backward: {len(dys)} gradients, {n} weights and {len(low_rank)} low-rank updates")
    for i in range(n):
        if (<Weight?>weights[i]).K != K:
            raise ValueError(f"linear_backward: dx has shape {(T, K)}, weight {i} wants K = {(<Weight>weights[i]).K}")
        dy = dys[i]
        check("linear_backward", f"dy {i}", (dy.shape[0], dy.shape[1]), (T, (<Weight>weights[i]).N))
        set_projection(&p[i], "linear_backward", weights[i], T, K, low_rank[i])
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
        raise MemoryError("linear_backward: no memory for packed gradients")
    for t0 in range(0, T, TOKENS_AT_ONCE):
        tokens = min(T - t0, TOKENS_AT_ONCE)
        with nogil:
            for i in range(n):
                backward_projection(&dx[t0, 0], K, p, n, i, tokens, accumulate, packed, packed + packed_size,
                                    thread_size, n_threads)
        for i in range(n):      # on to the next tokens
            p[i].dy += <Py_ssize_t>tokens * p[i].N
            p[i].c += <Py_ssize_t>tokens * p[i].R


cdef Py_ssize_t packed_dy(const gemm_core *core, int T, int N) noexcept nogil:
    """Floats of packed dy; 0 where a core takes it as it lies."""
    return core.packed_dy(T, min(N, DY_COLUMNS)) if core.packed_dy != NULL else 0


cdef void backward_projection(float *dx, int K, projection *all, int n, int index, int T, bint accumulate,
                              float *packed, float *scratch, Py_ssize_t thread_size, int n_threads) noexcept nogil:
    """dx (T, K) += dy W of projection `index` of n: slices of columns are dealt out to threads.

    The first projection clears dx before, unless it accumulates, and the last one adds the rank-R updates of all, each
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
                p.core.pack_dy(packed, p.dy, T, p.N, n0, width, tile)
        for item in prange(slices * pieces, num_threads=n_threads, schedule="dynamic", chunksize=1):
            k0 = item % slices * columns
            n_columns = min(columns, K - k0)
            t0 = item // slices * piece
            t1 = min(T, t0 + piece)
            if index == 0 and chunk == 0 and not accumulate:
                linear_clear(dx, K, k0, n_columns, t0, t1)
            p.core.backward_slice(dx, K, p, packed, T, n0, width, k0, n_columns, t0, t1,
                                  scratch + threadid() * thread_size)
            if index == n - 1 and chunk == chunks - 1:
                linear_add_low_rank(dx, K, all, n, k0, n_columns, t0, t1)


def linear_scratch_bytes(int T, int K, int N, int n_threads):
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
