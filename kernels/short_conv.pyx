"""Short causal convolutions over each column (depthwise), gated or with an activation.

    v[t] = Σ_j taps[K - 1 - j] · u[t - j],  j < K,  u being 0 before the first row of a sequence

Sequences follow one another, from begin[i] to begin[i + 1], and do not see each other. The taps are frozen. A thread
owns some columns of a sequence: a convolution's terms always come in the same order.

Sources: Liquid AI, LFM2 (2025), gated; Yang et al., Gated Delta Networks, arXiv 2412.06464, with SiLU.
"""
from cython.parallel cimport prange

from parallel cimport threads_for
from shapes cimport require_2d

ctypedef void (*gated_type)(float *y, const float *b, const float *c, const float *x, const float *taps, Py_ssize_t T,
                            Py_ssize_t C, Py_ssize_t n, int K) noexcept nogil
ctypedef void (*gated_backward_type)(float *db, float *dc, float *dx, const float *dy, const float *b, const float *c,
                                     const float *x, const float *taps, Py_ssize_t T, Py_ssize_t C, Py_ssize_t n,
                                     int K) noexcept nogil
ctypedef void (*silu_type)(float *y, const float *x, const float *taps, Py_ssize_t T, Py_ssize_t C, Py_ssize_t n,
                           int K) noexcept nogil
ctypedef void (*silu_backward_type)(float *dx, const float *dy, const float *x, const float *taps, Py_ssize_t T,
                                    Py_ssize_t C, Py_ssize_t n, int K) noexcept nogil

cdef extern from "short_conv.h":
    const Py_ssize_t COLUMNS "CONV_COLUMNS"
    const Py_ssize_t FEWEST "CONV_FEWEST"
    const int MAX_WIDTH "CONV_MAX_WIDTH"
    gated_type gated_columns "DISPATCH(gated_conv_columns)"
    gated_backward_type gated_backward_columns "DISPATCH(gated_conv_backward_columns)"
    silu_type silu_columns "DISPATCH(silu_conv_columns)"
    silu_backward_type silu_backward_columns "DISPATCH(silu_conv_backward_columns)"


