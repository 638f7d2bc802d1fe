# Made by kernels/stubs.py from kernels/embedding.pyx: change that, then `make stubs`.
import numpy as np
from numpy.typing import NDArray

def embedding_forward(y: NDArray[np.float32], tokens: NDArray[np.int32], weight: NDArray[np.uint8], type: int,
                      n_threads: int) -> None: ...

def dequantize_rows(out: NDArray[np.float32], data: NDArray[np.uint8], type: int, n_threads: int,
                    k0: int = 0) -> None: ...
