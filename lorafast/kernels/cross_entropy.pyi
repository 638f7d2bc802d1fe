# Made by kernels/stubs.py from kernels/cross_entropy.pyx: change that, then `make stubs`.
import numpy as np
from numpy.typing import NDArray

def cross_entropy_forward(loss: NDArray[np.float32], logits: NDArray[np.float32], targets: NDArray[np.int32],
                          floor: float, soft_cap: float, n_threads: int) -> None: ...

def cross_entropy_forward_backward(loss: NDArray[np.float32], logits: NDArray[np.float32], targets: NDArray[np.int32],
                                   dloss: NDArray[np.float32], floor: float, soft_cap: float,
                                   n_threads: int) -> None: ...

def cross_entropy_piece_forward(max: NDArray[np.float32], sum: NDArray[np.float64], chosen: NDArray[np.float32],
                                logits: NDArray[np.float32], targets: NDArray[np.int32], soft_cap: float,
                                n_threads: int) -> None: ...

def cross_entropy_piece_loss(loss: NDArray[np.float32], max: NDArray[np.float32], sum: NDArray[np.float64],
                             chosen: NDArray[np.float32], floor: float, n_threads: int) -> None: ...

def cross_entropy_piece_backward(logits: NDArray[np.float32], max: NDArray[np.float32], sum: NDArray[np.float64],
                                 targets: NDArray[np.int32], dloss: NDArray[np.float32], floor: float, soft_cap: float,
                                 n_threads: int) -> None: ...
