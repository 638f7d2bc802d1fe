"""Gated units of the feed-forward network: SwiGLU, GeGLU with the tanh form of GELU, ReGLU² with the squared ReLU,
gpt-oss's clamped SwiGLU, and GLU with the sigmoid alone.

Sources: Shazeer, GLU Variants Improve Transformer, 2020; Hendrycks and Gimpel, Gaussian Error Linear Units, 2016; So et
al., Primer, 2021 (squared ReLU); OpenAI, gpt-oss, 2025 (clamped); Dauphin et al., Language Modeling
with Gated Convolutional Networks, 2017 (GLU).
"""
from cython.parallel cimport prange

from parallel cimport threads_for_rows
from shapes cimport require_2d

ctypedef void (*row_type)(float *h, const float *gate, const float *up, Py_ssize_t F) noexcept nogil
ctypedef void (*backward_row_type)(float *dgate, float *dup, const float *dh, const float *gate, const float *up,
                                   Py_ssize_t F) noexcept nogil

cdef extern from "activation.h":
    row_type swiglu_row "DISPATCH(swiglu_row)"
    row_type geglu_row "DISPATCH(geglu_row)"
    row_type reglu2_row "DISPATCH(reglu2_row)"
    row_type clamped_swiglu_row "DISPATCH(clamped_swiglu_row)"
    row_type glu_row "DISPATCH(glu_row)"
    backward_row_type swiglu_backward_row "DISPATCH(swiglu_backward_row)"
    backward_row_type geglu_backward_row "DISPATCH(geglu_backward_row)"
    backward_row_type reglu2_backward_row "DISPATCH(reglu2_backward_row)"
    backward_row_type clamped_swiglu_backward_row "DISPATCH(clamped_swiglu_backward_row)"
    backward_row_type glu_backward_row "DISPATCH(glu_backward_row)"


cdef gated_forward(const char *op, row_type row, float[:, ::1] h, const float[:, ::1] gate, const float[:, ::1] up,
                   int n_threads):
    cdef Py_ssize_t T = gate.shape[0], F = gate.shape[1], t
    require_2d(op, "h", h.shape, T, F)
    require_2d(op, "up", up.shape, T, F)
    cdef int threads = threads_for_rows(T, 3 * F, n_threads)
    for t in prange(T, nogil=True, num_threads=threads, schedule="static"):
        row(&h[t, 0], &gate[t, 0], &up[t, 0], F)


cdef gated_backward(const char *op, backward_row_type row, float[:, ::1] dgate, float[:, ::1] dup,
                    const float[:, ::1] dh, const float[:, ::1] gate, const float[:, ::1] up, int n_threads):
    cdef Py_ssize_t T = gate.shape[0], F = gate.shape[1], t
    require_2d(op, "dgate", dgate.shape, T, F)
    require_2d(op, "dup", dup.shape, T, F)
    require_2d(op, "dh", dh.shape, T, F)
    require_2d(op, "up", up.shape, T, F)
    cdef int threads = threads_for_rows(T, 7 * F, n_threads)
    for t in prange(T, nogil=True, num_threads=threads, schedule="static"):
        row(&dgate[t, 0], &dup[t, 0], &dh[t, 0], &gate[t, 0], &up[t, 0], F)


def swiglu_forward(float[:, ::1] h not None, const float[:, ::1] gate not None, const float[:, ::1] up not None,
                   int n_threads):
    """h = silu(gate) · up with silu(z) = z σ(z), σ(z) = 1 / (1 + exp(-z)).

    h       float32 (T, F), OUT; may be gate or up
    gate    float32 (T, F)
    up      float32 (T, F)
    Raises ValueError for a shape that does not fit. Twin: lorafast.reference.swiglu.
    """
    gated_forward("swiglu_forward", swiglu_row, h, gate, up, n_threads)


def swiglu_backward(float[:, ::1] dgate not None, float[:, ::1] dup not None, const float[:, ::1] dh not None,
                    const float[:, ::1] gate not None, const float[:, ::1] up not None, int n_threads):
    """Differentiates h = gate σ(gate) · up:

    dgate  = dh · up · σ(gate) (1 + gate (1 - σ(gate)))
    dup    = dh · gate σ(gate)

    dgate, dup    float32 (T, F), OUT; they may be gate and up, or one of them dh, itself
    dh            float32 (T, F)
    gate, up      float32 (T, F), as in forward
    Raises ValueError for a shape that does not fit. Twin: lorafast.reference.swiglu.
    """
    gated_backward("swiglu_backward", swiglu_backward_row, dgate, dup, dh, gate, up, n_threads)


