"""The gated delta rule: attention whose memory is a matrix that forgets and is corrected, exact, chunk by chunk.

Each head of values has a state S (D, DV), 0 at the first row of a sequence. With keys and queries of length about 1, a
log decay g_t <= 0 and a rate beta_t:

    S = exp(g_t) S        delta_t = beta_t (v_t - Sᵀ k_t)        S = S + k_t delta_tᵀ        o_t = Sᵀ q_t

Head p of values goes with head p mod HK of keys and queries. Sequences follow one another, from begin[i] to
begin[i + 1], and do not see each other.

A chunk of n rows is worked on as matrices. Let S be the state before it, G_t = Σ g up to t, E_ti = exp(G_t - G_i) for
i <= t, Delta the rows delta_t:

    W = strictly lower part of E ∘ K Kᵀ        A = diag(beta) W        P = E ∘ Q Kᵀ (lower part)
    X = V - diag(exp G) K S                    (I + A) Delta = diag(beta) X, by forward substitution
    O = diag(exp G) Q S + P Delta              S' = exp(G_n) S + (diag(exp(G_n - G)) K)ᵀ Delta

Backward runs the states once more, keeping S and X of each chunk, then goes through the chunks from the last to the
first. From dO and dS':

    dDelta = Pᵀ dO + diag(exp(G_n - G)) K dS'        dR = (I + Aᵀ)⁻¹ dDelta        dV = diag(beta) dR
    dP = dO Deltaᵀ        dA = -dR Deltaᵀ            dbeta_t = dR_t · X_t + Σ_i dA_ti W_ti
    dQ = diag(exp G) dO Sᵀ + (E ∘ dP) K
    dK = (E ∘ dP)ᵀ Q + (M + Mᵀ) K + diag(exp(G_n - G)) Delta dS'ᵀ - diag(exp G) dV Sᵀ,  M = diag(beta) E ∘ dA
    dS = exp(G_n) dS' + (diag(exp G) Q)ᵀ dO - (diag(exp G) K)ᵀ dV

and dG collects what each exponential did; dg_t is the sum of dG from t to the end of the chunk.

Memory: a state and the errors X of each chunk of one head, for each thread: D · DV / 64 + DV floats a row.

Threads. Forward deals out the heads of values of each sequence, backward the heads of keys: the sums of a head always
come in the same order.

Sources: Yang, Kautz and Hatamizadeh, Gated Delta Networks, arXiv 2412.06464; Yang et al., Parallelizing Linear
Transformers with the Delta Rule, arXiv 2406.06484.
"""
from cython.parallel cimport prange, threadid

from parallel cimport threads_for
from shapes cimport require_2d

cdef extern from "delta_net.h" nogil:
    ctypedef struct delta_net:
        const float *q
        const float *k
        const float *v
        const float *g
        const float *beta
        const float *d_o
        float *o
        float *state
        float *dq
        float *dk
        float *dv
        float *dg
        float *dbeta
        const int *begin
        int n_head_k, n_head_v, D, DV
    ctypedef void (*delta_head)(const delta_net *a, int sequence, int head, float *scratch) noexcept nogil
    delta_head delta_forward "DISPATCH(delta_forward)"
    delta_head delta_backward "DISPATCH(delta_backward)"
    Py_ssize_t delta_forward_scratch(const delta_net *a)
    Py_ssize_t delta_backward_scratch(const delta_net *a, int longest)

cdef extern from "scratch.h" nogil:
    void *scratch_get(size_t bytes)


cdef int set_inputs(delta_net *a, const char *op, const float[:, ::1] q, const float[:, ::1] k, const float[:, ::1] v,
                    const float[:, ::1] g, const float[:, ::1] beta, const int[::1] begin, int n_head_k) except -1:
    """Checks what forward and backward have in common and fills it in."""
    cdef Py_ssize_t T = q.shape[0], i
    cdef int n_head_v = g.shape[1]
    name = op.decode()
    if n_head_k < 1 or n_head_v < 1 or n_head_v % n_head_k:
        raise ValueError(f"{name}: {n_head_v} heads of values by g's shape, wanted a multiple of {n_head_k} heads of "
                         "keys")
    a.n_head_k, a.n_head_v, a.D, a.DV = n_head_k, n_head_v, q.shape[1] // n_head_k, v.shape[1] // n_head_v
    require_2d(op, "q", q.shape, T, n_head_k * a.D)
    require_2d(op, "k", k.shape, T, n_head_k * a.D)
    require_2d(op, "v", v.shape, T, n_head_v * a.DV)
    require_2d(op, "g", g.shape, T, n_head_v)
    require_2d(op, "beta", beta.shape, T, n_head_v)
    if a.D < 1 or a.DV < 1:
        raise ValueError(f"{name}: heads of {a.D} and {a.DV} values, wanted at least 1")
    if begin.shape[0] < 1 or begin[0] != 0 or begin[begin.shape[0] - 1] != T:
        raise ValueError(f"{name}: begin does not go from 0 to {T}, wanted the first row of each sequence, and the "
                         "number of all rows")
    for i in range(begin.shape[0] - 1):
        if begin[i] > begin[i + 1]:
            raise ValueError(f"{name}: begin[{i + 1}] is {begin[i + 1]}, wanted at least {begin[i]}")
    a.begin, a.state = &begin[0], NULL
    if T:
        a.q, a.k, a.v, a.g, a.beta = &q[0, 0], &k[0, 0], &v[0, 0], &g[0, 0], &beta[0, 0]
    return 0


