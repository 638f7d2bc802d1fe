# Made by kernels/stubs.py from kernels/cross_entropy.pyx: change that, then `make stubs`.
import numpy as np
from numpy.typing import NDArray

def cross_entropy_forward(loss: NDArray[np.float32], logits: NDArray[np.float32], targets: NDArray[np.int32],
                          floor: float, soft_cap: float, n_threads: int) -> None: ...

def cross_entropy_forward_backward(loss: NDArray[np.float32], logits: NDArray[np.float32], targets: NDArray[np.int32],
                                   dloss: NDArray[np.float32], floor: float, soft_cap: float,
                                   n_threads: int) -> None: ...
