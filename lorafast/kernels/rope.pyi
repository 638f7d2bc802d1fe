# Made by kernels/stubs.py from kernels/rope.pyx: change that, then `make stubs`.
import numpy as np
from numpy.typing import NDArray

def rope_forward(y: NDArray[np.float32], x: NDArray[np.float32], cos: NDArray[np.float32], sin: NDArray[np.float32],
                 positions: NDArray[np.int32], n_head: int, interleaved: bool, n_threads: int) -> None: ...
