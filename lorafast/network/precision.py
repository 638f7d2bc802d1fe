"""The precision of products with quantised weights, from what a user asks for."""
from __future__ import annotations

AUTO = "int16"
"""What `auto` means: as exact as training needs, and on every processor faster than float32."""


def resolve(asked: str) -> str:
    """One of kernels.linear.PRECISIONS for one of options.finetune.PRECISIONS."""
    return AUTO if asked == "auto" else asked
