"""What must be the same on all ranks, looked at before a run begins."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import LoraFastError
from ..kernels import build_info
from .world import World


def refuse_differences(world: World, facts: Mapping[str, Any], advice: str) -> None:
    """LoraFastError, which names the first rank that differs from rank 0 and in what, if any does.

    facts  by name, to be compared and shown
    """
    all_facts = world.gather(dict(facts))
    for rank, theirs in enumerate(all_facts):
        for name, value in all_facts[0].items():
            if theirs.get(name) != value:
                raise LoraFastError(f"{world.name(rank)} has {name} {theirs.get(name)}, but {world.name(0)} has "
                                    f"{value}: {advice}")


def kinds_of_processors(world: World) -> str:
    """A warning where ranks compute with other instructions, and so get other bits; empty where all are alike."""
    isas = world.gather(build_info.isa())
    by_isa: dict[str, list[str]] = {}
    for rank, isa in enumerate(isas):
        by_isa.setdefault(isa, []).append(world.name(rank))
    if len(by_isa) == 1:
        return ""
    groups = "; ".join(f"{isa} on {', '.join(names)}" for isa, names in by_isa.items())
    return (f"ranks compute with unlike instructions ({groups}), whose last bits differ: results depend on which rank "
            "does which pass. LORAFAST_ISA=NAME, a set that all have, makes them alike")
