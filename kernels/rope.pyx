"""Rotary position embedding (Su et al., RoFormer, 2021): pairs of a head's values, rotated by angles that grow with the
position. The angles come as tables, from lorafast.network.rope_tables.

Backward is the same rotation by the opposite angles: a rotation R is orthogonal, so dx = Rᵀ dy is forward with -sin.
"""
from cython.parallel cimport prange

from parallel cimport threads_for_rows
from shapes cimport require_1d, require_2d, require_range

ctypedef void (*row_type)(float *y, const float *x, const float *cos, const float *sin, Py_ssize_t n_head, Py_ssize_t D,
                          Py_ssize_t n_rot, bint interleaved) noexcept nogil

cdef extern from *:
    """
    #include "simd.h"
    #define SIMD_BODY "rope_body.h"
    #include "simd_foreach.h"
    """
    row_type rope_forward_row "DISPATCH(rope_forward_row)"


def rope_forward(float[:, ::1] y not None, const float[:, ::1] x not None, const float[:, ::1] cos not None,
                 const float[:, ::1] sin not None, const int[::1] positions not None, int n_head, bint interleaved,
                 int n_threads):
    """For each pair (a, b) of each head of y[t], with the angle θ_j of position positions[t]:

    y_a = x_a cos θ_j - x_b sin θ_j
    y_b = x_a sin θ_j + x_b cos θ_j

    (a, b) = (2j, 2j + 1) when interleaved (GGUF `llama`), else (j, j + n_rot / 2) (NeoX: Qwen, Gemma), j < n_rot / 2.
    Values of a head beyond n_rot are copied. Backward: y = dx, x = dy, and -sin in the place of sin.

    y            float32 (T, n_head · D), OUT; may be x itself, which is then rotated in place
    x            float32 (T, n_head · D)
    cos, sin     float32 (n_positions, n_rot / 2): tables by position, n_rot <= D
    positions    int32 (T,), each in 0 .. n_positions - 1
    Raises ValueError for a shape or position that does not fit. Twin: lorafast.reference.rope.
    """
    cdef Py_ssize_t T = x.shape[0], width = x.shape[1], n_positions = cos.shape[0], n_rot = 2 * cos.shape[1], t
    cdef Py_ssize_t D = width // n_head if n_head > 0 else 0
    if n_head < 1 or D * n_head != width or n_rot > D:
        raise ValueError(f"rope_forward: x has shape ({T}, {width}), wanted {n_head} heads of at least {n_rot} values "
                         "in a row")
    require_2d("rope_forward", "y", y.shape, T, width)
    require_2d("rope_forward", "sin", sin.shape, n_positions, cos.shape[1])
    require_1d("rope_forward", "positions", positions.shape, T)
    if T == 0:
        return
    require_range("rope_forward", "positions", &positions[0], T, 0, n_positions)
    cdef row_type row = rope_forward_row
    cdef int threads = threads_for_rows(T, 2 * width, n_threads)
    for t in prange(T, nogil=True, num_threads=threads, schedule="static"):
        row(&y[t, 0], &x[t, 0], &cos[positions[t], 0], &sin[positions[t], 0], n_head, D, n_rot, interleaved)
