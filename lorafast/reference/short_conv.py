"""NumPy twins of the short convolutions. They work in the arrays' own precision."""
from itertools import pairwise

import numpy as np

from .activation import silu


def convolved(u, taps, begin):
    """v[t] = Σ_j taps[K - 1 - j] · u[t - j] within each sequence."""
    v, K = np.zeros_like(u), len(taps)
    for first, end in pairwise(begin):
        for j in range(min(K, end - first)):
            v[first + j:end] += taps[K - 1 - j] * u[first:end - j]
    return v


def convolved_backward(dv, taps, begin):
    # forward: v[t] += taps[K - 1 - j] * u[t - j]
    du, K = np.zeros_like(dv), len(taps)
    for first, end in pairwise(begin):
        for j in range(min(K, end - first)):
            du[first:end - j] += taps[K - 1 - j] * dv[first + j:end]
    return du


def gated_conv_forward(y, b, c, x, taps, begin, n_threads):
    y[:] = c * convolved(b * x, taps, begin)


def gated_conv_backward(db, dc, dx, dy, b, c, x, taps, begin, n_threads):
    # forward: y = c * convolved(b * x)
    v, du = convolved(b * x, taps, begin), convolved_backward(dy * c, taps, begin)
    db[:], dc[:], dx[:] = du * x, dy * v, du * b


def silu_conv_forward(y, x, taps, begin, n_threads):
    y[:] = silu(convolved(x, taps, begin))[0]


def silu_conv_backward(dx, dy, x, taps, begin, n_threads):
    # forward: y = silu(convolved(x))
    slope = silu(convolved(x, taps, begin))[1]
    dx[:] = convolved_backward(dy * slope, taps, begin)
