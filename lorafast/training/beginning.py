"""How a new adapter begins by what the data shows: --init-method eva, and the ranks of --eva-rho."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice

from ..data.batches import Batch, evaluation_batches
from ..data.open import Data
from ..distributed.world import World
from ..network.lora import Adapter
from ..network.trainer import Strategy, Trainer
from ..planning.plan import Plan
from ..reporting.log import Log
from ..words import count
from . import eva
from .opening import Opened, open_weights


def with_ranks_by_data(opened: Opened, data: Data | None, plan: Plan, row: int, world: World,
                       log: Log) -> tuple[Opened, eva.Found | None]:
    """The run with the ranks that --eva-rho finds, the same on all ranks of MPI, and what was found; the run as it is
    and None without that.

    plan  of the run: no more memory is taken, for gradients and moments have none yet
    row   tokens of the longest row
    """
    if not opened.redistributes_ranks:
        return opened, None
    assert data, "it was opened for this"
    config, specs, none = opened.config, opened.adapter.specs, Adapter([], 1, 1)
    with ExitStack() as stack:
        weights = open_weights(opened, none, plan, row, stack)
        strategy = Strategy(1, head_tokens=plan.strategy.head_tokens, head_pieces=plan.strategy.head_pieces)
        trainer = Trainer(opened.network, none, plan.strategy.max_tokens(config.batch, row), strategy,
                          config.n_threads, weights=weights)
        found = eva.look(trainer, eva.most_ranks(specs, config.eva_rho), _batches(opened, data, trainer))
    ranks = world.gather(eva.redistributed(specs, found, config.eva_rho) if world.is_first else None)[0]
    assert ranks is not None, "the first rank sends them"
    narrow = [replace(spec, rank=ranks.get(spec.name, spec.rank)) for spec in specs]
    adapter = Adapter([spec for spec in narrow if spec.rank], opened.adapter.alpha, opened.adapter.r)
    log.note(f"ranks follow what directions explain (--eva-rho {config.eva_rho:g}): {min(ranks.values())} to "
             f"{max(ranks.values())}, {sum(ranks.values())} in all matrices together")
    return replace(opened, adapter=adapter), found


def begin_by_eva(opened: Opened, trainer: Trainer, data: Data, found: eva.Found | None, world: World,
                 log: Log) -> None:
    """Gives a new adapter the beginning of --init-method eva, by the samples in the data's order.

    found  what is known of the inputs already; None: they are looked at now
    """
    config, adapter = opened.config, opened.adapter
    if config.init_method != "eva" or opened.checkpoint is not None:
        return
    ranks = {spec.name: spec.rank for spec in adapter.specs}
    eva.initialise(adapter, found or eva.look(trainer, ranks, _batches(opened, data, trainer)))
    adapter.params[:] = world.gather(adapter.params if world.is_first else None)[0]
    looked_at = count(config.eva_batches, "batch", "batches")
    log.note(f"A of each matrix begins in the main directions of its inputs, found from {looked_at} (--init-method "
             "eva)")


def _batches(opened: Opened, data: Data, trainer: Trainer) -> Iterator[Batch]:
    return islice(evaluation_batches(data.train, trainer.max_tokens, bos_id=opened.tokenizer.bos_id,
                                     n_vocab=opened.hparams.n_vocab), opened.config.eva_batches)
