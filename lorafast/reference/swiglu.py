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


def set_or_add(dgate, dup, gate_gradient, up_gradient, accumulate):
    if accumulate:
        dgate += gate_gradient
        dup += up_gradient
    else:
        dgate[:], dup[:] = gate_gradient, up_gradient


def swiglu_forward(h, gate, up, n_threads):
    h[:] = silu(gate)[0] * up


def swiglu_backward(dgate, dup, dh, gate, up, accumulate, n_threads):
    # forward: h = silu(gate) * up
    value, slope = silu(gate)
    set_or_add(dgate, dup, dh * up * slope, dh * value, accumulate)


def geglu_forward(h, gate, up, n_threads):
    h[:] = gelu(gate)[0] * up


def geglu_backward(dgate, dup, dh, gate, up, accumulate, n_threads):
    # forward: h = gelu(gate) * up
    value, slope = gelu(gate)
    set_or_add(dgate, dup, dh * up * slope, dh * value, accumulate)