cdef float *take_scratch(const char *op, Py_ssize_t n) except NULL:
    cdef float *scratch = <float *>scratch_get(sizeof(float) * n)
    if scratch == NULL:
        raise MemoryError(f"{op.decode()}: no memory for {4 * n} bytes of scratch")
    return scratch


def delta_net_forward(float[:, ::1] o not None, float[:, :, ::1] state, const float[:, ::1] q not None,
                      const float[:, ::1] k not None, const float[:, ::1] v not None, const float[:, ::1] g not None,
                      const float[:, ::1] beta not None, const int[::1] begin not None, int n_head_k, int n_threads):
    """o_t = Sᵀ q_t; see the head of this module.

    o         float32 (T, HV·DV), OUT
    state     float32 (HV, D, DV), IN and OUT: before the first row and behind the last, of one sequence; None: 0, and
              nobody reads it
    q, k      float32 (T, HK·D)
    v         float32 (T, HV·DV)
    g         float32 (T, HV): logarithms of the decays, at most 0
    beta      float32 (T, HV): rates, 0 to 1
    begin     int32 (n_seq + 1,): where each sequence begins, from 0 to T
    n_head_k  HK, a divisor of HV
    Raises ValueError for sizes that don't fit, MemoryError. Twin: lorafast.reference.delta_net.
    """
    cdef delta_net a
    cdef Py_ssize_t T = q.shape[0]
    set_inputs(&a, "delta_net_forward", q, k, v, g, beta, begin, n_head_k)
    require_2d("delta_net_forward", "o", o.shape, T, v.shape[1])
    if state is not None:
        if state.shape[0] != a.n_head_v or state.shape[1] != a.D or state.shape[2] != a.DV or begin.shape[0] != 2:
            raise ValueError(f"delta_net_forward: state has shape {(state.shape[0], state.shape[1], state.shape[2])} "
                             f"for {begin.shape[0] - 1} sequences, wanted {(a.n_head_v, a.D, a.DV)} for one")
        a.state = &state[0, 0, 0]
    if T == 0:
        return
    a.o = &o[0, 0]
    cdef int threads = threads_for(T * a.n_head_v * a.D * a.DV, n_threads), i, n_head_v = a.n_head_v
    cdef Py_ssize_t size = delta_forward_scratch(&a)
    cdef float *scratch = take_scratch("delta_net_forward", threads * size)
    cdef delta_head forward = delta_forward
    for i in prange(<int>(begin.shape[0] - 1) * n_head_v, nogil=True, num_threads=threads, schedule="dynamic"):
        forward(&a, i // n_head_v, i % n_head_v, scratch + threadid() * size)


def delta_net_backward(float[:, ::1] dq not None, float[:, ::1] dk not None, float[:, ::1] dv not None,
                       float[:, ::1] dg not None, float[:, ::1] dbeta not None, const float[:, ::1] do not None,
                       const float[:, ::1] q not None, const float[:, ::1] k not None, const float[:, ::1] v not None,
                       const float[:, ::1] g not None, const float[:, ::1] beta not None,
                       const int[::1] begin not None, int n_head_k, int n_threads):
    """Differentiates o of delta_net_forward, with no state before the first row; see the head of this module.

    dq, dk      float32 (T, HK·D), OUT
    dv          float32 (T, HV·DV), OUT
    dg, dbeta   float32 (T, HV), OUT
    do          float32 (T, HV·DV)
    q, k, v, g, beta, begin, n_head_k  as in forward
    Raises ValueError for sizes that don't fit, MemoryError. Twin: lorafast.reference.delta_net.
    """
    cdef delta_net a
    cdef Py_ssize_t T = q.shape[0]
    set_inputs(&a, "delta_net_backward", q, k, v, g, beta, begin, n_head_k)
    require_2d("delta_net_backward", "dq", dq.shape, T, q.shape[1])
    require_2d("delta_net_backward", "dk", dk.shape, T, q.shape[1])
    require_2d("delta_net_backward", "dv", dv.shape, T, v.shape[1])
    require_2d("delta_net_backward", "dg", dg.shape, T, a.n_head_v)
    require_2d("delta_net_backward", "dbeta", dbeta.shape, T, a.n_head_v)
    require_2d("delta_net_backward", "do", do.shape, T, v.shape[1])
    if T == 0:
        return
    a.d_o, a.dq, a.dk, a.dv, a.dg, a.dbeta = &do[0, 0], &dq[0, 0], &dk[0, 0], &dv[0, 0], &dg[0, 0], &dbeta[0, 0]
    cdef int threads = threads_for(T * a.n_head_v * a.D * a.DV, n_threads), i, longest = 0
    for i in range(begin.shape[0] - 1):
        longest = max(longest, begin[i + 1] - begin[i])
    cdef Py_ssize_t size = delta_backward_scratch(&a, longest)
    cdef float *scratch = take_scratch("delta_net_backward", threads * size)
    cdef delta_head backward = delta_backward
    for i in prange(<int>(begin.shape[0] - 1) * n_head_k, nogil=True, num_threads=threads, schedule="dynamic"):
        backward(&a, i // n_head_k, i % n_head_k, scratch + threadid() * size)


def delta_net_scratch_bytes(int T, int D, int DV, int n_threads) -> int:
    """Bytes that one thread's call needs at most for sequences of up to T rows, times the threads."""
    cdef delta_net a
    a.D, a.DV = D, DV
    return 4 * n_threads * max(delta_forward_scratch(&a), delta_backward_scratch(&a, T))
