# Made by kernels/stubs.py from kernels/short_conv.pyx: change that, then `make stubs`.
import numpy as np
from numpy.typing import NDArray

def gated_conv_forward(y: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32], x: NDArray[np.float32],
                       taps: NDArray[np.float32], begin: NDArray[np.int32], n_threads: int) -> None: ...

def gated_conv_backward(db: NDArray[np.float32], dc: NDArray[np.float32], dx: NDArray[np.float32],
                        dy: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32], x: NDArray[np.float32],
                        taps: NDArray[np.float32], begin: NDArray[np.int32], n_threads: int) -> None: ...

def silu_conv_forward(y: NDArray[np.float32], x: NDArray[np.float32], taps: NDArray[np.float32],
                      begin: NDArray[np.int32], n_threads: int) -> None: ...

def silu_conv_backward(dx: NDArray[np.float32], dy: NDArray[np.float32], x: NDArray[np.float32],
                       taps: NDArray[np.float32], begin: NDArray[np.int32], n_threads: int) -> None: ...
