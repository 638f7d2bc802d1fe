"""NumPy twins of the gated-unit kernels. They work in the arrays' own precision."""
import numpy as np


def silu(z):
    """Value and derivative."""
    sigmoid = 1 / (1 + np.exp(-z))
    return z * sigmoid, sigmoid * (1 + z * (1 - sigmoid))


def gelu(z):
    """Value and derivative of the tanh form."""
    k = np.sqrt(2 / np.pi).astype(z.dtype)
    tanh = np.tanh(k * (z + 0.044715 * z**3))
    return z * (1 + tanh) / 2, (1 + tanh) / 2 + z * (1 - tanh**2) / 2 * k * (1 + 3 * 0.044715 * z**2)


def swiglu_forward(h, gate, up, n_threads):
    h[:] = silu(gate)[0] * up


def swiglu_backward(dgate, dup, dh, gate, up, n_threads):
    # forward: h = silu(gate) * up
    value, slope = silu(gate)
    dgate += dh * up * slope
    dup += dh * value


def swiglu_backward_in_place(gate, up, dh, n_threads):
    value, slope = silu(gate)
    gate[:], up[:] = dh * up * slope, dh * value


def geglu_forward(h, gate, up, n_threads):
    h[:] = gelu(gate)[0] * up


def geglu_backward(dgate, dup, dh, gate, up, n_threads):
    # forward: h = gelu(gate) * up
    value, slope = gelu(gate)
    dgate += dh * up * slope
    dup += dh * value


def geglu_backward_in_place(gate, up, dh, n_threads):
    value, slope = gelu(gate)
    gate[:], up[:] = dh * up * slope, dh * value
