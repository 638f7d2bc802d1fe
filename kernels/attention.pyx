# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Causal grouped-query attention over packed sequences, fused and exact: scores exist only as tiles in cache.

Rows of n_seq sequences follow one another. Sequence s has the queries q_begin[s] .. q_begin[s+1] and the keys k_begin[s] ..
k_begin[s+1]; its last query stands at its last key. So with n = n_keys - n_queries, query i sees the keys j <= i + n, and of those
only the newest `window` if that is set. Equal begins are training; fewer queries than keys, a prompt or one token after a KV cache.
Query head h reads kv head h // (H / HKV).

    s_ij = scale q_i . k_j          p_ij = exp(s_ij - lse_i)        lse_i = log sum_j exp(s_ij)        o_i = sum_j p_ij v_j

Forward goes through the keys tile by tile with a running maximum m, sum l and output o of each query (online softmax):

    m' = max(m, max_j s_ij)     c = exp(m - m')     l' = c l + sum_j exp(s_ij - m')     o' = c o + sum_j exp(s_ij - m') v_j

and ends with o / l and lse = m + log l. Backward recomputes p_ij from lse. With delta_i = sum_d do_id o_id (= sum_j p_ij dp_ij):

    dv_j += sum_i p_ij do_i     dp_ij = do_i . v_j      ds_ij = p_ij (dp_ij - delta_i)
    dq_i += scale sum_j ds_ij k_j                       dk_j += scale sum_i ds_ij q_i

Threads: forward gives a tile of rows of one kv head to a thread. Backward cuts queries and keys of a sequence into blocks and goes
through (query block a, key block b) by diagonals: in phase p all pairs with b = a - p (mod number of blocks). No two pairs of a phase
share a query block or a key block, and phases follow one another, so every element of dq, dk and dv is added to by one thread at a
time, in the same order for any number of threads; one kv head of one sequence still keeps many threads busy, and no p is
computed twice.

Scratch: O(threads x tile), see attention_forward_scratch. Source: Dao, FlashAttention-2, arXiv 2307.08691; Ainslie et al., GQA, arXiv 2305.13245.
"""
from cython.parallel cimport prange, threadid
from libc.limits cimport INT_MAX
from libc.stdlib cimport free, malloc

cdef extern from "attention.h" nogil:
    const int ROW_BLOCK
    const int KEY_TILE
    ctypedef struct attention:
        const float *q
        const float *k
        const float *v
        const float *o
        const float *lse
        const float *d_o
        float *o_out
        float *lse_out
        float *dq
        float *dk
        float *dv
        const int *q_begin
        const int *k_begin
        long n_head, n_head_kv, group, head_size, value_size
        int window, block
        float *delta
        float scale
    long attention_forward_scratch(const attention *a)
    long attention_backward_scratch(const attention *a)
    ctypedef void (*attention_rows)(const attention *a, int seq, int head_kv, int row, int n_rows, float *scratch) noexcept nogil
    ctypedef void (*attention_block)(const attention *a, int seq, int head_kv, int query, int key, float *scratch) noexcept nogil
    attention_rows forward_rows "DISPATCH(attention_forward_rows)"
    ctypedef void (*attention_token)(const attention *a, long token) noexcept nogil
    attention_token compute_delta "DISPATCH(attention_delta)"
    attention_block backward_block "DISPATCH(attention_backward_block)"

import os
ITEMS = int(os.environ.get("ITEMS", 16))
MAXB = int(os.environ.get("MAXB", 6))


cdef check_shape(str op, str name, const float[:, ::1] x, Py_ssize_t n_rows, Py_ssize_t n_columns):
    if x.shape[0] != n_rows or x.shape[1] != n_columns:
        raise ValueError(f"{op}: {name} has shape ({x.shape[0]}, {x.shape[1]}), wanted ({n_rows}, {n_columns})")


cdef check_inputs(str op, const float[:, ::1] q, const float[:, ::1] k, const float[:, ::1] v, const int[::1] q_begin, const int[::1] k_begin, int window, int n_head, int n_head_kv, int n_threads):
    """Refuses shapes and sequence bounds that don't fit one another; returns D and Dv."""
    cdef Py_ssize_t s
    if n_head_kv < 1 or n_head < 1 or n_head % n_head_kv:
        raise ValueError(f"{op}: n_head = {n_head} is no multiple of n_head_kv = {n_head_kv}")
    if n_threads < 1 or window < 0:
        raise ValueError(f"{op}: n_threads = {n_threads} and window = {window} must be at least 1 and 0")
    head_size, value_size = q.shape[1] // n_head, v.shape[1] // n_head_kv
    check_shape(op, "q", q, q.shape[0], n_head * head_size)
    check_shape(op, "k", k, k.shape[0], n_head_kv * head_size)
    check_shape(op, "v", v, k.shape[0], n_head_kv * value_size)
    if head_size < 1 or value_size < 1:
        raise ValueError(f"{op}: head size {head_size} of q, {value_size} of v: must be at least 1")
    if q_begin.shape[0] < 1:
        raise ValueError(f"{op}: q_begin is empty, wanted n_seq + 1 numbers")
    if k_begin.shape[0] != q_begin.shape[0]:
        raise ValueError(f"{op}: k_begin has {k_begin.shape[0]} numbers, wanted as many as q_begin, {q_begin.shape[0]}")
    for name, begin, n in ("q_begin", q_begin, q.shape[0]), ("k_begin", k_begin, k.shape[0]):
        if begin[0] != 0 or begin[len(begin) - 1] != n:
            raise ValueError(f"{op}: {name} runs from {begin[0]} to {begin[len(begin) - 1]}, wanted 0 to {n}")
    for s in range(q_begin.shape[0] - 1):
        if not 0 <= q_begin[s + 1] - q_begin[s] <= k_begin[s + 1] - k_begin[s]:
            raise ValueError(f"{op}: sequence {s} has {q_begin[s + 1] - q_begin[s]} queries and {k_begin[s + 1] - k_begin[s]} keys, "
                             "wanted 0 <= queries <= keys")
    return head_size, value_size


