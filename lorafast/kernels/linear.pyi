# Made by kernels/stubs.py from kernels/linear.pyx: change that, then `make stubs`.
from typing import Any

import numpy as np
from numpy.typing import NDArray

class Weight:
    N: int
    K: int
    type: int
    first_row: int

    def __init__(self, data: NDArray[np.uint8], type: int, K: int, precision: str = "int16",
                 first_row: int = 0) -> None: ...
    @staticmethod
    def arithmetic_of(type: int, precision: str) -> str: ...
    @property
    def arithmetic(self) -> str: ...

class ExpertWeights:
    E: int
    N: int
    K: int
    type: int

    def __init__(self, data: NDArray[np.uint8], type: int, K: int, precision: str = "int16") -> None: ...
    @property
    def arithmetic(self) -> str: ...

def linear_forward(ys: list[Any], x: NDArray[np.float32], weights: list[Any], low_rank: list[Any],
                   residual: NDArray[np.float32] | None, n_threads: int) -> None: ...

def linear_backward(dx: NDArray[np.float32], dys: list[Any], weights: list[Any], low_rank: list[Any],
                    n_threads: int) -> None: ...

def linear_backward_add(dx: NDArray[np.float32], dys: list[Any], weights: list[Any], low_rank: list[Any],
                        n_threads: int) -> None: ...

def linear_scratch_bytes(T: int, K: int, N: int, n_threads: int) -> int: ...

def experts_forward(ys: list[Any], x: NDArray[np.float32], weights: list[Any], biases: list[Any],
                    begin: NDArray[np.int32], tokens: NDArray[np.int32], n_threads: int) -> None: ...

def experts_sum_forward(y: NDArray[np.float32], x: NDArray[np.float32], weight: ExpertWeights,
                        bias: NDArray[np.float32] | None, scale: NDArray[np.float32], begin: NDArray[np.int32],
                        tokens: NDArray[np.int32], n_threads: int) -> None: ...

def experts_backward(dx: NDArray[np.float32], dys: list[Any], weights: list[Any], begin: NDArray[np.int32],
                     tokens: NDArray[np.int32], n_threads: int) -> None: ...

def experts_sum_backward(dx: NDArray[np.float32], dy: NDArray[np.float32], weight: ExpertWeights,
                         begin: NDArray[np.int32], tokens: NDArray[np.int32], n_threads: int) -> None: ...

def experts_scratch_bytes(T: int, K: int, N: int, n_experts: int, n_used: int, n_threads: int) -> int: ...
