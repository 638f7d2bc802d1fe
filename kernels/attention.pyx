"""Causal grouped-query attention over packed sequences, fused and exact: scores exist only as tiles in cache.

Sequences follow one another. Sequence s has the queries q_begin[s] .. q_begin[s+1] and the keys k_begin[s] ..
k_begin[s+1], and its last query stands at its last key: with n = keys - queries, query i sees the keys j <= i + n, and
of those only the newest `window` where that is not 0: those with 0 <= i + n - j < window. Equal begins are training;
more keys than queries, a prompt in
pieces or one token after a cache of keys and values. Query head h reads kv head h // (H / HKV).

    s_ij = scale q_i · k_j        lse_i = log Σ_j exp(s_ij)        p_ij = exp(s_ij - lse_i)        o_i = Σ_j p_ij v_j

With a soft cap c, c tanh(s_ij / c) takes the place of s_ij, before the mask. With sinks, one logit a head, exp(sink) is
one more term of the sum under the logarithm: it takes probability and adds no value. Backward needs no more than lse
to know of it.

Forward goes through the keys tile by tile, with a running maximum m, sum l and output o of each query (online softmax):

    m' = max(m, max_j s_ij)     c = exp(m - m')     l' = c l + Σ_j exp(s_ij - m')     o' = c o + Σ_j exp(s_ij - m') v_j

and ends with o / l and lse = m + log l. Backward computes p again from lse, tile by tile. The gradient of the softmax
is ds_ij = p_ij (dp_ij - Σ_j p_ij dp_ij), and that sum is do_i · o_i, called delta_i: no second pass over the keys.

    delta_i = do_i · o_i        dp_ij = do_i · v_j        ds_ij = p_ij (dp_ij - delta_i)
    dv_j = Σ_i p_ij do_i        dq_i = scale Σ_j ds_ij k_j        dk_j = scale Σ_i ds_ij q_i

Under a soft cap ds_ij is also multiplied by 1 - (s_ij / c)², s_ij being the capped score.

Threads. Forward deals out blocks of rows. Backward cuts the queries and the keys of a sequence into blocks; a work item
is a pair (query block a, key block b) of one kv head, and pairs run by diagonals: phase after phase, in each the pairs
with b = a - phase (mod the number of blocks). No two pairs of a phase share a query block or a key block. So every
element of dq, dk and dv has one writer at a time, and its terms come in the same order for any number of threads; p is
computed once; and even one sequence with few kv heads keeps all threads busy.

A tile of queries and keys of which a window hides everything is not computed.

Sources: Dao, FlashAttention-2, arXiv 2307.08691; Ainslie et al., grouped-query attention, arXiv 2305.13245; Xiao et
al.,
attention sinks, arXiv 2309.17453, as logits of their own in gpt-oss; Gemma 2, arXiv 2408.00118 (soft cap).
"""
from cython.parallel cimport prange, threadid
from libc.string cimport memset
from libc.limits cimport INT_MAX

import numpy as np

from parallel cimport threads_for
from shapes cimport require_1d, require_2d

cdef extern from "attention.h" nogil:
    int KEY_TILE, ROW_BLOCK
    ctypedef struct attention:
        const float *q
        const float *k
        const float *v
        float *o_out
        float *lse_out
        const float *o
        const float *lse
        const float *d_o
        float *dq
        float *dk
        float *dv
        float *delta
        const float *sinks
        const int *q_begin
        const int *k_begin
        int n_head, n_head_kv, group, head_size, value_size, window, block
        float scale, soft_cap
    ctypedef void (*attention_rows)(const attention *a, int seq, int head_kv, int row, int n_rows,
                                    float *scratch) noexcept nogil
    ctypedef void (*attention_query)(const attention *a, int seq, int head, int head_end, float *scratch) noexcept nogil
    ctypedef void (*attention_token)(const attention *a, Py_ssize_t token) noexcept nogil
    ctypedef void (*attention_block)(const attention *a, int seq, int head_kv, int query, int key,
                                     float *scratch) noexcept nogil
    attention_rows attention_forward_rows "DISPATCH(attention_forward_rows)"
    attention_query attention_forward_query "DISPATCH(attention_forward_query)"
    attention_token attention_delta "DISPATCH(attention_delta)"
    attention_block attention_backward_block "DISPATCH(attention_backward_block)"
    Py_ssize_t attention_forward_scratch(const attention *a)
    Py_ssize_t attention_backward_scratch(const attention *a)

