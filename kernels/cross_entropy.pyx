"""Softmax and cross entropy on token ids, in nats; with a floor under the probabilities, as the original has one.

With floor 0 the loss is the usual one. The original (llama.cpp's llama-finetune) has 1e-9, which caps a loss at 20.72.
The gradient is the original's too: p - onehot with p (1 - floor) + floor in place of p, which is the derivative of the
loss up to floor / p.

A soft cap c (Gemma 2) replaces each logit z by y = c tanh(z / c), and so multiplies its gradient by 1 - (y / c)².

Of a large vocabulary, logits need not exist all at once: `_piece_forward` takes some columns of them after the others,
`_loss` then has what it needs, and `_piece_backward` takes the columns once more. Maximum and sum run on (Milakov and
Gimelshein, Online normalizer calculation for softmax, 2018), so that pieces of a multiple of 2048 columns give the bits
of the whole.
"""
from cython.parallel cimport prange

from parallel cimport threads_for_rows
from shapes cimport require_1d, require_range

ctypedef float (*row_type)(const float *x, Py_ssize_t V, int target, double floor, float cap) noexcept nogil
ctypedef float (*forward_backward_row_type)(float *x, Py_ssize_t V, int target, float dloss, double floor,
                                            float cap) noexcept nogil
ctypedef void (*piece_row_type)(float *max, double *sum, float *chosen, const float *x, Py_ssize_t n, int target,
                                float cap) noexcept nogil
ctypedef void (*piece_backward_row_type)(float *x, float max, double sum, Py_ssize_t n, int target, float dloss,
                                         double floor, float cap) noexcept nogil
ctypedef float (*loss_type)(float chosen, float max, double sum, double floor) noexcept nogil

cdef extern from *:
    """
    #include <float.h>
    #include <math.h>
    #include "simd.h"
    #define SIMD_BODY "cross_entropy_body.h"
    #include "simd_foreach.h"
    """
    row_type cross_entropy_row "DISPATCH(cross_entropy_row)"
    forward_backward_row_type cross_entropy_forward_backward_row "DISPATCH(cross_entropy_forward_backward_row)"
    piece_row_type cross_entropy_piece_row "DISPATCH(cross_entropy_piece_row)"
    piece_backward_row_type cross_entropy_piece_backward_row "DISPATCH(cross_entropy_piece_backward_row)"
    loss_type cross_entropy_loss_of "DISPATCH(cross_entropy_loss_of)"


cdef int check(const char *op, Py_ssize_t T, Py_ssize_t V, const float[::1] loss, const int[::1] targets,
               float soft_cap) except -1:
    """What both functions ask of their arguments."""
    require_1d(op, "loss", loss.shape, T)
    require_1d(op, "targets", targets.shape, T)
    if not soft_cap >= 0:
        raise ValueError(f"{op.decode()}: soft_cap is {soft_cap:g}, wanted at least 0")
    if T:
        require_range(op, "targets", &targets[0], T, -1, V)
    return 0


def cross_entropy_forward(float[::1] loss not None, const float[:, ::1] logits not None,
                          const int[::1] targets not None, double floor, float soft_cap, int n_threads):
    """loss[t] = -ln(p (1 - floor) + floor) with p = softmax(y[t])[targets[t]], y = soft_cap · tanh(logits / soft_cap).

    loss       float32 (T,), OUT, nats; 0 where the target is -1
    logits     float32 (T, V)
    targets    int32 (T,), each in 0 .. V - 1, or -1: not counted
    floor      0 <= floor < 1
    soft_cap   0: none, y = logits
    Raises ValueError for a shape or target that does not fit. Twin: lorafast.reference.cross_entropy.
    """
    cdef Py_ssize_t T = logits.shape[0], V = logits.shape[1], t
    check("cross_entropy_forward", T, V, loss, targets, soft_cap)
    cdef row_type row = cross_entropy_row
    cdef int threads = threads_for_rows(T, V, n_threads)
    for t in prange(T, nogil=True, num_threads=threads, schedule="static"):
        loss[t] = row(&logits[t, 0], V, targets[t], floor, soft_cap)


def cross_entropy_forward_backward(float[::1] loss not None, float[:, ::1] logits not None,
                                   const int[::1] targets not None, const float[::1] dloss not None, double floor,
                                   float soft_cap, int n_threads):
    """Forward and backward in one visit to each row: the gradient takes the logits' place. What training calls.

    loss[t]       = -ln(p (1 - floor) + floor), as in cross_entropy_forward
    dlogits[t, v] = (softmax(y[t])[v] (1 - floor) + floor - [v = targets[t]]) · (1 - (y[t, v] / soft_cap)²) · dloss[t]

    loss       float32 (T,), OUT, as in forward
    logits     float32 (T, V), IN: logits, OUT: dlogits, overwritten; a row whose target is -1 becomes 0
    targets    int32 (T,), as in forward
    dloss      float32 (T,): weight of each token's loss in the total
    floor      as in forward
    soft_cap   as in forward; with 0 its factor in the gradient is 1
    Raises ValueError for a shape or target that does not fit. Twin: lorafast.reference.cross_entropy.
    """
    cdef Py_ssize_t T = logits.shape[0], V = logits.shape[1], t
    check("cross_entropy_forward_backward", T, V, loss, targets, soft_cap)
    require_1d("cross_entropy_forward_backward", "dloss", dloss.shape, T)
    cdef forward_backward_row_type row = cross_entropy_forward_backward_row
    cdef int threads = threads_for_rows(T, 2 * V, n_threads)
    for t in prange(T, nogil=True, num_threads=threads, schedule="static"):
        loss[t] = row(&logits[t, 0], V, targets[t], dloss[t], floor, soft_cap)


