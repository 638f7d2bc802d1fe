"""Layer norm of rows (Ba, Kiros and Hinton, Layer Normalization, 2016), with a gain and, where a model has one, a
bias."""
from cython.parallel cimport prange

from parallel cimport threads_for_rows
from shapes cimport require_1d, require_2d

ctypedef void (*row_type)(float *y, float *mean, float *rstd, const float *x, const float *gain, const float *bias,
                          Py_ssize_t C, float eps) noexcept nogil
ctypedef void (*dx_row_type)(float *dx, const float *dy, const float *x, const float *gain, float mean, float rstd,
                             Py_ssize_t C) noexcept nogil
ctypedef void (*dgain_columns_type)(float *dgain, const float *dy, const float *x, const float *mean, const float *rstd,
                                    Py_ssize_t T, Py_ssize_t C, Py_ssize_t n) noexcept nogil

cdef extern from *:
    """
    #include <math.h>
    #include "simd.h"
    #define LAYER_NORM_COLUMNS 256     /* columns of dgain that a thread owns at a time: 1 KB of every row */
    #define SIMD_BODY "layer_norm_body.h"
    #include "simd_foreach.h"
    """
    const Py_ssize_t COLUMNS "LAYER_NORM_COLUMNS"
    row_type layer_norm_row "DISPATCH(layer_norm_row)"
    dx_row_type layer_norm_dx_row "DISPATCH(layer_norm_dx_row)"
    dgain_columns_type layer_norm_dgain_columns "DISPATCH(layer_norm_dgain_columns)"


def layer_norm_forward(float[:, ::1] y not None, float[::1] mean not None, float[::1] rstd not None,
                       const float[:, ::1] x not None, const float[::1] gain not None, const float[::1] bias, float eps,
                       int n_threads):
    """y[t] = (x[t] - mean[t]) · rstd[t] · gain + bias with mean[t] that of x[t] over its columns and
    rstd[t] = 1 / sqrt(mean_c((x[t, c] - mean[t])²) + eps).

    y       float32 (T, C), OUT
    mean    float32 (T,), OUT, saved for backward
    rstd    float32 (T,), OUT, saved for backward
    x       float32 (T, C)
    gain    float32 (C,)
    bias    float32 (C,), or None: no bias
    eps     > 0
    Raises ValueError for a shape that does not fit. Twin: lorafast.reference.layer_norm.
    """
    cdef Py_ssize_t T = x.shape[0], C = x.shape[1], t
    require_2d("layer_norm_forward", "y", y.shape, T, C)
    require_1d("layer_norm_forward", "mean", mean.shape, T)
    require_1d("layer_norm_forward", "rstd", rstd.shape, T)
    require_1d("layer_norm_forward", "gain", gain.shape, C)
    cdef const float *bias_start = NULL
    if bias is not None:
        require_1d("layer_norm_forward", "bias", bias.shape, C)
        bias_start = &bias[0]
    cdef row_type row = layer_norm_row
    cdef int threads = threads_for_rows(T, 2 * C, n_threads)
    for t in prange(T, nogil=True, num_threads=threads, schedule="static"):
        row(&y[t, 0], &mean[t], &rstd[t], &x[t, 0], &gain[0], bias_start, C, eps)


def layer_norm_backward(float[:, ::1] dx not None, float[::1] dgain, const float[:, ::1] dy not None,
                        const float[:, ::1] x not None, const float[::1] gain not None, const float[::1] mean not None,
                        const float[::1] rstd not None, int n_threads):
    """Differentiates y = z · gain + bias with z = (x - mean) · rstd:

    dx[t]  += rstd[t] · (dz[t] - mean_c(dz[t, c]) - z[t] · mean_c(dz[t, c] z[t, c])) with dz = dy · gain
    dgain  += sum_t dy[t] · z[t]

    dx      float32 (T, C), added to: it is the residual stream's gradient
    dgain   float32 (C,), added to, or None when nobody reads it
    dy      float32 (T, C)
    x       float32 (T, C), as in forward
    gain    float32 (C,), as in forward
    mean    float32 (T,), saved by forward
    rstd    float32 (T,), saved by forward
    Raises ValueError for a shape that does not fit. Twin: lorafast.reference.layer_norm.
    """
    cdef Py_ssize_t T = x.shape[0], C = x.shape[1], t, c
    require_2d("layer_norm_backward", "dx", dx.shape, T, C)
    if dgain is not None:
        require_1d("layer_norm_backward", "dgain", dgain.shape, C)
    require_2d("layer_norm_backward", "dy", dy.shape, T, C)
    require_1d("layer_norm_backward", "gain", gain.shape, C)
    require_1d("layer_norm_backward", "mean", mean.shape, T)
    require_1d("layer_norm_backward", "rstd", rstd.shape, T)
    cdef dx_row_type dx_row = layer_norm_dx_row
    cdef dgain_columns_type dgain_columns = layer_norm_dgain_columns
    cdef int threads = threads_for_rows(T, 3 * C, n_threads)
    for t in prange(T, nogil=True, num_threads=threads, schedule="static"):
        dx_row(&dx[t, 0], &dy[t, 0], &x[t, 0], &gain[0], mean[t], rstd[t], C)
    if dgain is not None and T:
        for c in prange(0, C, COLUMNS, nogil=True, num_threads=threads, schedule="static"):
            dgain_columns(&dgain[c], &dy[0, c], &x[0, c], &mean[0], &rstd[0], T, C, min(COLUMNS, C - c))
