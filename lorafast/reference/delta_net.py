"""NumPy twin of the gated delta rule, row by row. It works in the arrays' own precision."""
from __future__ import annotations

from itertools import pairwise

import numpy as np


def _heads(x: np.ndarray, n_head: int) -> np.ndarray:
    return x.reshape(len(x), n_head, -1)


def delta_net_forward(o: np.ndarray, state: np.ndarray | None, q: np.ndarray, k: np.ndarray, v: np.ndarray,
                      g: np.ndarray, beta: np.ndarray, begin: np.ndarray, n_head_k: int, n_threads: int) -> None:
    n_head_v = g.shape[1]
    q, k, v, o = _heads(q, n_head_k), _heads(k, n_head_k), _heads(v, n_head_v), _heads(o, n_head_v)
    for first, end in pairwise(begin):
        for p in range(n_head_v):
            h = p % n_head_k
            S = np.zeros((q.shape[2], v.shape[2]), o.dtype) if state is None else state[p]
            for t in range(first, end):
                S *= np.exp(g[t, p])
                S += np.outer(k[t, h], beta[t, p] * (v[t, p] - k[t, h] @ S))
                o[t, p] = q[t, h] @ S


def delta_net_backward(dq: np.ndarray, dk: np.ndarray, dv: np.ndarray, dg: np.ndarray, dbeta: np.ndarray,
                       do: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, g: np.ndarray, beta: np.ndarray,
                       begin: np.ndarray, n_head_k: int, n_threads: int) -> None:
    n_head_v = g.shape[1]
    q, k, v, do = _heads(q, n_head_k), _heads(k, n_head_k), _heads(v, n_head_v), _heads(do, n_head_v)
    dq[:], dk[:] = 0, 0
    dq, dk, dv = _heads(dq, n_head_k), _heads(dk, n_head_k), _heads(dv, n_head_v)
    for first, end in pairwise(begin):
        for p in range(n_head_v):
            h, S, states = p % n_head_k, np.zeros((q.shape[2], v.shape[2]), dv.dtype), []
            for t in range(first, end):
                states.append(S)
                S = np.exp(g[t, p]) * S
                S = S + np.outer(k[t, h], beta[t, p] * (v[t, p] - k[t, h] @ S))
            dS = np.zeros_like(S)
            for t in reversed(range(first, end)):
                before = states[t - first]
                decayed = np.exp(g[t, p]) * before
                error = v[t, p] - k[t, h] @ decayed
                delta = beta[t, p] * error
                # forward: o = q S, S = decayed + outer(k, delta)
                dq[t, h] += (decayed + np.outer(k[t, h], delta)) @ do[t, p]
                dS += np.outer(q[t, h], do[t, p])
                d_delta = k[t, h] @ dS
                dk[t, h] += dS @ delta
                # forward: delta = beta (v - k decayed)
                dbeta[t, p] = d_delta @ error
                dv[t, p] = beta[t, p] * d_delta
                dk[t, h] -= decayed @ dv[t, p]
                dS -= np.outer(k[t, h], dv[t, p])
                # forward: decayed = exp(g) before
                dg[t, p] = np.sum(dS * decayed)
                dS *= np.exp(g[t, p])