def cross_entropy_piece_forward(float[::1] max not None, double[::1] sum not None, float[::1] chosen not None,
                                const float[:, ::1] logits not None, const int[::1] targets not None, float soft_cap,
                                int n_threads):
    """Goes on with what the loss needs of each row of logits, by the columns of a piece of the vocabulary.

    max[t]     becomes the larger of itself and max_v y[t, v], y as in cross_entropy_forward
    sum[t]     becomes exp(old max - max) · sum + sum_v exp(y[t, v] - max)
    chosen[t]  becomes y[t, targets[t]] if that column is in this piece

    max        float32 (T,), IN and OUT; -FLT_MAX before the first piece
    sum        float64 (T,), IN and OUT; 0 before the first piece
    chosen     float32 (T,), IN and OUT
    logits     float32 (T, n), of these columns
    targets    int32 (T,), counted from the first column of the piece: any number, others are in other pieces
    Raises ValueError for a shape that does not fit. Twin: lorafast.reference.cross_entropy.
    """
    cdef Py_ssize_t T = logits.shape[0], n = logits.shape[1], t
    check_piece("cross_entropy_piece_forward", T, max, sum, targets, soft_cap)
    require_1d("cross_entropy_piece_forward", "chosen", chosen.shape, T)
    cdef piece_row_type row = cross_entropy_piece_row
    cdef int threads = threads_for_rows(T, n, n_threads)
    for t in prange(T, nogil=True, num_threads=threads, schedule="static"):
        row(&max[t], &sum[t], &chosen[t], &logits[t, 0], n, targets[t], soft_cap)


def cross_entropy_piece_loss(float[::1] loss not None, const float[::1] max not None, const double[::1] sum not None,
                             const float[::1] chosen not None, double floor, int n_threads):
    """loss[t] = -ln(p (1 - floor) + floor) with p = exp(chosen[t] - max[t]) / sum[t], when all pieces have been seen.

    loss       float32 (T,), OUT, nats
    max, sum, chosen  (T,), of cross_entropy_piece_forward
    floor      as in cross_entropy_forward
    Raises ValueError for a shape that does not fit. Twin: lorafast.reference.cross_entropy.
    """
    cdef Py_ssize_t T = loss.shape[0], t
    require_1d("cross_entropy_piece_loss", "max", max.shape, T)
    require_1d("cross_entropy_piece_loss", "sum", sum.shape, T)
    require_1d("cross_entropy_piece_loss", "chosen", chosen.shape, T)
    cdef loss_type row = cross_entropy_loss_of
    for t in prange(T, nogil=True, num_threads=threads_for_rows(T, 1, n_threads), schedule="static"):
        loss[t] = row(chosen[t], max[t], sum[t], floor)


def cross_entropy_piece_backward(float[:, ::1] logits not None, const float[::1] max not None,
                                 const double[::1] sum not None, const int[::1] targets not None,
                                 const float[::1] dloss not None, double floor, float soft_cap, int n_threads):
    """dlogits, as in cross_entropy_forward_backward, of the columns of a piece.

    logits     float32 (T, n), IN: logits, OUT: dlogits, overwritten
    max, sum   (T,), of cross_entropy_piece_forward over all pieces
    targets    int32 (T,), counted from the first column of the piece
    dloss      float32 (T,), floor, soft_cap: as in cross_entropy_forward_backward
    Raises ValueError for a shape that does not fit. Twin: lorafast.reference.cross_entropy.
    """
    cdef Py_ssize_t T = logits.shape[0], n = logits.shape[1], t
    check_piece("cross_entropy_piece_backward", T, max, sum, targets, soft_cap)
    require_1d("cross_entropy_piece_backward", "dloss", dloss.shape, T)
    cdef piece_backward_row_type row = cross_entropy_piece_backward_row
    cdef int threads = threads_for_rows(T, n, n_threads)
    for t in prange(T, nogil=True, num_threads=threads, schedule="static"):
        row(&logits[t, 0], max[t], sum[t], n, targets[t], dloss[t], floor, soft_cap)


cdef int check_piece(const char *op, Py_ssize_t T, const float[::1] max, const double[::1] sum, const int[::1] targets,
                     float soft_cap) except -1:
    """What the functions on pieces ask of their arguments."""
    require_1d(op, "max", max.shape, T)
    require_1d(op, "sum", sum.shape, T)
    require_1d(op, "targets", targets.shape, T)
    if not soft_cap >= 0:
        raise ValueError(f"{op.decode()}: soft_cap is {soft_cap:g}, wanted at least 0")
    return 0
