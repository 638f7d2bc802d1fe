"""NumPy twins of the Adam kernel and its gradient norm. They work in the arrays' own precision."""
import numpy as np


def adam_step(param, m, v, grad, grad_scale, beta1, beta2, a_t, c_t, eps, decay, n_threads):
    g = grad * grad_scale
    m[:] = beta1 * m + (1 - beta1) * g
    v[:] = beta2 * v + (1 - beta2) * g**2
    param[:] = param * (1 - decay) - m * a_t / (np.sqrt(v * c_t) + eps)


def sum_of_squares(x, n_threads):
    return float(np.sum(np.square(x, dtype=np.float64)))
