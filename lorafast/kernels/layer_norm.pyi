# Made by kernels/stubs.py from kernels/layer_norm.pyx: change that, then `make stubs`.
import numpy as np
from numpy.typing import NDArray

def layer_norm_forward(y: NDArray[np.float32], mean: NDArray[np.float32], rstd: NDArray[np.float32],
                       x: NDArray[np.float32], gain: NDArray[np.float32], bias: NDArray[np.float32] | None, eps: float,
                       n_threads: int) -> None: ...

def layer_norm_backward(dx: NDArray[np.float32], dgain: NDArray[np.float32] | None, dy: NDArray[np.float32],
                        x: NDArray[np.float32], gain: NDArray[np.float32], mean: NDArray[np.float32],
                        rstd: NDArray[np.float32], n_threads: int) -> None: ...
