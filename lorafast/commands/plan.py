"""`lorafast plan`: what a run of `finetune` with the same options would take."""
from __future__ import annotations

from ..options.finetune import FinetuneConfig
from ..system.output import show
from ..training.run import plan


def run(config: FinetuneConfig) -> int:
    """Runs the command and returns its exit status."""
    plan(config, show)
    return 0
