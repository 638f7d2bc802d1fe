"""Tables of the angles by which rotary position embedding turns."""
import numpy as np


def rope_tables(
    n_positions: int,
    n_rot: int,
    freq_base: float,
    freq_scale: float = 1.0,
    freq_factors: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of angle[p, j] = freq_scale · p · freq_base^(-2j / n_rot) / freq_factors[j].

    n_positions    the tables are for positions 0 .. n_positions - 1
    n_rot          values of a head that are rotated, even
    freq_base      of `rope.freq_base`
    freq_scale     reciprocal of a linear `rope.scaling` factor
    freq_factors   (n_rot / 2,): the tensor `rope_freqs.weight` of Llama 3.1 and later, or None
    Returns cos and sin, float32 (n_positions, n_rot / 2).
    Raises ValueError for an odd n_rot or a wrong number of factors.

    The power is built by repeated float32 multiplication, as in the original; far out that drifts from the exact power.
    """
    if n_rot % 2:
        raise ValueError(f"rope_tables: n_rot is {n_rot}, wanted an even number")
    factors = np.ones(n_rot // 2, np.float32) if freq_factors is None else np.asarray(freq_factors, np.float32)
    if factors.shape != (n_rot // 2,):
        raise ValueError(f"rope_tables: freq_factors has shape {factors.shape}, wanted {(n_rot // 2,)}")
    theta_scale = np.float32(float(np.float32(freq_base)) ** (-2 / n_rot))
    theta = np.arange(n_positions, dtype=np.float32)
    angle = np.empty((n_positions, n_rot // 2), np.float32)
    for j in range(n_rot // 2):
        angle[:, j] = np.float32(freq_scale) * (theta / factors[j])
        theta *= theta_scale
    return np.cos(angle, dtype=np.float64).astype(np.float32), np.sin(angle, dtype=np.float64).astype(np.float32)
