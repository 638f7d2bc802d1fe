"""LoRA's own products (Hu et al., LoRA, 2021): y = x Wᵀ + h B with h = s·x Aᵀ.

A is (R, K) and B is stored as (R, N), so both are R long rows. What is left to linear.pyx is adding h B to y, and c A
to dx.
"""
from cython.parallel cimport prange

from parallel cimport threads_for
from shapes cimport require_2d

ctypedef void (*project_row_type)(float *h, const float *x, const float *V,
                                  Py_ssize_t R, Py_ssize_t J, float scale) noexcept nogil
ctypedef void (*outer_columns_type)(float *dV, const float *c, const float *u, Py_ssize_t T, Py_ssize_t R,
                                    Py_ssize_t J, Py_ssize_t j0, Py_ssize_t n) noexcept nogil

cdef extern from *:
    """
    #include "simd.h"
    #define SIMD_BODY "lora_body.h"
    #include "simd_foreach.h"
    """
    project_row_type lora_project_row "DISPATCH(lora_project_row)"
    outer_columns_type lora_outer_columns "DISPATCH(lora_outer_columns)"

cdef enum:
    COLUMNS = 64            # of dA or dB that a thread owns at a time


def lora_forward(float[:, ::1] h not None, const float[:, ::1] x not None, const float[:, ::1] A not None, float scale,
                 int n_threads):
    """h = scale · x Aᵀ.

    h      float32 (T, R), OUT, saved for backward
    x      float32 (T, K)
    A      float32 (R, K)
    scale  s = alpha / r
    Raises ValueError for a shape that does not fit. Twin: lorafast.reference.lora.
    """
    cdef Py_ssize_t T = x.shape[0], K = x.shape[1], R = A.shape[0]
    require_2d("lora_forward", "h", h.shape, T, R)
    require_2d("lora_forward", "A", A.shape, R, K)
    if T and R:
        project(h, x, A, scale, n_threads)


def lora_backward(float[:, ::1] c not None, float[:, ::1] dA not None, float[:, ::1] dB not None,
                  const float[:, ::1] dy not None, const float[:, ::1] x not None, const float[:, ::1] B not None,
                  const float[:, ::1] h not None, float scale, int n_threads):
    """Differentiates y = ... + h B with h = scale · x Aᵀ:

    c   = scale · dy Bᵀ      (so that dx += c A, which linear_backward adds)
    dA += cᵀ x
    dB += hᵀ dy

    c      float32 (T, R), OUT
    dA     float32 (R, K), accumulated
    dB     float32 (R, N), accumulated
    dy     float32 (T, N)
    x      float32 (T, K), as in forward
    B      float32 (R, N)
    h      float32 (T, R), saved by forward
    scale  as in forward
    Raises ValueError for a shape that does not fit. Twin: lorafast.reference.lora.
    """
    cdef Py_ssize_t T = x.shape[0], K = x.shape[1], N = dy.shape[1], R = B.shape[0]
    require_2d("lora_backward", "c", c.shape, T, R)
    require_2d("lora_backward", "dA", dA.shape, R, K)
    require_2d("lora_backward", "dB", dB.shape, R, N)
    require_2d("lora_backward", "dy", dy.shape, T, N)
    require_2d("lora_backward", "B", B.shape, R, N)
    require_2d("lora_backward", "h", h.shape, T, R)
    if T and R:
        project(c, dy, B, scale, n_threads)
        outer(dA, c, x, n_threads)
        outer(dB, h, dy, n_threads)


cdef void project(float[:, ::1] h, const float[:, ::1] x, const float[:, ::1] V, float scale, int n_threads):
    cdef project_row_type row = lora_project_row
    cdef Py_ssize_t T = x.shape[0], J = x.shape[1], R = V.shape[0], t
    for t in prange(T, nogil=True, num_threads=threads_for(T * J, n_threads), schedule="static"):
        row(&h[t, 0], &x[t, 0], &V[0, 0], R, J, scale)


cdef void outer(float[:, ::1] dV, const float[:, ::1] c, const float[:, ::1] u, int n_threads):
    cdef outer_columns_type columns = lora_outer_columns
    cdef Py_ssize_t T = u.shape[0], J = u.shape[1], R = c.shape[1], i
    for i in prange((J + COLUMNS - 1) // COLUMNS, nogil=True, num_threads=threads_for(T * J, n_threads),
                    schedule="static"):
        columns(&dV[0, 0], &c[0, 0], &u[0, 0], T, R, J, i * COLUMNS, min(<Py_ssize_t>COLUMNS, J - i * COLUMNS))