cdef extern from "scratch.h" nogil:
    void *scratch_get(size_t bytes)

cdef enum:
    BACKWARD_ITEMS = 16     # work items of a phase where the sequences are long enough: keep some threads evenly busy
    MAX_BLOCK_TILES = 6     # key tiles in a block: larger ones read less, but a block's gradients should stay in L2


cdef int set_inputs(attention *a, const char *op, const float[:, ::1] q, const float[:, ::1] k, const float[:, ::1] v,
                    const int[::1] q_begin, const int[::1] k_begin, float scale, int window, float soft_cap,
                    int n_head, int n_head_kv) except -1:
    """Checks what forward and backward have in common and fills it in."""
    cdef int n_seq = q_begin.shape[0] - 1, s, n_queries, n_keys
    name = op.decode()
    if n_head < 1 or n_head_kv < 1 or n_head % n_head_kv:
        raise ValueError(f"{name}: {n_head} heads are no multiple of {n_head_kv} key/value heads")
    if window < 0:
        raise ValueError(f"{name}: window is {window}, wanted at least 0")
    if not soft_cap >= 0:
        raise ValueError(f"{name}: soft_cap is {soft_cap:g}, wanted at least 0")
    a.n_head, a.n_head_kv, a.group, a.scale, a.soft_cap = n_head, n_head_kv, n_head // n_head_kv, scale, soft_cap
    a.head_size, a.value_size = q.shape[1] // n_head, v.shape[1] // n_head_kv
    a.window = window if window else INT_MAX
    require_2d(op, "q", q.shape, q.shape[0], n_head * a.head_size)
    require_2d(op, "k", k.shape, k.shape[0], n_head_kv * a.head_size)
    require_2d(op, "v", v.shape, k.shape[0], n_head_kv * a.value_size)
    if a.head_size < 1 or a.value_size < 1:
        raise ValueError(f"{name}: heads of {a.head_size} and {a.value_size} values, wanted at least 1")
    if n_seq < 0:
        raise ValueError(f"{name}: q_begin is empty, wanted a number for each sequence and one more")
    require_1d(op, "k_begin", k_begin.shape, q_begin.shape[0])
    if q_begin[0] != 0 or q_begin[n_seq] != q.shape[0] or k_begin[0] != 0 or k_begin[n_seq] != k.shape[0]:
        raise ValueError(f"{name}: q_begin goes from {q_begin[0]} to {q_begin[n_seq]} and k_begin from {k_begin[0]} to "
                         f"{k_begin[n_seq]}, wanted 0 to {q.shape[0]} and 0 to {k.shape[0]}")
    for s in range(n_seq):
        n_queries, n_keys = q_begin[s + 1] - q_begin[s], k_begin[s + 1] - k_begin[s]
        if not 0 <= n_queries <= n_keys:
            raise ValueError(f"{name}: sequence {s} has {n_queries} queries and {n_keys} keys, "
                             "wanted 0 <= queries <= keys")
    a.q_begin, a.k_begin = &q_begin[0], &k_begin[0]
    if q.shape[0]:
        a.q, a.k, a.v = &q[0, 0], &k[0, 0], &v[0, 0]
    return 0


cdef int divide_up(int n, int m) noexcept:
    return (n + m - 1) // m


cdef float *take_scratch(const char *op, Py_ssize_t n) except NULL:
    cdef float *scratch = <float *>scratch_get(sizeof(float) * n)
    if scratch == NULL:
        raise MemoryError(f"{op.decode()}: no memory for {4 * n} bytes of scratch")
    return scratch


