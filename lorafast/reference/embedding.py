"""NumPy twin of kernels/embedding.pyx. The formats themselves are in lorafast/quants.py."""
from __future__ import annotations

import numpy as np

from ..gguf.quants import dequantize
from ..gguf.types import GGMLType


def embedding_forward(y: np.ndarray, tokens: np.ndarray, weight: np.ndarray, type: int, n_threads: int) -> None:
    """y[t] = W[tokens[t]]."""
    y[:] = dequantize(weight[tokens], GGMLType(type))


def dequantize_rows(out: np.ndarray, data: np.ndarray, type: int, n_threads: int, k0: int = 0) -> None:
    """out[i] = the values k0 .. k0 + n - 1 of row i of data, unpacked."""
    out[:] = dequantize(data, GGMLType(type))[:, k0:k0 + out.shape[1]]
