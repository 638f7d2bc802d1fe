"""NumPy twins of the gated-unit kernels. They work in the arrays' own precision."""
from .activation import gelu, relu_squared, silu


def swiglu_forward(h, gate, up, n_threads):
    h[:] = silu(gate)[0] * up


def swiglu_backward(dgate, dup, dh, gate, up, n_threads):
    # forward: h = silu(gate) * up
    value, slope = silu(gate)
    dgate[:], dup[:] = dh * up * slope, dh * value


def geglu_forward(h, gate, up, n_threads):
    h[:] = gelu(gate)[0] * up


def geglu_backward(dgate, dup, dh, gate, up, n_threads):
    # forward: h = gelu(gate) * up
    value, slope = gelu(gate)
    dgate[:], dup[:] = dh * up * slope, dh * value


def reglu2_forward(h, gate, up, n_threads):
    h[:] = relu_squared(gate)[0] * up


def reglu2_backward(dgate, dup, dh, gate, up, n_threads):
    # forward: h = relu(gate)² * up
    value, slope = relu_squared(gate)
    dgate[:], dup[:] = dh * up * slope, dh * value
