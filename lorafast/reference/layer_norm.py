"""NumPy twin of the layer norm kernel. Works in the arrays' own precision."""
import numpy as np


def layer_norm_forward(y, mean, rstd, x, gain, bias, eps, n_threads):
    mean[:] = x.mean(axis=1)
    centred = x - mean[:, None]
    rstd[:] = 1 / np.sqrt(np.mean(centred**2, axis=1) + eps)
    y[:] = centred * rstd[:, None] * gain
    if bias is not None:
        y += bias


def layer_norm_backward(dx, dgain, dy, x, gain, mean, rstd, n_threads):
    # forward: y = z * gain + bias, z = (x - mean) * rstd
    z = (x - mean[:, None]) * rstd[:, None]
    dz = dy * gain
    dx += rstd[:, None] * (dz - dz.mean(axis=1, keepdims=True) - z * np.mean(dz * z, axis=1, keepdims=True))
    if dgain is not None:
        dgain += np.sum(dy * z, axis=0)
