"""NumPy twin of the attention kernel, with the whole score matrix of each sequence and head in memory."""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def _each_head(q_begin: np.ndarray, k_begin: np.ndarray, window: int, n_head: int, n_head_kv: int) -> Iterator[tuple]:
    """Yields for each sequence and query head: the rows of q, the rows of k, h, its kv head, which query sees which
    key."""
    for q0, q1, k0, k1 in zip(q_begin[:-1], q_begin[1:], k_begin[:-1], k_begin[1:]):
        n_queries, n_keys = q1 - q0, k1 - k0
        position = np.arange(n_queries)[:, None] + n_keys - n_queries  # of each query, among the keys
        key = np.arange(n_keys)[None, :]
        visible = (key <= position) & (key > position - window if window else True)
        for h in range(n_head):
            yield slice(q0, q1), slice(k0, k1), h, h // (n_head // n_head_kv), visible


def _split(x: np.ndarray, n_head: int) -> np.ndarray:
    """(T, H·D) as (T, H, D): a view."""
    return x.reshape(x.shape[0], n_head, x.shape[1] // n_head)


def _scores(q: np.ndarray, k: np.ndarray, scale: float, soft_cap: float, visible: np.ndarray) -> np.ndarray:
    """scale·q·kᵀ, under the soft cap c·tanh(s / c), and -inf where a query does not see a key."""
    s = scale * (q @ k.T)
    if soft_cap:
        s = soft_cap * np.tanh(s / soft_cap)
    return np.where(visible, s, -np.inf)


def attention_forward(o: np.ndarray, lse: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray,
                      sinks: np.ndarray | None, q_begin: np.ndarray, k_begin: np.ndarray, scale: float, window: int,
                      soft_cap: float, n_head: int, n_head_kv: int, n_threads: int = 1) -> None:
    """s = scale·q·kᵀ, lse = log Σ_j exp(s_ij), o = softmax(s)·v, over the keys that a query sees; a sink is one more
    term of the sum."""
    q, k, v, o = _split(q, n_head), _split(k, n_head_kv), _split(v, n_head_kv), _split(o, n_head)
    for rows, keys, h, h_kv, visible in _each_head(q_begin, k_begin, window, n_head, n_head_kv):
        s = _scores(q[rows, h], k[keys, h_kv], scale, soft_cap, visible)
        sink = -np.inf if sinks is None else sinks[h]
        m = s.max(axis=1, initial=sink)
        p = np.exp(s - m[:, None])
        total = p.sum(axis=1) + np.exp(sink - m)
        lse[rows, h] = m + np.log(total)
        o[rows, h] = (p / total[:, None]) @ v[keys, h_kv]


def attention_backward(dq: np.ndarray, dk: np.ndarray, dv: np.ndarray, do: np.ndarray, q: np.ndarray, k: np.ndarray,
                       v: np.ndarray, o: np.ndarray, lse: np.ndarray, q_begin: np.ndarray, k_begin: np.ndarray,
                       scale: float, window: int, soft_cap: float, n_head: int, n_head_kv: int,
                       n_threads: int = 1) -> None:
    """Gradients of attention_forward."""
    dq[:], dk[:], dv[:] = 0, 0, 0
    q, dq, o, do = _split(q, n_head), _split(dq, n_head), _split(o, n_head), _split(do, n_head)
    k, dk, v, dv = _split(k, n_head_kv), _split(dk, n_head_kv), _split(v, n_head_kv), _split(dv, n_head_kv)
    for rows, keys, h, h_kv, visible in _each_head(q_begin, k_begin, window, n_head, n_head_kv):
        s = _scores(q[rows, h], k[keys, h_kv], scale, soft_cap, visible)
        p = np.exp(s - lse[rows, h, None])
        dv[keys, h_kv] += p.T @ do[rows, h]  # o = p·v
        dp = do[rows, h] @ v[keys, h_kv].T
        delta = (do[rows, h] * o[rows, h]).sum(axis=1, keepdims=True)
        ds = scale * p * (dp - delta)  # p = softmax(s), s = scale·q·kᵀ
        if soft_cap:
            ds *= 1 - np.where(visible, s / soft_cap, 0) ** 2  # s = c·tanh(scale·q·kᵀ / c)
        dq[rows, h] += ds @ k[keys, h_kv]
        dk[keys, h_kv] += ds.T @ q[rows, h]
