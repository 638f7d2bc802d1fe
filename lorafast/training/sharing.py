"""What ranks settle before they compute a run together, so that it has the bits that one would get.

The first rank's options, seed and checkpoint hold for all. The number of passes in a step, and how many samples and
logits are worked on at a time, decide the bits: they are the same on all ranks, and a checkpoint keeps them.
"""
from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..data.lengths import SharedRows
from ..data.open import Data
from ..distributed.agreement import kinds_of_processors, refuse_differences
from ..distributed.wire import WIRES
from ..distributed.world import World
from ..errors import LoraFastError
from ..network.trainer import Strategy
from ..options.finetune import MOST_TOKENS, FinetuneConfig
from ..planning.plan import Plan
from ..planning.sharing import Sharing
from ..reporting.log import Log
from ..system.threads import usable_cpus
from ..version import __version__
from ..words import count
from .opening import Opened

OWN = ("ranks", "rank_timeout", "threads", "mem_limit", "quiet", "log", "force", "model_base", "metrics", "report",
       "tensorboard")
"""Options in which ranks may differ: results do not depend on them."""


def own_options(config: FinetuneConfig, world: World, stack: ExitStack) -> FinetuneConfig:
    """The options of this rank: its share of the host's cores, and no files but the first rank's.

    A checkpoint to go on from need only be where the first rank is: others get a copy, which `stack` deletes.
    """
    if world.size == 1:
        return config
    world.transport.timeout = config.rank_timeout
    settled = {name: value for name, value in vars(config).items() if name not in OWN}
    refuse_differences(world, {"version": __version__} | settled,
                       "install the same version on all, and start them with the same options")
    checkpoint = _copy_of_checkpoint(config.checkpoint_in, world, stack)
    cpus = world.gather((world.hosts[world.rank], usable_cpus()))
    threads = config.threads or max(1, config.n_threads // cpus.count(cpus[world.rank]))
    config = replace(config, threads=threads, checkpoint_in=checkpoint)
    return config if world.is_first else replace(config, metrics="", report="", tensorboard="")


def _copy_of_checkpoint(path: str, world: World, stack: ExitStack) -> str:
    data = None
    if world.is_first and path and Path(path).is_file():
        data = Path(path).read_bytes()
    data = world.from_first(data)
    if world.is_first:
        return path
    if data is None:
        return ""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lorafast-"))
    copy = Path(folder) / Path(path).name
    copy.write_bytes(data)
    return str(copy)


def with_passes(opened: Opened, world: World, log: Log) -> Opened:
    """The run with its number of passes in a step: that of --grad-acc, else of the checkpoint, else one a rank."""
    config = opened.config
    if config.grad_acc is None:
        stored = _stored_numbers(opened, "passes").get("passes", 0)
        config = replace(config, grad_acc=stored or world.size)
        if stored > 1:
            log.note(f"{stored} passes a step, as the checkpoint had (--grad-acc)")
    if world.size > 1:
        hosts = ", ".join(f"{world.hosts.count(host)} on {host}" for host in dict.fromkeys(world.hosts))
        log.note(f"{world.size} ranks ({hosts}): a step is {count(config.n_acc, 'pass', 'passes')} of {config.batch} "
                 f"samples, {config.n_acc * config.batch} in all")
        if config.n_acc % world.size:
            log.warning(f"--grad-acc {config.n_acc} passes for {world.size} ranks: some wait for others; a multiple "
                        "keeps all busy")
    return replace(opened, config=config)


def sharing_of(config: FinetuneConfig, world: World) -> Sharing:
    """The ranks as a plan sees them. What connects them is not known: a run plans as if it were one host."""
    return Sharing(world.size, world.n_local, itemsize=WIRES[config.exchange].itemsize)


def plan_alike(opened: Opened, row: int, shared: SharedRows | None, world: World, log: Log) -> Plan:
    """The plan of this rank: the fastest one that fits with what all ranks, and the checkpoint, work on at a time.

    row, shared  see Opened.plan
    """
    plan = opened.plan(row, sharing_of(opened.config, world), shared)
    stored = _stored(opened)
    if len(stored) == 2 and stored != _decisive(opened.config, plan.strategy):
        try:
            plan = _planned_with(opened, row, shared, world, stored)
        except LoraFastError:
            log.warning(f"the checkpoint's run worked on {stored[0]} samples and {stored[1]} logits at a time, which "
                        "does not fit here: the last bits of this run are not those of one that was never stopped")
    least = tuple(map(min, zip(*world.gather(_decisive(opened.config, plan.strategy)))))
    if least != _decisive(opened.config, plan.strategy):
        plan = _planned_with(opened, row, shared, world, least)
    return plan


def _planned_with(opened: Opened, row: int, shared: SharedRows | None, world: World,
                  decisive: tuple[int, ...]) -> Plan:
    micro_batch, head_tokens = decisive
    config = replace(opened.config, micro_batch=micro_batch, head_tokens=head_tokens)
    return replace(opened, config=config).plan(row, sharing_of(config, world), shared)


def _decisive(config: FinetuneConfig, strategy: Strategy) -> tuple[int, ...]:
    """Samples, and tokens whose logits exist, that are worked on at a time."""
    return strategy.micro_batch or config.batch, strategy.head_tokens


def _stored(opened: Opened) -> tuple[int, ...]:
    """These numbers in the run of the checkpoint; empty where it says nothing, or had other passes."""
    stored = _stored_numbers(opened, "batch", "ctx", "micro_batch", "head_tokens")
    if (stored.get("batch"), stored.get("ctx")) != (opened.config.batch, opened.config.ctx):
        return ()
    return tuple(stored[name] for name in ("micro_batch", "head_tokens") if name in stored)


def _stored_numbers(opened: Opened, *names: str) -> dict[str, int]:
    """The values that the checkpoint keeps of these, as far as a run can have written them."""
    extras = opened.checkpoint.extras if opened.checkpoint else {}
    return {name: extras[name] for name in names
            if isinstance(extras.get(name), int) and 1 <= extras[name] <= MOST_TOKENS}


def decisive_extras(config: FinetuneConfig, strategy: Strategy) -> dict[str, Any]:
    """What a checkpoint keeps of what decides the bits."""
    micro_batch, head_tokens = _decisive(config, strategy)
    return {"passes": config.n_acc, "batch": config.batch, "ctx": config.ctx, "micro_batch": micro_batch,
            "head_tokens": head_tokens}


def check_alike(opened: Opened, data: Data, world: World, log: Log) -> None:
    """LoraFastError where ranks have other files; a warning where their processors give other bits."""
    if world.size == 1:
        return
    refuse_differences(world, {"the base model": opened.fingerprint}, "copy the same file to all hosts")
    refuse_differences(world, {"the precision": opened.network.precision},
                       "auto goes by the processor: give --precision int16")
    parts = {"training": data.train, "evaluation": data.valid, "test": data.test}
    refuse_differences(world, {f"the {name} data": samples and samples.identity for name, samples in parts.items()},
                       "copy the same files to all hosts, or name a folder that all see")
    warning = kinds_of_processors(world)
    if warning:
        log.warning(warning)
