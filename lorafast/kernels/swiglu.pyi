# Made by kernels/stubs.py from kernels/swiglu.pyx: change that, then `make stubs`.
import numpy as np
from numpy.typing import NDArray

def swiglu_forward(h: NDArray[np.float32], gate: NDArray[np.float32], up: NDArray[np.float32],
                   n_threads: int) -> None: ...

def swiglu_backward(dgate: NDArray[np.float32], dup: NDArray[np.float32], dh: NDArray[np.float32],
                    gate: NDArray[np.float32], up: NDArray[np.float32], n_threads: int) -> None: ...

def geglu_forward(h: NDArray[np.float32], gate: NDArray[np.float32], up: NDArray[np.float32],
                  n_threads: int) -> None: ...

def geglu_backward(dgate: NDArray[np.float32], dup: NDArray[np.float32], dh: NDArray[np.float32],
                   gate: NDArray[np.float32], up: NDArray[np.float32], n_threads: int) -> None: ...

def reglu2_forward(h: NDArray[np.float32], gate: NDArray[np.float32], up: NDArray[np.float32],
                   n_threads: int) -> None: ...

def reglu2_backward(dgate: NDArray[np.float32], dup: NDArray[np.float32], dh: NDArray[np.float32],
                    gate: NDArray[np.float32], up: NDArray[np.float32], n_threads: int) -> None: ...

def clamped_swiglu_forward(h: NDArray[np.float32], gate: NDArray[np.float32], up: NDArray[np.float32],
                           n_threads: int) -> None: ...

def clamped_swiglu_backward(dgate: NDArray[np.float32], dup: NDArray[np.float32], dh: NDArray[np.float32],
                            gate: NDArray[np.float32], up: NDArray[np.float32], n_threads: int) -> None: ...
