"""DoRA: of V = W + s·B A each row's direction is adapted by the pair, and its length by a magnitude m of its own.

    y = g · (x Wᵀ + s·(x Aᵀ) B),    g_n = m_n / c_n,    c_n = ‖V_n‖

m starts as ‖W_n‖, so that with B = 0 this is the base model. For the gradient c is a constant (section 4.3 of the
paper): dm_n = Σ_t dy[t, n] y[t, n] / m_n, and below g everything is as for LoRA. V is never formed:

    c_n² = ‖W_n‖² + 2s·Σ_k B[k, n] P[k, n]    with P = A Wᵀ + (s/2)·(A Aᵀ) B,

the layer's own forward pass, at half the scale, of r "tokens" that are the rows of A. What the embedding puts out are
its columns, so there all of this is turned round: c_j = ‖column j of E + s·Bᵀ A‖, P = B E + (s/2)·(B Bᵀ) A.

Source: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation" (2024); PEFT's `use_dora`, which does the same.
"""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..gguf.reader import Tensor
from ..kernels.dora import dora_backward
from ..kernels.embedding import dequantize_rows
from ..kernels.linear import Weight, linear_backward_add, linear_forward
from ..kernels.lora import lora_forward
from .buffers import empty
from .lora import Adapter
from .passes import Pass
from .weights import Weights

VALUES = 1 << 18
"""Values of the weights in float32, or of P, that are worked on at a time (1 MB)."""

TABLE_VALUES = 1 << 21
"""Values of an embedding, whose rows may have to be read from the file, that are read at a time."""

class Gain:
    """g of one matrix, for an adapter's present values: computed when it is first asked for after `forget`.

    That is in the forward pass, when the matrix is in memory. ‖W_n‖² is computed once.
    """

    def __init__(self, tensor: Tensor, *, of_columns: bool = False, precision: str = "int16") -> None:
        """of_columns: the tensor is an embedding."""
        self.tensor, self.of_columns = tensor, of_columns
        self.precision = "int16" if precision == "int8" else precision     # so few products that nothing is gained
        self.squares: np.ndarray | None = None
        self.forget()

    def forget(self) -> None:
        """Drops the gain; to be called after each change of the parameters."""
        self.value: np.ndarray | None = None

    def of(self, name: str, pass_: Pass) -> np.ndarray | None:
        """g, float32 (N,); None where the adapter has no magnitude for the tensor of that name."""
        adapter = pass_.adapter
        if name not in adapter.magnitudes:
            return None
        if self.value is None:
            change = change_of_columns if self.of_columns else change_of_rows
            A, B = adapter.pairs[name]
            squares = (self.base_squares(pass_.weights, pass_.n_threads)
                       + change(self.tensor, pass_.weights, A, B, adapter.scale, self.precision, pass_.n_threads))
            self.value = gain_of(adapter.magnitudes[name], np.sqrt(np.maximum(squares, 0)))
        return self.value

    def base_squares(self, weights: Weights, n_threads: int) -> np.ndarray:
        """‖W_n‖², float32 (N,)."""
        if self.squares is None:
            self.squares = squared_norms(self.tensor, weights, self.of_columns, n_threads)
        return self.squares

    def backward(self, name: str, dy: np.ndarray, y: np.ndarray, pass_: Pass, rows: slice = slice(None)) -> None:
        """y becomes the gradient of what it was before g; adds to the gradient of m. rows: of W, those y belongs to."""
        assert self.value is not None, "forward came before"
        dora_backward(y, pass_.into.magnitudes[name][rows], dy, y, pass_.adapter.magnitudes[name][rows],
                      self.value[rows], pass_.n_threads)


def gain_of(m: np.ndarray, c: np.ndarray) -> np.ndarray:
    """g = m / c, float32 (N,); 0 where c is 0, so that a row of zeros stays one."""
    return np.divide(m, c, out=np.zeros_like(c), where=c > 0)


def initialise(adapter: Adapter, gains: dict[str, Gain], weights: Weights, n_threads: int,
               after_each: Callable[[], None]) -> None:
    """m := ‖W_n‖, the magnitudes of the base model.

    gains       of each adapted tensor, by name
    after_each  is called when a tensor has been read
    """
    for name, m in adapter.magnitudes.items():
        m[:] = np.sqrt(gains[name].base_squares(weights, n_threads))
        after_each()


def squared_norms(tensor: Tensor, weights: Weights, of_columns: bool, n_threads: int) -> np.ndarray:
    """Sums of squares along the rows of a matrix (or its columns), float32 (N,)."""
    N, K = tensor.shape
    squares = np.zeros(K if of_columns else N)
    step = max(1, VALUES // K)
    w = empty(min(step, N), K)
    for begin in range(0, N, step):
        part = w[:min(step, N - begin)]
        dequantize_rows(part, weights.slice(tensor, begin, begin + len(part)), int(tensor.type), n_threads)
        np.square(part, out=part)
        if of_columns:
            squares += part.sum(axis=0, dtype=np.float64)
        else:
            squares[begin:begin + len(part)] = part.sum(axis=1)
    return squares.astype(np.float32)


def change_of_rows(tensor: Tensor, weights: Weights, A: np.ndarray, B: np.ndarray, scale: float, precision: str,
                   n_threads: int) -> np.ndarray:
    """‖W_n + s·B_n A‖² - ‖W_n‖² for each row, float32 (N,); A (r, K), B (r, N)."""
    r, N = B.shape
    change = empty(N)
    half = _half_gram(A, scale, n_threads)
    step = max(64, VALUES // r)
    for begin in range(0, N, step):
        rows = slice(begin, min(begin + step, N))
        B_rows = np.ascontiguousarray(B[:, rows])
        P = empty(r, B_rows.shape[1])
        weight = Weight(weights.slice(tensor, rows.start, rows.stop), int(tensor.type), tensor.shape[1], precision)
        linear_forward([P], A, [weight], [(half, B_rows)], None, n_threads)
        change[rows] = np.float32(2 * scale) * np.einsum("rn,rn->n", B_rows, P)
    return change


def change_of_columns(tensor: Tensor, weights: Weights, A: np.ndarray, B: np.ndarray, scale: float, precision: str,
                      n_threads: int) -> np.ndarray:
    """‖column j of E + s·Bᵀ A‖² - ‖column j of E‖², float32 (C,); E (V, C), A (r, C), B (r, V)."""
    r, V = B.shape
    low_rank = (_half_gram(B, scale, n_threads), A)
    P = np.zeros_like(A)
    step = max(64, min(VALUES // r, TABLE_VALUES // tensor.shape[1]))
    for begin in range(0, V, step):
        end = min(begin + step, V)
        B_rows = np.ascontiguousarray(B[:, begin:end])
        weight = Weight(weights.slice(tensor, begin, end), int(tensor.type), tensor.shape[1], precision)
        linear_backward_add(P, [B_rows], [weight], [None if begin else low_rank], n_threads)
    return np.float32(2 * scale) * np.einsum("rc,rc->c", A, P)


def _half_gram(X: np.ndarray, scale: float, n_threads: int) -> np.ndarray:
    """(s/2)·X Xᵀ, (r, r)."""
    gram = empty(len(X), len(X))
    lora_forward(gram, X, X, scale / 2, n_threads)
    return gram
