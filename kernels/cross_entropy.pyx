# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Softmax and cross entropy on token ids, in nats; with a floor under the probabilities, as the original has one.

With floor 0 the loss is the usual one. The original (llama.cpp's llama-finetune) has 1e-9, which caps a loss at 20.72. The
gradient is the original's too: p - onehot with p (1 - floor) + floor in place of p, which is the derivative of the loss up
to floor / p.
"""
from cython.parallel cimport prange

from parallel cimport threads_for_rows
from shapes cimport require_1d, require_2d, require_range

ctypedef float (*row_type)(const float *x, Py_ssize_t V, int target, double floor) noexcept nogil
ctypedef void (*backward_row_type)(float *dx, float dloss, const float *x, Py_ssize_t V, int target,
                                  double floor) noexcept nogil
ctypedef float (*forward_backward_row_type)(float *x, Py_ssize_t V, int target, float dloss,
                                          double floor) noexcept nogil

cdef extern from *:
    """
    #include <float.h>
    #include <math.h>
    #include "simd.h"
    #define SIMD_BODY "cross_entropy_body.h"
    #include "simd_foreach.h"
    """
    row_type cross_entropy_row "DISPATCH(cross_entropy_row)"
    backward_row_type cross_entropy_backward_row "DISPATCH(cross_entropy_backward_row)"
    forward_backward_row_type cross_entropy_forward_backward_row "DISPATCH(cross_entropy_forward_backward_row)"


def cross_entropy_forward(float[::1] loss not None, const float[:, ::1] logits not None,
                          const int[::1] targets not None, double floor, int n_threads):
    """loss[t] = -ln(p (1 - floor) + floor) with p = softmax(logits[t])[targets[t]].

    loss       float32 (T,), OUT, nats; 0 where the target is -1
    logits     float32 (T, V)
    targets    int32 (T,), each in 0 .. V - 1, or -1: not counted
    floor      0 <= floor < 1
    Raises ValueError for a shape or target that does not fit. Twin: lorafast.reference.cross_entropy.
    """
    cdef Py_ssize_t T = logits.shape[0], V = logits.shape[1], t
    require_1d("cross_entropy_forward", "loss", loss.shape, T)
    require_1d("cross_entropy_forward", "targets", targets.shape, T)
    if T == 0:
        return
    require_range("cross_entropy_forward", "targets", &targets[0], T, -1, V)
    cdef row_type row = cross_entropy_row
    cdef int threads = threads_for_rows(T, V, n_threads)
    for t in prange(T, nogil=True, num_threads=threads, schedule="static"):
        loss[t] = row(&logits[t, 0], V, targets[t], floor)


def cross_entropy_backward(float[:, ::1] dlogits not None, const float[::1] dloss not None,
                           const float[:, ::1] logits not None, const int[::1] targets not None, double floor,
                           int n_threads):
    """Differentiates loss[t] = -ln(p (1 - floor) + floor):

    dlogits[t, v] += (softmax(logits[t])[v] (1 - floor) + floor - [v = targets[t]]) · dloss[t]

    dlogits    float32 (T, V), accumulated; rows whose target is -1 stay
    dloss      float32 (T,)
    logits     float32 (T, V), as in forward
    targets    int32 (T,), as in forward
    floor      as in forward
    Raises ValueError for a shape or target that does not fit. Twin: lorafast.reference.cross_entropy.
    """
    cdef Py_ssize_t T = logits.shape[0], V = logits.shape[1], t
    require_2d("cross_entropy_backward", "dlogits", dlogits.shape, T, V)
    require_1d("cross_entropy_backward", "dloss", dloss.shape, T)
    require_1d("cross_entropy_backward", "targets", targets.shape, T)
    if T == 0:
        return
    require_range("cross_entropy_backward", "targets", &targets[0], T, -1, V)
    cdef backward_row_type row = cross_entropy_backward_row
    cdef int threads = threads_for_rows(T, 3 * V, n_threads)
    for t in prange(T, nogil=True, num_threads=threads, schedule="static"):
        row(&dlogits[t, 0], dloss[t], &logits[t, 0], V, targets[t], floor)


def cross_entropy_forward_backward(float[::1] loss not None, float[:, ::1] logits not None,
                                   const int[::1] targets not None, const float[::1] dloss not None, double floor,
                                   int n_threads):
    """Forward and backward in one visit to each row: the gradient takes the logits' place. What training calls.

    loss       float32 (T,), OUT, as in forward
    logits     float32 (T, V), IN: logits, OUT: dlogits, not accumulated; a row whose target is -1 becomes 0
    targets    int32 (T,), as in forward
    dloss      float32 (T,): weight of each token's loss in the total
    floor      as in forward
    Raises ValueError for a shape or target that does not fit. Twin: lorafast.reference.cross_entropy.
    """
    cdef Py_ssize_t T = logits.shape[0], V = logits.shape[1], t
    require_1d("cross_entropy_forward_backward", "loss", loss.shape, T)
    require_1d("cross_entropy_forward_backward", "targets", targets.shape, T)
    require_1d("cross_entropy_forward_backward", "dloss", dloss.shape, T)
    if T == 0:
        return
    require_range("cross_entropy_forward_backward", "targets", &targets[0], T, -1, V)
    cdef forward_backward_row_type row = cross_entropy_forward_backward_row
    cdef int threads = threads_for_rows(T, 2 * V, n_threads)
    for t in prange(T, nogil=True, num_threads=threads, schedule="static"):
        loss[t] = row(&logits[t, 0], V, targets[t], dloss[t], floor)
