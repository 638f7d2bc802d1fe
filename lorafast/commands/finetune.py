"""`lorafast finetune`: trains an adapter."""
from __future__ import annotations

from ..options.finetune import FinetuneConfig
from ..reporting.choose import open_log
from ..training.run import finetune


def run(config: FinetuneConfig) -> int:
    """Runs the command and returns its exit status."""
    with open_log(config.log, llama_finetune=config.is_llama_finetune_run, quiet=config.quiet) as log:
        if config.n_gpu_layers > 0:
            log.warning("-ngl has no effect: lorafast has no GPU path, it computes on the CPU")
        result = finetune(config, log)
    return 128 + result.signal if result.interrupted else 0     # as shells report it
