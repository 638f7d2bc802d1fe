"""The cache of what lies below the lowest trained block (--prefix-cache), as a run's options and data ask for it."""
from __future__ import annotations

import hashlib

import numpy as np

from ..data.open import Data
from ..data.preferences import Preferences
from ..data.samples import Samples, Sequences
from ..distributed.world import World
from ..errors import UsageError
from ..network.lora import Adapter
from ..network.network import Network
from ..network.prefix_cache import NAME, TYPES, PrefixCache
from ..options.finetune import FinetuneConfig
from ..options.methods import METHODS
from ..planning.plan import Plan
from .opening import Opened


def open_prefix_cache(opened: Opened, data: Data, world: World) -> PrefixCache | None:
    """What --prefix-cache asks for, of each of several ranks its own file; None without it. UsageError where nothing
    stays the same."""
    config = opened.config
    if not config.prefix_cache:
        return None
    lowest = check_prefix_cache(config, opened.network, opened.adapter, data.train)
    digest = hashlib.sha256()
    for part in (opened.fingerprint, opened.network.precision, str(lowest), config.prefix_cache_type,
                 *map(str, (config.norm_rms_eps, config.rope_freq_base, config.rope_freq_scale)),
                 str(data.train.identity), config.method):
        digest.update(part.encode() + b"\n")
    return PrefixCache(config.prefix_cache, digest.hexdigest(), row_lengths(data.train), opened.hparams.n_embd, lowest,
                       config.prefix_cache_type, NAME if world.size == 1 else f"{world.rank}-{NAME}")


def check_prefix_cache(config: FinetuneConfig, network: Network, adapter: Adapter, samples: Samples) -> int:
    """The lowest trained block. UsageError where there is nothing below it, or rows are not the same in each epoch."""
    lowest = network.lowest_block(adapter)
    if not lowest:
        raise UsageError(f"--prefix-cache {config.prefix_cache}: the lowest block is trained, so that nothing stays "
                         "the same; give --layers N")
    source = network.hparams.keys_below(lowest)
    if source is not None:
        raise UsageError(f"--prefix-cache {config.prefix_cache}: trained blocks attend to keys of block {source}, "
                         f"which the cache does not hold; give --layers {network.hparams.n_layer - source} or more")
    if not isinstance(samples, Sequences):
        raise UsageError(f"--prefix-cache {config.prefix_cache}: {samples.name} is text, which is cut anew in each "
                         "epoch; it is for records")
    return lowest


def row_lengths(samples: Samples) -> np.ndarray:
    """Tokens that each row is computed with, int64 (R,): of preferences there are two rows to a sample."""
    if isinstance(samples, Preferences):
        return np.stack([samples.size - 1, samples.shared + samples.other_size - 1 - samples.in_common],
                        axis=1).ravel()
    return np.asarray(samples.size - 1)


def completed(plan: Plan, opened: Opened, data: Data) -> Plan:
    """The plan with what only the data tells: what reading it took, the reference's passes, and the size of a prefix
    cache."""
    config, plan = opened.config, plan.after_reading(data.peak)
    if METHODS[config.method].reference:
        lengths = np.concatenate([row_lengths(part) for part in data.parts])
        plan = plan.with_reference(int(lengths.sum()), len(lengths))
    if config.prefix_cache:
        lowest = check_prefix_cache(config, opened.network, opened.adapter, data.train)
        plan = plan.with_prefix_cache(prefix_cache_bytes(config, opened.network, data.train), lowest)
    return plan


def prefix_cache_bytes(config: FinetuneConfig, network: Network, samples: Samples) -> int:
    """What the cache takes on disk."""
    itemsize = np.dtype(TYPES[config.prefix_cache_type]).itemsize
    return int(row_lengths(samples).sum()) * network.hparams.n_embd * itemsize
