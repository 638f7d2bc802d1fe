"""NumPy twin of kernels/dora.pyx."""
import numpy as np


def dora_forward(y, out, z, gain, residual, n_threads=1):
    y[:] = gain * z
    if residual is not None:
        out[:] = residual + y


def dora_backward(dz, dm, dy, y, m, gain, n_threads=1):
    # forward: y = gain * z with gain = m / c, so dy/dm = y / m
    dm += np.divide((dy * y).sum(axis=0), m, out=np.zeros_like(m), where=m != 0)
    dz[:] = gain * dy
