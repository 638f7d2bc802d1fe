"""`lorafast finetune`: trains an adapter."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..distributed import joining
from ..distributed.world import World
from ..errors import LoraFastError, UsageError
from ..options.declare import given_in
from ..options.finetune import FinetuneConfig
from ..reporting.choose import open_log
from ..training.run import finetune
from ..training.sharing import OWN


def run(config: FinetuneConfig) -> int:
    """Runs the command and returns its exit status."""
    with open_log(config.log, llama_finetune=config.is_llama_finetune_run, quiet=config.quiet) as log:
        if config.n_gpu_layers > 0:
            log.warning("-ngl has no effect: lorafast has no GPU path, it computes on the CPU")
        result = finetune(config, log)
    return 128 + result.signal if result.interrupted else 0     # as shells report it


def run_as_rank(argv: Sequence[str]) -> int:
    """Runs the command where a launcher of MPI has started several processes. The first rank tells of errors."""
    world = joining.world()
    try:
        with world.failing_together():
            config = _config_of_first(argv, world)
        return run(config)
    except LoraFastError as error:
        if world.is_first:
            raise
        return error.exit_status


def _config_of_first(argv: Sequence[str], world: World) -> FinetuneConfig:
    """The options, completed by the first rank, which has the folder of a run to go on with; others need not have it.

    What ranks may differ in (threads, memory, where the model is) each has as its own command line says.
    """
    given: dict[str, Any] | None = given_in(FinetuneConfig, argv)
    if given is None:
        raise UsageError("--help is for one process: lorafast finetune --help")
    of_all = world.gather(given)
    for rank, theirs in enumerate(of_all):
        for name in sorted({*of_all[0], *theirs} - set(OWN)):
            if theirs.get(name) != of_all[0].get(name):
                raise UsageError(f"{world.name(rank)} was started with other options than {world.name(0)}: "
                                 f"--{name.replace('_', '-')}")
    config = world.gather(FinetuneConfig.complete(given) if world.is_first else None)[0]
    if config is None:
        raise ValueError("the first rank has options")
    return config if world.is_first else replace(config, **{name: given[name] for name in OWN if name in given})
