"""DoRA's gain of each output of a linear layer (Liu et al., DoRA, 2024): y = g · z with g = m / c.

m is the trained magnitude, z = x Vᵀ the product with V = W + s·B A, and c the norm of V's row, a constant for the
gradient.
"""
from cython.parallel cimport prange

from parallel cimport threads_for_rows
from shapes cimport require_1d, require_2d

ctypedef void (*row_type)(float *y, float *out, const float *z, const float *gain, const float *residual,
                          Py_ssize_t N) noexcept nogil
ctypedef void (*columns_type)(float *dz, float *dm, const float *dy, const float *y, const float *m, const float *gain,
                              Py_ssize_t T, Py_ssize_t N, Py_ssize_t n) noexcept nogil

cdef extern from *:
    """
    #include "simd.h"
    #define DORA_COLUMNS 256         /* columns that a thread owns at a time: 1 KB of every row */
    #define SIMD_BODY "dora_body.h"
    #include "simd_foreach.h"
    """
    const Py_ssize_t COLUMNS "DORA_COLUMNS"
    row_type dora_row "DISPATCH(dora_row)"
    columns_type dora_backward_columns "DISPATCH(dora_backward_columns)"


def dora_forward(float[:, ::1] y not None, float[:, ::1] out, const float[:, ::1] z not None,
                 const float[::1] gain not None, const float[:, ::1] residual, int n_threads):
    """y = gain · z, saved for backward, and out = residual + y where there is a residual.

    y         float32 (T, N), OUT; may be z itself
    out       float32 (T, N), OUT; None without a residual
    z         float32 (T, N)
    gain      float32 (N,)
    residual  float32 (T, N) or None
    Raises ValueError for a shape that does not fit. Twin: lorafast.reference.dora.
    """
    cdef Py_ssize_t T = z.shape[0], N = z.shape[1], t
    require_2d("dora_forward", "y", y.shape, T, N)
    require_1d("dora_forward", "gain", gain.shape, N)
    if (out is None) != (residual is None):
        raise ValueError("dora_forward: out is wanted where there is a residual, and only there")
    if residual is not None:
        require_2d("dora_forward", "out", out.shape, T, N)
        require_2d("dora_forward", "residual", residual.shape, T, N)
    cdef row_type row = dora_row
    cdef bint adds = residual is not None
    for t in prange(T, nogil=True, num_threads=threads_for_rows(T, 3 * N, n_threads), schedule="static"):
        row(&y[t, 0], &out[t, 0] if adds else NULL, &z[t, 0], &gain[0], &residual[t, 0] if adds else NULL, N)


def dora_backward(float[:, ::1] dz not None, float[::1] dm not None, const float[:, ::1] dy not None,
                  const float[:, ::1] y not None, const float[::1] m not None, const float[::1] gain not None,
                  int n_threads):
    """Differentiates y = gain · z with gain = m / c, c constant:

    dz  = gain · dy
    dm += sum_t dy[t] · y[t] / m      where m is not 0: a row of zeros has no direction that a magnitude could lengthen

    dz     float32 (T, N), OUT; may be y itself
    dm     float32 (N,), accumulated
    dy     float32 (T, N)
    y      float32 (T, N), saved by forward
    m      float32 (N,)
    gain   float32 (N,), as in forward
    Raises ValueError for a shape that does not fit. Twin: lorafast.reference.dora.
    """
    cdef Py_ssize_t T = dy.shape[0], N = dy.shape[1], n
    require_2d("dora_backward", "dz", dz.shape, T, N)
    require_1d("dora_backward", "dm", dm.shape, N)
    require_2d("dora_backward", "y", y.shape, T, N)
    require_1d("dora_backward", "m", m.shape, N)
    require_1d("dora_backward", "gain", gain.shape, N)
    if T == 0:
        return
    cdef columns_type columns = dora_backward_columns
    for n in prange(0, N, COLUMNS, nogil=True, num_threads=threads_for_rows(T, 3 * N, n_threads), schedule="static"):
        columns(&dz[0, n], &dm[n], &dy[0, n], &y[0, n], &m[n], &gain[n], T, N, min(COLUMNS, N - n))