def attention_forward(float[:, ::1] o not None, float[:, ::1] lse not None, const float[:, ::1] q not None,
                      const float[:, ::1] k not None, const float[:, ::1] v not None, const int[::1] q_begin not None,
                      const int[::1] k_begin not None, float scale, int window, int n_head, int n_head_kv, int n_threads):
    """o_i = sum_j softmax_j(scale q_i . k_j) v_j over the keys j that query i sees; see the head of this module."""
    cdef attention a
    cdef int n_pieces = 0, i, s, row, n_rows
    cdef int n_seq = q_begin.shape[0] - 1
    head_size, value_size = check_inputs("attention_forward", q, k, v, q_begin, k_begin, window, n_head, n_head_kv, n_threads)
    check_shape("attention_forward", "o", o, q.shape[0], n_head * value_size)
    check_shape("attention_forward", "lse", lse, q.shape[0], n_head)
    if q.shape[0] == 0:
        return
    a.q, a.k, a.v, a.o_out, a.lse_out = &q[0, 0], &k[0, 0], &v[0, 0], &o[0, 0], &lse[0, 0]
    a.q_begin, a.k_begin = &q_begin[0], &k_begin[0]
    a.n_head, a.n_head_kv, a.group, a.head_size, a.value_size = n_head, n_head_kv, n_head // n_head_kv, head_size, value_size
    a.window, a.scale = window if window else INT_MAX, scale

    # Largest first: the last rows of a sequence see the most keys.
    cdef list tiles = []
    for s in range(n_seq):
        n_rows = (q_begin[s + 1] - q_begin[s]) * a.group
        for row in reversed(range(0, n_rows, ROW_BLOCK)):
            tiles.append((s, row, min(n_rows - row, ROW_BLOCK)))
    import numpy as np
    cdef const int[:, ::1] tile = np.array(tiles, dtype=np.int32)
    cdef int n_tiles = tile.shape[0]
    cdef long per_thread = attention_forward_scratch(&a)
    cdef float *scratch = <float *>malloc(per_thread * n_threads * sizeof(float))
    cdef attention_rows run = forward_rows
    for i in prange(n_tiles * n_head_kv, nogil=True, num_threads=n_threads, schedule="dynamic"):
        run(&a, tile[i % n_tiles, 0], i // n_tiles, tile[i % n_tiles, 1], tile[i % n_tiles, 2], scratch + threadid() * per_thread)
    free(scratch)


def attention_backward(float[:, ::1] dq not None, float[:, ::1] dk not None, float[:, ::1] dv not None,
                       const float[:, ::1] do not None, const float[:, ::1] q not None, const float[:, ::1] k not None,
                       const float[:, ::1] v not None, const float[:, ::1] o not None, const float[:, ::1] lse not None,
                       const int[::1] q_begin not None, const int[::1] k_begin not None, float scale, int window,
                       int n_head, int n_head_kv, int n_threads):
    """dq, dk, dv += gradients."""
    cdef attention a
    cdef int i, s, block, phase, n_phases = 0, key
    cdef int n_seq = q_begin.shape[0] - 1
    head_size, value_size = check_inputs("attention_backward", q, k, v, q_begin, k_begin, window, n_head, n_head_kv, n_threads)
    check_shape("attention_backward", "o", o, q.shape[0], n_head * value_size)
    check_shape("attention_backward", "do", do, q.shape[0], n_head * value_size)
    check_shape("attention_backward", "lse", lse, q.shape[0], n_head)
    for name, d, x in ("dq", dq, q), ("dk", dk, k), ("dv", dv, v):
        check_shape("attention_backward", name, d, x.shape[0], x.shape[1])
    if q.shape[0] == 0:
        return
    a.q, a.k, a.v, a.o, a.lse, a.d_o = &q[0, 0], &k[0, 0], &v[0, 0], &o[0, 0], &lse[0, 0], &do[0, 0]
    a.dq, a.dk, a.dv = &dq[0, 0], &dk[0, 0], &dv[0, 0]
    a.q_begin, a.k_begin = &q_begin[0], &k_begin[0]
    a.n_head, a.n_head_kv, a.group, a.head_size, a.value_size = n_head, n_head_kv, n_head // n_head_kv, head_size, value_size
    a.window, a.scale = window if window else INT_MAX, scale

    cdef int longest = 0
    for s in range(n_seq):
        longest = max(longest, k_begin[s + 1] - k_begin[s])
    want = -(-ITEMS // (n_seq * n_head_kv))
    a.block = min(max(-(-longest // (want * KEY_TILE)), 1), MAXB) * KEY_TILE
    cdef list blocks = []
    for s in range(n_seq):
        n_blocks_s = (k_begin[s + 1] - k_begin[s] + a.block - 1) // a.block
        n_phases = max(n_phases, n_blocks_s)
        for block in range((q_begin[s + 1] - q_begin[s] + a.block - 1) // a.block):
            blocks.append((s, block, n_blocks_s))
    import numpy as np
    cdef const int[:, ::1] query_block = np.array(blocks, dtype=np.int32)
    cdef int n_blocks = query_block.shape[0]
    cdef long per_thread = attention_backward_scratch(&a)
    cdef float *scratch = <float *>malloc(per_thread * n_threads * sizeof(float))
    a.delta = <float *>malloc(q.shape[0] * n_head * sizeof(float))
    cdef attention_token delta = compute_delta
    for i in prange(<int>q.shape[0], nogil=True, num_threads=n_threads, schedule="static"):
        delta(&a, i)
    cdef attention_block run = backward_block
    for phase in range(n_phases):
        for i in prange(n_blocks * n_head_kv, nogil=True, num_threads=n_threads, schedule="dynamic"):
            if phase < query_block[i % n_blocks, 2]:
                run(&a, query_block[i % n_blocks, 0], i // n_blocks, query_block[i % n_blocks, 1] * a.block,
                    (query_block[i % n_blocks, 1] - phase + query_block[i % n_blocks, 2]) % query_block[i % n_blocks, 2] * a.block,
                    scratch + threadid() * per_thread)
    free(a.delta)
    free(scratch)
