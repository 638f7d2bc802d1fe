"""NumPy twin of kernels/linear.pyx. A weight is a float array (N, K) here, in whatever precision the caller wants."""

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
