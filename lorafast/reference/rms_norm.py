"""NumPy twin of the RMS norm kernel. Works in the arrays' own precision."""
import numpy as np


def rms_norm_forward(y, rstd, x, gain, eps, n_threads):
    rstd[:] = 1 / np.sqrt(np.mean(x * x, axis=1) + eps)
    y[:] = x * rstd[:, None] * gain


def rms_norm_backward(dx, dgain, dy, x, gain, rstd, n_threads):
    # forward: y = x * rstd * gain
    dz = dy * gain
    dx += rstd[:, None] * (dz - x * rstd[:, None] ** 2 * np.mean(dz * x, axis=1, keepdims=True))
    if dgain is not None:
        dgain += np.sum(dy * x * rstd[:, None], axis=0)
