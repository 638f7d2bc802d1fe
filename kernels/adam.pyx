"""Adam with decoupled weight decay, and the norm by which its gradient is clipped.

Source: Kingma and Ba, Adam, 2015; Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019.
"""
from cython.parallel cimport prange

from parallel cimport threads_for
from shapes cimport require_1d

ctypedef void (*values_type)(float *param, float *m, float *v, const float *grad, Py_ssize_t n, float grad_scale,
                             float beta1, float beta2, float a_t, float c_t, float eps, float decay) noexcept nogil
ctypedef double (*sum_type)(const float *x, Py_ssize_t n) noexcept nogil

cdef extern from *:
    """
    #include <float.h>
    #include <math.h>
    #include "simd.h"
    #define SIMD_BODY "adam_body.h"
    #include "simd_foreach.h"
    #define ADAM_PIECE 4096       /* values a thread updates at a time */
    #define SUM_PIECES 256        /* partial sums: as many on any machine, so that the total has the same bits */
    """
    const Py_ssize_t PIECE "ADAM_PIECE"
    const Py_ssize_t SUM_PIECES
    values_type adam_values "DISPATCH(adam_values)"
    sum_type sum_of_squares_values "DISPATCH(sum_of_squares_values)"


def adam_step(float[::1] param not None, float[::1] m not None, float[::1] v not None, const float[::1] grad not None,
              float grad_scale, float beta1, float beta2, float a_t, float c_t, float eps, float decay, int n_threads):
    """One update, elementwise, in float32:

    g     = grad · grad_scale
    m     = beta1 · m + (1 - beta1) · g
    v     = beta2 · v + (1 - beta2) · g²
    param = param · (1 - decay) - m · a_t / (√(v · c_t) + eps)

    with 0 for an m or v below the smallest normal float32.

    param         float32 (P,), IN and OUT
    m, v          float32 (P,), IN and OUT: first and second moments
    grad          float32 (P,)
    grad_scale    1, or what brings the gradient's norm down to its limit
    a_t           learning rate / (1 - beta1^iteration)
    c_t           1 / (1 - beta2^iteration)
    decay         weight decay · learning rate
    Raises ValueError for a shape that does not fit. Twin: lorafast.reference.adam.
    """
    cdef Py_ssize_t P = param.shape[0], i
    require_1d("adam_step", "m", m.shape, P)
    require_1d("adam_step", "v", v.shape, P)
    require_1d("adam_step", "grad", grad.shape, P)
    cdef values_type values = adam_values
    cdef int threads = threads_for(7 * P, n_threads)
    for i in prange(0, P, PIECE, nogil=True, num_threads=threads, schedule="static"):
        values(&param[i], &m[i], &v[i], &grad[i], min(PIECE, P - i), grad_scale, beta1, beta2, a_t, c_t, eps, decay)


def sum_of_squares(const float[::1] x not None, int n_threads) -> float:
    """sum_i x[i]², in float64. It is finite exactly when all of x is: no square of a float32 overflows a float64.

    x    float32 (P,)
    Same bits for any number of threads. Twin: lorafast.reference.adam.
    """
    cdef Py_ssize_t P = x.shape[0], piece, begin
    cdef Py_ssize_t size = (P + SUM_PIECES - 1) // SUM_PIECES
    cdef double[256] partial
    cdef double total = 0
    cdef sum_type values = sum_of_squares_values
    cdef int threads = threads_for(P, n_threads)
    for piece in prange(SUM_PIECES, nogil=True, num_threads=threads, schedule="static"):
        begin = min(P, piece * size)
        partial[piece] = values(&x[0] + begin, min(size, P - begin))
    for piece in range(SUM_PIECES):
        total += partial[piece]
    return total
