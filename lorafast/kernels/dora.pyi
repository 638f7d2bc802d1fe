# Made by kernels/stubs.py from kernels/dora.pyx: change that, then `make stubs`.
import numpy as np
from numpy.typing import NDArray

def dora_forward(y: NDArray[np.float32], out: NDArray[np.float32] | None, z: NDArray[np.float32],
                 gain: NDArray[np.float32], residual: NDArray[np.float32] | None, n_threads: int) -> None: ...

def dora_backward(dz: NDArray[np.float32], dm: NDArray[np.float32], dy: NDArray[np.float32], y: NDArray[np.float32],
                  m: NDArray[np.float32], gain: NDArray[np.float32], n_threads: int) -> None: ...
