"""Several adapters at once: their sum is an adapter too."""
from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..errors import LoraFastError
from ..network.lora import Pair
from .adapter_file import AdapterFile, fold


def stack(adapters: Iterable[tuple[AdapterFile, float]]) -> AdapterFile:
    """The adapter whose effect is that of all of them together, each times its factor.

    Σ_i s_i (x A_iᵀ) B_i = (x Aᵀ) B, where A has the rows of all A_i and B those of all s_i B_i: pairs of the same
    tensor are joined along the rank, scales go into B. The result has scale 1 and the warnings of all. One
    alone, times 1, is itself.

    LoraFastError where DoRA's magnitudes stand in the way: they are no part of such a sum.
    """
    adapters = list(adapters)
    if len(adapters) == 1 and adapters[0][1] == 1:
        return adapters[0][0]
    parts: dict[str, list[Pair]] = {}
    magnitudes: dict[str, np.ndarray] = {}
    warnings: list[str] = []
    for file, factor in adapters:
        if file.magnitudes and factor != 1:
            raise LoraFastError(f"an adapter with DoRA's magnitudes is used as it is, not times {factor:g}; times a "
                                "factor it can be merged into the model (lorafast merge)")
        magnitudes |= file.magnitudes
        warnings += file.warnings
        for name, (a, b) in file.pairs.items():
            parts.setdefault(name, []).append((a, fold(b, file.scale * factor, 1)))
    shared = [name for name in magnitudes if len(parts[name]) > 1]
    if shared:
        raise LoraFastError(f"two adapters change {shared[0]}, and one has DoRA's magnitudes for it, which is more "
                            "than a sum; have both merged into the model (lorafast merge)")
    joined = {name: (np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs]))
              for name, pairs in parts.items()}
    return AdapterFile(joined, warnings=warnings, magnitudes=magnitudes)
