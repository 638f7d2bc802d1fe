"""NumPy twin of kernels/lora.pyx."""


def lora_forward(h, x, A, scale, n_threads=1):
    h[:] = scale * x @ A.T


def lora_backward(c, dA, dB, dy, x, B, h, scale, n_threads=1):
    c[:] = scale * dy @ B.T             # forward: y += h @ B, h = scale * x @ A.T
    dA += c.T @ x
    dB += h.T @ dy
