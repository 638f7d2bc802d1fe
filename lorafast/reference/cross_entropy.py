"""NumPy twins of the cross-entropy kernels. They work in the arrays' own precision."""
import numpy as np


def log_softmax(logits):
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def cross_entropy_forward(loss, logits, targets, floor, n_threads):
    t = np.flatnonzero(targets >= 0)
    log_p = log_softmax(logits[t])[np.arange(len(t)), targets[t]]
    loss[:] = 0
    loss[t] = -np.log(np.exp(log_p) * (1 - floor) + floor) if floor else -log_p


def cross_entropy_backward(dlogits, dloss, logits, targets, floor, n_threads):
    # forward: loss = -ln(p (1 - floor) + floor)
    t = np.flatnonzero(targets >= 0)
    gradient = np.exp(log_softmax(logits[t])) * (1 - floor) + floor
    gradient[np.arange(len(t)), targets[t]] -= 1
    dlogits[t] += gradient * dloss[t, None]


def cross_entropy_forward_backward(loss, logits, targets, dloss, floor, n_threads):
    cross_entropy_forward(loss, logits, targets, floor, n_threads)
    dlogits = np.zeros_like(logits)
    cross_entropy_backward(dlogits, dloss, logits, targets, floor, n_threads)
    logits[:] = dlogits
