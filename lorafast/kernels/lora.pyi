# Made by kernels/stubs.py from kernels/lora.pyx: change that, then `make stubs`.
import numpy as np
from numpy.typing import NDArray

def lora_forward(h: NDArray[np.float32], x: NDArray[np.float32], A: NDArray[np.float32], scale: float,
                 n_threads: int) -> None: ...

def lora_backward(c: NDArray[np.float32], dA: NDArray[np.float32], dB: NDArray[np.float32], dy: NDArray[np.float32],
                  x: NDArray[np.float32], B: NDArray[np.float32], h: NDArray[np.float32], scale: float,
                  n_threads: int) -> None: ...
