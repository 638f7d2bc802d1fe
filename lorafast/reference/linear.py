"""NumPy twin of kernels/linear.pyx. A weight is a float array (N, K) here, in whatever precision the caller wants; that
of experts is (E, N, K)."""
import numpy as np


def linear_forward(ys, x, weights, low_rank, residual, n_threads=1):
    for y, W, update in zip(ys, weights, low_rank):
        y[:] = x @ W.T
        if update is not None:
            c, v = update
            y += c @ v
        if residual is not None:
            y += residual


def linear_backward(dx, dys, weights, low_rank, accumulate, n_threads=1):
    if not accumulate:
        dx[:] = 0
    for dy, W, update in zip(dys, weights, low_rank):
        dx += dy @ W                    # forward: y = x @ W.T
        if update is not None:
            c, v = update
            dx += c @ v                 # forward: y += h @ B, h = scale * x @ A.T; here c = scale * dy @ B.T, v = A


def _experts(begin):
    """Each expert that has rows, and these."""
    for e in range(len(begin) - 1):
        if begin[e] < begin[e + 1]:
            yield e, slice(begin[e], begin[e + 1])


def experts_forward(ys, x, weights, biases, begin, tokens, n_threads=1):
    for e, rows in _experts(begin):
        for y, W, bias in zip(ys, weights, biases):
            y[rows] = x[tokens[rows]] @ W[e].T
            if bias is not None:
                y[rows] += bias[e]


def experts_backward(dx, dys, weights, begin, tokens, n_threads=1):
    dx[:] = 0
    for e, rows in _experts(begin):
        for dy, W in zip(dys, weights):
            np.add.at(dx, tokens[rows], dy[rows] @ W[e])    # forward: y[rows] = x[tokens[rows]] @ W[e].T


def experts_sum_forward(y, x, weight, bias, scale, begin, tokens, n_threads=1):
    y[:] = 0
    for e, rows in _experts(begin):
        z = x[rows] @ weight[e].T + (0 if bias is None else bias[e])
        np.add.at(y, tokens[rows], scale[rows, None] * z)


def experts_sum_backward(dx, dy, weight, begin, tokens, n_threads=1):
    for e, rows in _experts(begin):
        dx[rows] = dy[tokens[rows]] @ weight[e]             # forward: z = x[rows] @ weight[e].T