def attention_forward(float[:, ::1] o not None, float[:, ::1] lse not None, const float[:, ::1] q not None,
                      const float[:, ::1] k not None, const float[:, ::1] v not None, const float[::1] sinks,
                      const int[::1] q_begin not None, const int[::1] k_begin not None, float scale, int window,
                      float soft_cap, int n_head, int n_head_kv, int n_threads):
    """o_i = Σ_j softmax_j(scale q_i · k_j) v_j over the keys j that query i sees; see the head of this module.

    o           float32 (T, H·Dv), OUT
    lse         float32 (T, H), OUT, saved for backward: log Σ_j exp(s_ij), the sink included
    q           float32 (T, H·D)
    k           float32 (S, HKV·D)
    v           float32 (S, HKV·Dv)
    sinks       float32 (H,): a logit of each head that stands for no key; or None
    q_begin     int32 (n_seq + 1,): where each sequence's queries begin, from 0 to T
    k_begin     int32 (n_seq + 1,): where its keys and values begin, from 0 to S; as many as queries or more
    scale       usually 1 / √D
    window      how many keys a query sees at most, its own included; 0: all up to its own
    soft_cap    scores s, already scaled, become soft_cap · tanh(s / soft_cap); 0: they stay
    n_head      H
    n_head_kv   HKV, a divisor of H
    Raises ValueError for sizes that don't fit, MemoryError. Twin: lorafast.reference.attention.
    """
    cdef attention a
    cdef Py_ssize_t T = q.shape[0]
    set_inputs(&a, "attention_forward", q, k, v, q_begin, k_begin, scale, window, soft_cap, n_head, n_head_kv)
    a.sinks = NULL
    if sinks is not None:
        require_1d("attention_forward", "sinks", sinks.shape, n_head)
        a.sinks = &sinks[0]
    require_2d("attention_forward", "o", o.shape, T, n_head * a.value_size)
    require_2d("attention_forward", "lse", lse.shape, T, n_head)
    if T == 0:
        return
    a.o_out, a.lse_out = &o[0, 0], &lse[0, 0]

    blocks, single = [], []
    cdef int seq, n_rows, row
    for seq in range(q_begin.shape[0] - 1):
        n_rows = (q_begin[seq + 1] - q_begin[seq]) * a.group
        if n_rows == a.group:
            single.append(seq)
        else:
            for row in reversed(range(0, n_rows, ROW_BLOCK)):       # most work first: the last rows see the most keys
                blocks.append((seq, row, min(ROW_BLOCK, n_rows - row)))

    cdef int threads = threads_for(2 * (q.shape[0] * q.shape[1] + k.shape[0] * k.shape[1]), n_threads)
    cdef Py_ssize_t thread_size = attention_forward_scratch(&a)
    cdef float *scratch = take_scratch("attention_forward", threads * thread_size)
    cdef attention_rows forward_rows = attention_forward_rows
    cdef attention_query forward_query = attention_forward_query
    cdef const int[:, ::1] block = np.array(blocks, np.int32).reshape(-1, 3)
    cdef const int[::1] query = np.array(single, np.int32)
    cdef int n_blocks = block.shape[0], i, b, part
    for i in prange(n_blocks * n_head_kv, nogil=True, num_threads=threads, schedule="dynamic"):
        b = i % n_blocks
        forward_rows(&a, block[b, 0], i // n_blocks, block[b, 1], block[b, 2], scratch + threadid() * thread_size)
    # For single queries the heads are dealt out: a thread takes neighbours, which lie together in a row of k and v.
    for i in prange(<int>query.shape[0] * threads, nogil=True, num_threads=threads, schedule="static"):
        part = i % threads
        forward_query(&a, query[i // threads], part * n_head // threads, (part + 1) * n_head // threads,
                      scratch + threadid() * thread_size)


def attention_backward(float[:, ::1] dq not None, float[:, ::1] dk not None, float[:, ::1] dv not None,
                       const float[:, ::1] do not None, const float[:, ::1] q not None, const float[:, ::1] k not None,
                       const float[:, ::1] v not None, const float[:, ::1] o not None, const float[:, ::1] lse not None,
                       const int[::1] q_begin not None, const int[::1] k_begin not None, float scale, int window,
                       float soft_cap, int n_head, int n_head_kv, int n_threads):
    """Differentiates o_i = Σ_j p_ij v_j with p_ij = exp(scale q_i · k_j - lse_i); see the head of this module.

    dq, dk, dv  float32, shapes of q, k and v, OUT
    do          float32 (T, H·Dv)
    o, lse      float32 (T, H·Dv) and (T, H), from forward; lse holds what sinks took
    The rest as in forward.
    Raises ValueError for sizes that don't fit, MemoryError. Twin: lorafast.reference.attention.
    """
    cdef attention a
    cdef Py_ssize_t T = q.shape[0]
    set_inputs(&a, "attention_backward", q, k, v, q_begin, k_begin, scale, window, soft_cap, n_head, n_head_kv)
    require_2d("attention_backward", "dq", dq.shape, T, q.shape[1])
    require_2d("attention_backward", "dk", dk.shape, k.shape[0], k.shape[1])
    require_2d("attention_backward", "dv", dv.shape, v.shape[0], v.shape[1])
    require_2d("attention_backward", "do", do.shape, T, n_head * a.value_size)
    require_2d("attention_backward", "o", o.shape, T, n_head * a.value_size)
    require_2d("attention_backward", "lse", lse.shape, T, n_head)
    if T == 0:
        np.asarray(dk)[...] = 0
        np.asarray(dv)[...] = 0
        return
    a.dq, a.dk, a.dv, a.d_o, a.o, a.lse = &dq[0, 0], &dk[0, 0], &dv[0, 0], &do[0, 0], &o[0, 0], &lse[0, 0]

    cdef int seq, n_seq = q_begin.shape[0] - 1, longest = 0
    for seq in range(n_seq):
        longest = max(longest, k_begin[seq + 1] - k_begin[seq])
    cdef int blocks_wanted = divide_up(BACKWARD_ITEMS, n_seq * n_head_kv)
    a.block = KEY_TILE * min(divide_up(longest, blocks_wanted * KEY_TILE), MAX_BLOCK_TILES)

    blocks, phases = [], 0          # blocks: sequence, number of the query block, number of key blocks of the sequence
    cdef int query_blocks, key_blocks
    for seq in range(n_seq):
        query_blocks = divide_up(q_begin[seq + 1] - q_begin[seq], a.block)
        key_blocks = divide_up(k_begin[seq + 1] - k_begin[seq], a.block)
        blocks += [(seq, b, key_blocks) for b in range(query_blocks)]
        phases = max(phases, key_blocks)

    cdef int threads = threads_for(4 * (q.shape[0] * q.shape[1] + k.shape[0] * k.shape[1]), n_threads)
    cdef Py_ssize_t thread_size = attention_backward_scratch(&a), token
    a.delta = take_scratch("attention_backward", threads * thread_size + T * n_head)
    cdef float *scratch = a.delta + T * n_head
    cdef attention_token delta = attention_delta
    cdef attention_block backward_block = attention_backward_block
    cdef size_t q_row = sizeof(float) * q.shape[1], k_row = sizeof(float) * k.shape[1]
    cdef size_t v_row = sizeof(float) * v.shape[1]
    for token in prange(T, nogil=True, num_threads=threads, schedule="static"):
        memset(&dq[token, 0], 0, q_row)
        delta(&a, token)
    for token in prange(k.shape[0], nogil=True, num_threads=threads, schedule="static"):
        memset(&dk[token, 0], 0, k_row)
        memset(&dv[token, 0], 0, v_row)
    cdef const int[:, ::1] block = np.array(blocks, np.int32)
    cdef int n_blocks = block.shape[0], phase, i, b, n
    for phase in range(phases):
        for i in prange(n_blocks * n_head_kv, nogil=True, num_threads=threads, schedule="dynamic"):
            b = i % n_blocks
            n = block[b, 2]
            if phase < n:
                backward_block(&a, block[b, 0], i // n_blocks, a.block * block[b, 1],
                               a.block * ((block[b, 1] - phase + n) % n), scratch + threadid() * thread_size)


def attention_scratch_bytes(int T, int n_head, int head_size, int value_size, int n_threads) -> int:
    """Bytes of working memory that attention over T tokens takes and keeps, at most."""
    cdef attention a
    a.n_head, a.head_size, a.value_size, a.block = n_head, head_size, value_size, KEY_TILE * MAX_BLOCK_TILES
    return sizeof(float) * max(n_threads * attention_forward_scratch(&a),
                               n_threads * attention_backward_scratch(&a) + T * n_head)
