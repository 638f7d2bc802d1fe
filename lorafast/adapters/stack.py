"""Several adapters at once: their sum is an adapter too."""
from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..lora import Pair
from .adapter_file import AdapterFile, fold


def stack(adapters: Iterable[tuple[AdapterFile, float]]) -> AdapterFile:
    """The adapter whose effect is that of all of them together, each times its factor.

    Σ_i s_i (x A_iᵀ) B_i = (x Aᵀ) B, where A has the rows of all A_i and B those of all s_i B_i: pairs of the same tensor
    are joined along the rank, scales go into B. The result has scale 1 and the warnings of all.
    """
    parts: dict[str, list[Pair]] = {}
    warnings: list[str] = []
    for file, factor in adapters:
        warnings += file.warnings
        for name, (a, b) in file.pairs.items():
            parts.setdefault(name, []).append((a, fold(b, file.scale * factor, 1)))
    pairs = {name: tuple(map(np.concatenate, zip(*pairs))) for name, pairs in parts.items()}
    return AdapterFile(pairs, warnings=warnings)
