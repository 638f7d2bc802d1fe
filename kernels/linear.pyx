# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Products with frozen weights of any GGML type: y = x Wᵀ and dx += dy W, each with a rank-R update.

The weights are read where they lie, in the mapping of the model file, and unpacked a panel at a time in cache (gemm.h).
"""
from cython.parallel cimport prange, threadid
from libc.stdint cimport uint8_t

cdef extern from "linear.h" nogil:
    ctypedef struct projection:
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
    Py_ssize_t linear_packed_x(int T, int K)
    Py_ssize_t linear_packed_dy(int T, int N)
    Py_ssize_t linear_scratch_forward(int T)
    Py_ssize_t linear_scratch_backward(int T)
    int linear_token_tiles(int T)
    int linear_panel_rows(int N, int n_threads)
    int linear_slice_columns(int K, int block, int n_threads)
    void linear_pack_x(float *packed, const float *x, int T, int K, int tile)
    void linear_forward_panel(const projection *p, const float *packed, int T, int K, int n0, int n_rows, float *scratch)
    void linear_pack_dy(float *packed, const projection *p, int T, int n0, int n, int tile)
    void linear_backward_slice(float *dx, int K, const projection *p, const float *packed, int n0, int n, int k0, int n_columns,
                               int t0, int t1, float *scratch)
    void linear_add_low_rank(float *dx, int K, const projection *p, int n_projections, int t0, int t1)
    bint ggml_is_known(int type)
    ctypedef struct ggml_format:
        int block_size, type_size
    ggml_format ggml_formats[]

cdef extern from "scratch.h" nogil:
    void *scratch_get(size_t bytes)

cdef enum:
    MAX_PROJECTIONS = 8


cdef class Weight:
    """A frozen matrix W (N, K), as it lies in the file.

    data   uint8 (N, bytes a row), C-contiguous, may be read-only
    type   ggml type id of its blocks
    K      values a row
    Raises ValueError when the type is not trainable or the row length doesn't fit K.
    """
    cdef readonly int N, K, type
    cdef const uint8_t[:, ::1] data

    def __init__(self, const uint8_t[:, ::1] data not None, int type, int K):
        if not ggml_is_known(type):
            raise ValueError(f"Weight: ggml type {type} has no kernel")
        cdef int block = ggml_formats[type].block_size
        if K % block or data.shape[1] != K // block * ggml_formats[type].type_size:
            raise ValueError(f"Weight: rows of {data.shape[1]} bytes do not hold {K} values of ggml type {type}")
        self.data, self.type, self.N, self.K = data, type, data.shape[0], K


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
    """y_i = x W_iᵀ + c_i v_i (+ residual), for the projections i that share the input x (query, key and value; gate and up).

    ys         list of float32 (T, N_i), OUT
    x          float32 (T, K)
    weights    list of Weight (N_i, K)
    low_rank   list of None or (c (T, R), v (R, N_i)), float32: LoRA's update with c = s·x Aᵀ (lora.pyx) and v = B
    residual   float32 (T, N) or None; only with a single projection
    Raises ValueError for a shape that does not fit, MemoryError. Twin: lorafast.reference.linear.
    """
    cdef projection p[MAX_PROJECTIONS]
    cdef int first_panel[MAX_PROJECTIONS + 1]
    cdef int T = x.shape[0], K = x.shape[1], n = len(weights), i, j
    cdef float[:, ::1] y
    if not 0 < n <= MAX_PROJECTIONS or len(ys) != n or len(low_rank) != n:
        raise ValueError(f"linear_forward: {len(ys)} outputs, {n} weights and {len(low_rank)} low-rank updates")
    for i in range(n):
        if (<Weight?>weights[i]).K != K:
            raise ValueError(f"linear_forward: x has shape {(T, K)}, weight {i} wants K = {(<Weight>weights[i]).K}")
        y = ys[i]
        check("linear_forward", f"y {i}", (y.shape[0], y.shape[1]), (T, (<Weight>weights[i]).N))
        set_projection(&p[i], "linear_forward", weights[i], T, (<Weight>weights[i]).N, low_rank[i])
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

    cdef int tokens = min(T, TOKENS_AT_ONCE), rows, panel, t0, tile, total = 0
    for i in range(n):
        total += p[i].N
    rows = linear_panel_rows(total, n_threads)
    first_panel[0] = 0
    for i in range(n):
        first_panel[i + 1] = first_panel[i] + (p[i].N + rows - 1) // rows
    cdef Py_ssize_t packed_size = linear_packed_x(tokens, K), thread_size = linear_scratch_forward(tokens)
    cdef float *packed = <float *>scratch_get(sizeof(float) * (packed_size + n_threads * thread_size))
    if packed == NULL:
        raise MemoryError("linear_forward: no memory for packed activations")
    cdef float *scratch = packed + packed_size
    for t0 in range(0, T, TOKENS_AT_ONCE):
        tokens = min(T - t0, TOKENS_AT_ONCE)
        with nogil:
            for tile in prange(linear_token_tiles(tokens), num_threads=n_threads, schedule="static"):
                linear_pack_x(packed, &x[t0, 0], tokens, K, tile)
            for panel in prange(first_panel[n], num_threads=n_threads, schedule="dynamic", chunksize=1):
                forward_panel(p, first_panel, panel, rows, packed, tokens, K, scratch + threadid() * thread_size)
        for i in range(n):      # on to the next tokens
            p[i].y += <Py_ssize_t>tokens * p[i].N
            p[i].c += <Py_ssize_t>tokens * p[i].R
            if p[i].residual != NULL:
                p[i].residual += <Py_ssize_t>tokens * p[i].N


cdef void forward_panel(projection *p, int *first_panel, int panel, int rows, float *packed, int T, int K,
                        float *scratch) noexcept nogil:
    cdef int i = 0, n0
    while panel >= first_panel[i + 1]:
        i += 1
    n0 = (panel - first_panel[i]) * rows
    linear_forward_panel(&p[i], packed, T, K, n0, min(rows, p[i].N - n0), scratch)


def linear_backward(float[:, ::1] dx not None, list dys not None, list weights not None, list low_rank not None, int n_threads):
    """dx += sum_i (dy_i W_i + c_i v_i): differentiates y_i = x W_iᵀ + ... with respect to x.

    dx         float32 (T, K), accumulated
    dys        list of float32 (T, N_i)
    weights    list of Weight (N_i, K)
    low_rank   list of None or (c (T, R), v (R, K)), float32: LoRA's path with c = s·dy Bᵀ (lora.pyx) and v = A
    Raises ValueError for a shape that does not fit, MemoryError. Twin: lorafast.reference.linear.
    """
    cdef projection p[MAX_PROJECTIONS]
    cdef int T = dx.shape[0], K = dx.shape[1], n = len(weights), i, block = 1
    cdef const float[:, ::1] dy
    if not 0 < n <= MAX_PROJECTIONS or len(dys) != n or len(low_rank) != n:
        raise ValueError(f"linear_backward: {len(dys)} gradients, {n} weights and {len(low_rank)} low-rank updates")
    cdef int widest = 0
    for i in range(n):
        if (<Weight?>weights[i]).K != K:
            raise ValueError(f"linear_backward: dx has shape {(T, K)}, weight {i} wants K = {(<Weight>weights[i]).K}")
        dy = dys[i]
        check("linear_backward", f"dy {i}", (dy.shape[0], dy.shape[1]), (T, (<Weight>weights[i]).N))
        set_projection(&p[i], "linear_backward", weights[i], T, K, low_rank[i])
        block = max(block, ggml_formats[p[i].type].block_size)
        widest = max(widest, p[i].N)
        if T:
            p[i].dy = &dy[0, 0]
    if T == 0:
        return

    cdef int tokens = min(T, TOKENS_AT_ONCE), columns = linear_slice_columns(K, block, n_threads)
    cdef int slices = (K + columns - 1) // columns, t0, tile, chunk, n0, width, item, pieces, piece
    cdef Py_ssize_t packed_size = linear_packed_dy(tokens, widest), thread_size = linear_scratch_backward(tokens)
    cdef float *packed = <float *>scratch_get(sizeof(float) * (packed_size + n_threads * thread_size))
    if packed == NULL:
        raise MemoryError("linear_backward: no memory for packed gradients")
    cdef float *scratch = packed + packed_size
    for t0 in range(0, T, TOKENS_AT_ONCE):
        tokens = min(T - t0, TOKENS_AT_ONCE)
        pieces = 1              # few slices: deal out tokens too, so that no thread waits (each piece unpacks the weights again)
        while slices * pieces < 3 * n_threads and n_threads > 1 and tokens // pieces >= 128:
            pieces *= 2
        piece = ((tokens + pieces - 1) // pieces + 31) // 32 * 32
        pieces = (tokens + piece - 1) // piece
        with nogil:
            for i in range(n):
                for chunk in range((p[i].N + DY_COLUMNS - 1) // DY_COLUMNS):
                    n0 = chunk * DY_COLUMNS
                    width = min(DY_COLUMNS, p[i].N - n0)
                    for tile in prange(linear_token_tiles(tokens), num_threads=n_threads, schedule="static"):
                        linear_pack_dy(packed, &p[i], tokens, n0, width, tile)
                    for item in prange(slices * pieces, num_threads=n_threads, schedule="dynamic", chunksize=1):
                        linear_backward_slice(&dx[t0, 0], K, &p[i], packed, n0, width, item % slices * columns,
                                              min(columns, K - item % slices * columns), item // slices * piece,
                                              min(tokens, (item // slices + 1) * piece), scratch + threadid() * thread_size)
            for tile in prange((tokens + 31) // 32, num_threads=n_threads, schedule="static"):
                linear_add_low_rank(&dx[t0, 0], K, p, n, tile * 32, min(tokens, tile * 32 + 32))
        for i in range(n):
            p[i].dy += <Py_ssize_t>tokens * p[i].N
            p[i].c += <Py_ssize_t>tokens * p[i].R
