"""NumPy twins of the cross-entropy kernels. They work in the arrays' own precision."""
import numpy as np


def log_softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def capped(logits, soft_cap):
    """soft_cap · tanh(logits / soft_cap), and its derivative."""
    if not soft_cap:
        return logits, np.ones_like(logits)
    tanh = np.tanh(logits / soft_cap)
    return soft_cap * tanh, 1 - tanh**2


def cross_entropy_forward(loss, logits, targets, floor, soft_cap, n_threads):
    t = np.flatnonzero(targets >= 0)
    log_p = log_softmax(capped(logits[t], soft_cap)[0])[np.arange(len(t)), targets[t]]
    loss[:] = 0
    loss[t] = -np.log(np.exp(log_p) * (1 - floor) + floor) if floor else -log_p


def cross_entropy_forward_backward(loss, logits, targets, dloss, floor, soft_cap, n_threads):
    cross_entropy_forward(loss, logits, targets, floor, soft_cap, n_threads)
    # forward: loss = -ln(p (1 - floor) + floor), p = softmax(capped)[target]
    t = np.flatnonzero(targets >= 0)
    value, slope = capped(logits[t], soft_cap)
    gradient = np.exp(log_softmax(value)) * (1 - floor) + floor
    gradient[np.arange(len(t)), targets[t]] -= 1
    logits[:] = 0
    logits[t] = gradient * slope * dloss[t, None]