cdef Py_ssize_t columns_at_a_time(Py_ssize_t C, int threads):
    """Long pieces of rows are read quickest; but each thread should have some of a sequence. The results do not depend
    on it."""
    cdef Py_ssize_t share = (C + threads - 1) // threads
    return min(COLUMNS, max(FEWEST, (share + FEWEST - 1) // FEWEST * FEWEST))


cdef int check(const char *op, const float[:, ::1] x, const float[:, ::1] taps, const int[::1] begin) except -1:
    """What all have in common."""
    cdef Py_ssize_t i, T = x.shape[0]
    require_2d(op, "taps", taps.shape, taps.shape[0], x.shape[1])
    if not 1 <= taps.shape[0] <= MAX_WIDTH:
        raise ValueError(f"{op.decode()}: taps has {taps.shape[0]} rows, wanted 1 to {MAX_WIDTH}")
    if begin.shape[0] < 1 or begin[0] != 0 or begin[begin.shape[0] - 1] != T:
        raise ValueError(f"{op.decode()}: begin does not go from 0 to {T}, wanted the first row of each sequence, and "
                         "the number of all rows")
    for i in range(begin.shape[0] - 1):
        if begin[i] > begin[i + 1]:
            raise ValueError(f"{op.decode()}: begin[{i + 1}] is {begin[i + 1]}, wanted at least {begin[i]}")
    return 0


def gated_conv_forward(float[:, ::1] y not None, const float[:, ::1] b not None, const float[:, ::1] c not None,
                       const float[:, ::1] x not None, const float[:, ::1] taps not None,
                       const int[::1] begin not None, int n_threads):
    """y = c · v, v being the convolution of u = b · x.

    y        float32 (T, C), OUT
    b, c, x  float32 (T, C)
    taps     float32 (K, C), the oldest first, K at most 16
    begin    int32 (n_seq + 1,): where each sequence begins, from 0 to T
    Raises ValueError for a shape that does not fit. Twin: lorafast.reference.short_conv.
    """
    cdef Py_ssize_t T = x.shape[0], C = x.shape[1], i, at, column
    check("gated_conv_forward", x, taps, begin)
    require_2d("gated_conv_forward", "y", y.shape, T, C)
    require_2d("gated_conv_forward", "b", b.shape, T, C)
    require_2d("gated_conv_forward", "c", c.shape, T, C)
    if not T * C:
        return
    cdef gated_type columns = gated_columns
    cdef int threads = threads_for(4 * T * C, n_threads), K = taps.shape[0]
    cdef Py_ssize_t wide = columns_at_a_time(C, threads), n_blocks = (C + wide - 1) // wide
    for i in prange((begin.shape[0] - 1) * n_blocks, nogil=True, num_threads=threads, schedule="static"):
        at, column = begin[i // n_blocks] * C + i % n_blocks * wide, i % n_blocks * wide
        columns(&y[0, 0] + at, &b[0, 0] + at, &c[0, 0] + at, &x[0, 0] + at, &taps[0, column],
                begin[i // n_blocks + 1] - begin[i // n_blocks], C, min(wide, C - column), K)


def gated_conv_backward(float[:, ::1] db not None, float[:, ::1] dc not None, float[:, ::1] dx not None,
                        const float[:, ::1] dy not None, const float[:, ::1] b not None, const float[:, ::1] c not None,
                        const float[:, ::1] x not None, const float[:, ::1] taps not None,
                        const int[::1] begin not None, int n_threads):
    """Differentiates y[t] = c[t] · v[t], v[t] = Σ_j taps[K - 1 - j] · u[t - j], u = b · x:

    du[t] = Σ_j taps[K - 1 - j] · dy[t + j] · c[t + j], within the sequence
    db = du · x,  dx = du · b,  dc = dy · v

    db, dc, dx  float32 (T, C), OUT; they may be b, c and x themselves, or one of them dy
    dy          float32 (T, C)
    b, c, x, taps, begin  as in forward
    Raises ValueError for a shape that does not fit. Twin: lorafast.reference.short_conv.
    """
    cdef Py_ssize_t T = x.shape[0], C = x.shape[1], i, at, column
    check("gated_conv_backward", x, taps, begin)
    require_2d("gated_conv_backward", "db", db.shape, T, C)
    require_2d("gated_conv_backward", "dc", dc.shape, T, C)
    require_2d("gated_conv_backward", "dx", dx.shape, T, C)
    require_2d("gated_conv_backward", "dy", dy.shape, T, C)
    require_2d("gated_conv_backward", "b", b.shape, T, C)
    require_2d("gated_conv_backward", "c", c.shape, T, C)
    if not T * C:
        return
    cdef gated_backward_type columns = gated_backward_columns
    cdef int threads = threads_for(7 * T * C, n_threads), K = taps.shape[0]
    cdef Py_ssize_t wide = columns_at_a_time(C, threads), n_blocks = (C + wide - 1) // wide
    for i in prange((begin.shape[0] - 1) * n_blocks, nogil=True, num_threads=threads, schedule="static"):
        at, column = begin[i // n_blocks] * C + i % n_blocks * wide, i % n_blocks * wide
        columns(&db[0, 0] + at, &dc[0, 0] + at, &dx[0, 0] + at, &dy[0, 0] + at, &b[0, 0] + at, &c[0, 0] + at,
                &x[0, 0] + at, &taps[0, column], begin[i // n_blocks + 1] - begin[i // n_blocks], C,
                min(wide, C - column), K)


def silu_conv_forward(float[:, ::1] y not None, const float[:, ::1] x not None, const float[:, ::1] taps not None,
                      const int[::1] begin not None, int n_threads):
    """y = silu(v), v being the convolution of x, silu(v) = v σ(v).

    y      float32 (T, C), OUT
    x      float32 (T, C)
    taps, begin  as in gated_conv_forward
    Raises ValueError for a shape that does not fit. Twin: lorafast.reference.short_conv.
    """
    cdef Py_ssize_t T = x.shape[0], C = x.shape[1], i, at, column
    check("silu_conv_forward", x, taps, begin)
    require_2d("silu_conv_forward", "y", y.shape, T, C)
    if not T * C:
        return
    cdef silu_type columns = silu_columns
    cdef int threads = threads_for(2 * T * C, n_threads), K = taps.shape[0]
    cdef Py_ssize_t wide = columns_at_a_time(C, threads), n_blocks = (C + wide - 1) // wide
    for i in prange((begin.shape[0] - 1) * n_blocks, nogil=True, num_threads=threads, schedule="static"):
        at, column = begin[i // n_blocks] * C + i % n_blocks * wide, i % n_blocks * wide
        columns(&y[0, 0] + at, &x[0, 0] + at, &taps[0, column], begin[i // n_blocks + 1] - begin[i // n_blocks], C,
                min(wide, C - column), K)


def silu_conv_backward(float[:, ::1] dx not None, const float[:, ::1] dy not None, const float[:, ::1] x not None,
                       const float[:, ::1] taps not None, const int[::1] begin not None, int n_threads):
    """Differentiates y = silu(v), v[t] = Σ_j taps[K - 1 - j] · x[t - j]:

    dv = dy · σ(v) (1 + v (1 - σ(v))),  dx[t] = Σ_j taps[K - 1 - j] · dv[t + j], within the sequence

    dx  float32 (T, C), OUT; may be x itself
    dy  float32 (T, C)
    x, taps, begin  as in forward
    Raises ValueError for a shape that does not fit. Twin: lorafast.reference.short_conv.
    """
    cdef Py_ssize_t T = x.shape[0], C = x.shape[1], i, at, column
    check("silu_conv_backward", x, taps, begin)
    require_2d("silu_conv_backward", "dx", dx.shape, T, C)
    require_2d("silu_conv_backward", "dy", dy.shape, T, C)
    if not T * C:
        return
    cdef silu_backward_type columns = silu_backward_columns
    cdef int threads = threads_for(3 * T * C, n_threads), K = taps.shape[0]
    cdef Py_ssize_t wide = columns_at_a_time(C, threads), n_blocks = (C + wide - 1) // wide
    for i in prange((begin.shape[0] - 1) * n_blocks, nogil=True, num_threads=threads, schedule="static"):
        at, column = begin[i // n_blocks] * C + i % n_blocks * wide, i % n_blocks * wide
        columns(&dx[0, 0] + at, &dy[0, 0] + at, &x[0, 0] + at, &taps[0, column],
                begin[i // n_blocks + 1] - begin[i // n_blocks], C, min(wide, C - column), K)
