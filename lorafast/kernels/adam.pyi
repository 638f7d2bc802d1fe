# Made by kernels/stubs.py from kernels/adam.pyx: change that, then `make stubs`.
import numpy as np
from numpy.typing import NDArray

def adam_step(param: NDArray[np.float32], m: NDArray[np.float32], v: NDArray[np.float32], grad: NDArray[np.float32],
              grad_scale: float, beta1: float, beta2: float, a_t: float, c_t: float, eps: float, decay: float,
              n_threads: int) -> None: ...

def sum_of_squares(x: NDArray[np.float32], n_threads: int) -> float: ...
