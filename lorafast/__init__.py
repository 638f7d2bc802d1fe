"""LoRA fine-tuning of quantised GGUF language models on CPUs.

From Python: `finetune` trains, `Model` opens a model with adapters, the other commands are functions; see
docs/python.md. What these need is imported when they are first used.
"""
from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .api import Model as Model, finetune as finetune
    from .commands.functions import (
        check as check,
        convert as convert,
        merge as merge,
        perplexity as perplexity,
        plan as plan,
    )
    from .errors import LoraFastError as LoraFastError
    from .options.finetune import FinetuneConfig as FinetuneConfig
    from .reporting.events import (
        Continuation as Continuation,
        Ended as Ended,
        Evaluation as Evaluation,
        Started as Started,
        Step as Step,
    )

_HOMES = {
    "Model": "api", "finetune": "api",
    **dict.fromkeys(("check", "convert", "merge", "perplexity", "plan"), "commands.functions"),
    "FinetuneConfig": "options.finetune", "LoraFastError": "errors",
    **dict.fromkeys(("Started", "Step", "Evaluation", "Continuation", "Ended"), "reporting.events"),
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lorafast' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