def geglu_forward(float[:, ::1] h not None, const float[:, ::1] gate not None, const float[:, ::1] up not None,
                  int n_threads):
    """h = gelu(gate) · up with gelu(z) = z (1 + tanh(s(z) / 2)) / 2 = z σ(s(z)), s(z) = 2 √(2/π) (z + 0.044715 z³).

    Arguments and errors as in swiglu_forward. Twin: lorafast.reference.swiglu.
    """
    gated_forward("geglu_forward", geglu_row, h, gate, up, n_threads)


def geglu_backward(float[:, ::1] dgate not None, float[:, ::1] dup not None, const float[:, ::1] dh not None,
                   const float[:, ::1] gate not None, const float[:, ::1] up not None, int n_threads):
    """Differentiates h = gate σ(s(gate)) · up:

    dgate  = dh · up · σ(s) (1 + gate (1 - σ(s)) s'(gate)) with s'(z) = 2 √(2/π) (1 + 3 · 0.044715 z²)
    dup    = dh · gate σ(s)

    Arguments and errors as in swiglu_backward. Twin: lorafast.reference.swiglu.
    """
    gated_backward("geglu_backward", geglu_backward_row, dgate, dup, dh, gate, up, n_threads)


def reglu2_forward(float[:, ::1] h not None, const float[:, ::1] gate not None, const float[:, ::1] up not None,
                   int n_threads):
    """h = max(gate, 0)² · up.

    Arguments and errors as in swiglu_forward. Twin: lorafast.reference.swiglu.
    """
    gated_forward("reglu2_forward", reglu2_row, h, gate, up, n_threads)


def reglu2_backward(float[:, ::1] dgate not None, float[:, ::1] dup not None, const float[:, ::1] dh not None,
                    const float[:, ::1] gate not None, const float[:, ::1] up not None, int n_threads):
    """Differentiates h = max(gate, 0)² · up:

    dgate  = dh · up · 2 max(gate, 0)
    dup    = dh · max(gate, 0)²

    Arguments and errors as in swiglu_backward. Twin: lorafast.reference.swiglu.
    """
    gated_backward("reglu2_backward", reglu2_backward_row, dgate, dup, dh, gate, up, n_threads)


def clamped_swiglu_forward(float[:, ::1] h not None, const float[:, ::1] gate not None, const float[:, ::1] up not None,
                           int n_threads):
    """h = g σ(1.702 g) (u + 1), g = min(gate, 7), u = min(max(up, -7), 7).

    Arguments and errors as in swiglu_forward. Twin: lorafast.reference.swiglu.
    """
    gated_forward("clamped_swiglu_forward", clamped_swiglu_row, h, gate, up, n_threads)


def clamped_swiglu_backward(float[:, ::1] dgate not None, float[:, ::1] dup not None, const float[:, ::1] dh not None,
                            const float[:, ::1] gate not None, const float[:, ::1] up not None, int n_threads):
    """Differentiates h = g σ(1.702 g) (u + 1), g = min(gate, 7), u = min(max(up, -7), 7):

    dgate  = dh · (u + 1) · σ(1.702 g) (1 + 1.702 g (1 - σ(1.702 g))), or 0 where gate > 7
    dup    = dh · g σ(1.702 g), or 0 where |up| > 7

    Arguments and errors as in swiglu_backward. Twin: lorafast.reference.swiglu.
    """
    gated_backward("clamped_swiglu_backward", clamped_swiglu_backward_row, dgate, dup, dh, gate, up, n_threads)


def glu_forward(float[:, ::1] h not None, const float[:, ::1] gate not None, const float[:, ::1] up not None,
                int n_threads):
    """h = σ(gate) · up.

    Arguments and errors as in swiglu_forward. Twin: lorafast.reference.swiglu.
    """
    gated_forward("glu_forward", glu_row, h, gate, up, n_threads)


def glu_backward(float[:, ::1] dgate not None, float[:, ::1] dup not None, const float[:, ::1] dh not None,
                 const float[:, ::1] gate not None, const float[:, ::1] up not None, int n_threads):
    """Differentiates h = σ(gate) · up:

    dgate  = dh · up · σ(gate) (1 - σ(gate))
    dup    = dh · σ(gate)

    Arguments and errors as in swiglu_backward. Twin: lorafast.reference.swiglu.
    """
    gated_backward("glu_backward", glu_backward_row, dgate, dup, dh, gate, up, n_threads)
