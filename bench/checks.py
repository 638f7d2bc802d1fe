"""Nothing is timed before its results were compared with the reference."""
from __future__ import annotations

import numpy as np


def nmse(got: np.ndarray, exact: np.ndarray) -> float:
    """Normalised mean squared error: sum (got - exact)² / sum exact²."""
    return float(np.sum((got - exact) ** 2) / np.sum(exact**2))


def check(name: str, got: np.ndarray, exact: np.ndarray, limit: float) -> float:
    """The error, if it is below the limit; otherwise the bench ends here."""
    error = nmse(got, exact)
    if not error < limit:
        raise SystemExit(f"{name} is wrong: NMSE {error:.1e}, limit {limit:.0e}; its speed would mean nothing")
    return error
