# Made by kernels/stubs.py from kernels/attention.pyx: change that, then `make stubs`.
import numpy as np
from numpy.typing import NDArray

def attention_forward(o: NDArray[np.float32], lse: NDArray[np.float32], q: NDArray[np.float32], k: NDArray[np.float32],
                      v: NDArray[np.float32], sinks: NDArray[np.float32] | None, q_begin: NDArray[np.int32],
                      k_begin: NDArray[np.int32], scale: float, window: int, soft_cap: float, n_head: int,
                      n_head_kv: int, n_threads: int) -> None: ...

def attention_backward(dq: NDArray[np.float32], dk: NDArray[np.float32], dv: NDArray[np.float32],
                       do: NDArray[np.float32], q: NDArray[np.float32], k: NDArray[np.float32], v: NDArray[np.float32],
                       o: NDArray[np.float32], lse: NDArray[np.float32], q_begin: NDArray[np.int32],
                       k_begin: NDArray[np.int32], scale: float, window: int, soft_cap: float, n_head: int,
                       n_head_kv: int, n_threads: int) -> None: ...

def attention_scratch_bytes(T: int, n_head: int, head_size: int, value_size: int, n_threads: int) -> int: ...
