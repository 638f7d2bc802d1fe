"""Activations of a feed-forward network without a gate: GELU in its tanh form, and the squared ReLU.

Sources: Hendrycks and Gimpel, Gaussian Error Linear Units, 2016; So et al., Primer, 2021 (squared ReLU).
"""
from cython.parallel cimport prange

from parallel cimport threads_for_rows
from shapes cimport require_2d

ctypedef void (*row_type)(float *y, const float *x, Py_ssize_t F) noexcept nogil
ctypedef void (*backward_row_type)(float *dx, const float *dy, const float *x, Py_ssize_t F) noexcept nogil

cdef extern from "activation.h":
    row_type gelu_row "DISPATCH(gelu_row)"
    row_type relu_squared_row "DISPATCH(relu_squared_row)"
    backward_row_type gelu_backward_row "DISPATCH(gelu_backward_row)"
    backward_row_type relu_squared_backward_row "DISPATCH(relu_squared_backward_row)"


cdef forward(const char *op, row_type row, float[:, ::1] y, const float[:, ::1] x, int n_threads):
    cdef Py_ssize_t T = x.shape[0], F = x.shape[1], t
    require_2d(op, "y", y.shape, T, F)
    cdef int threads = threads_for_rows(T, 2 * F, n_threads)
    for t in prange(T, nogil=True, num_threads=threads, schedule="static"):
        row(&y[t, 0], &x[t, 0], F)


cdef backward(const char *op, backward_row_type row, float[:, ::1] dx, const float[:, ::1] dy, const float[:, ::1] x,
              int n_threads):
    cdef Py_ssize_t T = x.shape[0], F = x.shape[1], t
    require_2d(op, "dx", dx.shape, T, F)
    require_2d(op, "dy", dy.shape, T, F)
    cdef int threads = threads_for_rows(T, 4 * F, n_threads)
    for t in prange(T, nogil=True, num_threads=threads, schedule="static"):
        row(&dx[t, 0], &dy[t, 0], &x[t, 0], F)


def gelu_forward(float[:, ::1] y not None, const float[:, ::1] x not None, int n_threads):
    """y = x (1 + tanh(s(x) / 2)) / 2 = x σ(s(x)) with s(x) = 2 √(2/π) (x + 0.044715 x³).

    y    float32 (T, F), OUT; may be x
    x    float32 (T, F)
    Raises ValueError for a shape that does not fit. Twin: lorafast.reference.activation.
    """
    forward("gelu_forward", gelu_row, y, x, n_threads)


def gelu_backward(float[:, ::1] dx not None, const float[:, ::1] dy not None, const float[:, ::1] x not None,
                  int n_threads):
    """Differentiates y = x σ(s(x)):

    dx = dy · σ(s) (1 + x (1 - σ(s)) s'(x)) with s'(x) = 2 √(2/π) (1 + 3 · 0.044715 x²)

    dx    float32 (T, F), OUT; may be dy or x
    dy    float32 (T, F)
    x     float32 (T, F), as in forward
    Raises ValueError for a shape that does not fit. Twin: lorafast.reference.activation.
    """
    backward("gelu_backward", gelu_backward_row, dx, dy, x, n_threads)


def relu_squared_forward(float[:, ::1] y not None, const float[:, ::1] x not None, int n_threads):
    """y = max(x, 0)².

    Arguments and errors as in gelu_forward. Twin: lorafast.reference.activation.
    """
    forward("relu_squared_forward", relu_squared_row, y, x, n_threads)


def relu_squared_backward(float[:, ::1] dx not None, const float[:, ::1] dy not None, const float[:, ::1] x not None,
                          int n_threads):
    """Differentiates y = max(x, 0)²: dx = dy · 2 max(x, 0).

    Arguments and errors as in gelu_backward. Twin: lorafast.reference.activation.
    """
    backward("relu_squared_backward", relu_squared_backward_row, dx, dy, x, n_threads)
