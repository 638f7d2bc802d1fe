"""RMS norm of rows (Zhang and Sennrich, Root Mean Square Layer Normalization, 2019), without a mean or a bias."""
from cython.parallel cimport prange

from parallel cimport threads_for_rows
from shapes cimport require_1d, require_2d

ctypedef float (*row_type)(float *y, const float *x, const float *gain, Py_ssize_t C, float eps) noexcept nogil
ctypedef void (*dx_row_type)(float *dx, const float *dy, const float *x, const float *gain, float rstd,
                             Py_ssize_t C) noexcept nogil
ctypedef void (*dgain_columns_type)(float *dgain, const float *dy, const float *x, const float *rstd, Py_ssize_t T,
                                    Py_ssize_t C, Py_ssize_t n) noexcept nogil

cdef extern from *:
    """
    #include <math.h>
    #include "simd.h"
    #define RMS_NORM_COLUMNS 256     /* columns of dgain that a thread owns at a time: 1 KB of every row */
    #define SIMD_BODY "rms_norm_body.h"
    #include "simd_foreach.h"
    """
    const Py_ssize_t COLUMNS "RMS_NORM_COLUMNS"
    row_type rms_norm_row "DISPATCH(rms_norm_row)"
    dx_row_type rms_norm_dx_row "DISPATCH(rms_norm_dx_row)"
    dgain_columns_type rms_norm_dgain_columns "DISPATCH(rms_norm_dgain_columns)"


def rms_norm_forward(float[:, ::1] y not None, float[::1] rstd not None, const float[:, ::1] x not None,
                     const float[::1] gain not None, float eps, int n_threads):
    """y[t] = x[t] · rstd[t] · gain with rstd[t] = 1 / sqrt(mean_c(x[t, c]²) + eps).

    y       float32 (T, C), OUT
    rstd    float32 (T,), OUT, saved for backward
    x       float32 (T, C)
    gain    float32 (C,)
    eps     > 0
    Raises ValueError for a shape that does not fit. Twin: lorafast.reference.rms_norm.
    """
    cdef Py_ssize_t T = x.shape[0], C = x.shape[1], t
    require_2d("rms_norm_forward", "y", y.shape, T, C)
    require_1d("rms_norm_forward", "rstd", rstd.shape, T)
    require_1d("rms_norm_forward", "gain", gain.shape, C)
    cdef row_type row = rms_norm_row
    cdef int threads = threads_for_rows(T, 2 * C, n_threads)
    for t in prange(T, nogil=True, num_threads=threads, schedule="static"):
        rstd[t] = row(&y[t, 0], &x[t, 0], &gain[0], C, eps)


def rms_norm_backward(float[:, ::1] dx not None, float[::1] dgain, const float[:, ::1] dy not None,
                      const float[:, ::1] x not None, const float[::1] gain not None, const float[::1] rstd not None,
                      int n_threads):
    """Differentiates y = x · rstd · gain:

    dx[t]  += rstd[t] · (dy[t] · gain - x[t] · rstd[t]² · mean_c(dy[t, c] gain[c] x[t, c]))
    dgain  += sum_t dy[t] · x[t] · rstd[t]

    dx      float32 (T, C), accumulated
    dgain   float32 (C,), accumulated, or None when nobody reads it
    dy      float32 (T, C)
    x       float32 (T, C), as in forward
    gain    float32 (C,), as in forward
    rstd    float32 (T,), saved by forward
    Raises ValueError for a shape that does not fit. Twin: lorafast.reference.rms_norm.
    """
    cdef Py_ssize_t T = x.shape[0], C = x.shape[1], t, c
    require_2d("rms_norm_backward", "dx", dx.shape, T, C)
    if dgain is not None:
        require_1d("rms_norm_backward", "dgain", dgain.shape, C)
    require_2d("rms_norm_backward", "dy", dy.shape, T, C)
    require_1d("rms_norm_backward", "gain", gain.shape, C)
    require_1d("rms_norm_backward", "rstd", rstd.shape, T)
    cdef dx_row_type dx_row = rms_norm_dx_row
    cdef dgain_columns_type dgain_columns = rms_norm_dgain_columns
    cdef int threads = threads_for_rows(T, 3 * C, n_threads)
    for t in prange(T, nogil=True, num_threads=threads, schedule="static"):
        dx_row(&dx[t, 0], &dy[t, 0], &x[t, 0], &gain[0], rstd[t], C)
    if dgain is not None and T:
        for c in prange(0, C, COLUMNS, nogil=True, num_threads=threads, schedule="static"):
            dgain_columns(&dgain[c], &dy[0, c], &x[0, c], &rstd[0], T, C, min(COLUMNS, C - c))
