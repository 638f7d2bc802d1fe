# Made by kernels/stubs.py from kernels/delta_net.pyx: change that, then `make stubs`.
import numpy as np
from numpy.typing import NDArray

def delta_net_forward(o: NDArray[np.float32], state: NDArray[np.float32] | None, q: NDArray[np.float32],
                      k: NDArray[np.float32], v: NDArray[np.float32], g: NDArray[np.float32], beta: NDArray[np.float32],
                      begin: NDArray[np.int32], n_head_k: int, n_threads: int) -> None: ...

def delta_net_backward(dq: NDArray[np.float32], dk: NDArray[np.float32], dv: NDArray[np.float32],
                       dg: NDArray[np.float32], dbeta: NDArray[np.float32], do: NDArray[np.float32],
                       q: NDArray[np.float32], k: NDArray[np.float32], v: NDArray[np.float32], g: NDArray[np.float32],
                       beta: NDArray[np.float32], begin: NDArray[np.int32], n_head_k: int, n_threads: int) -> None: ...

def delta_net_scratch_bytes(T: int, D: int, DV: int, n_threads: int) -> int: ...
