"""The tables of docs/machines.md: what `lorafast plan --ranks N --network ...` says of 1 to 64 machines.

    python bench/machines_table.py FOLDER [--models 7B,70B] [--desktop 7] [--node 28]

The files are written to FOLDER: they have the geometry of Llama 2, in the types of Q4_K_M, and holes for weights, which
take no disk. A step has one pass of 2048 tokens on each machine, and adapters have rank 16 on the seven matrices of
each block. Memory, exchanges and the time of a pass on one core of this machine are the plan's; parts of a pass are
measured once for each model, by the processor's clock, so that others may use the machine. Assumed is that an office
machine is --desktop times as fast as this core, and a node of a cluster --node times, and how much memory they have.
"""
from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from plans import write_text, write_with_holes
from released import Release, llama2_7b, llama2_70b

from lorafast.options.finetune import FinetuneConfig
from lorafast.planning import planner, speed
from lorafast.planning.plan import Plan
from lorafast.training.run import plan_of

OPTIONS = {"preset": "modern", "ctx": 2048, "batch": 1, "lora_r": 16, "threads": 1}


@dataclass(frozen=True)
class Job:
    """What is trained, on how many machines, of what memory, and over what."""

    release: Callable[[], Release]
    machine: str
    mem_limit: str
    machines: tuple[int, ...]
    networks: tuple[str, ...]


JOBS = {"7B": Job(llama2_7b, "desktop", "13G", (1, 2, 4, 8, 16), ("1G", "10G")),
        "70B": Job(llama2_70b, "node", "110G", (1, 2, 4, 8, 16, 32, 64), ("10G", "25G"))}
"""Of office machines with 16 GB and nodes with 128 GB, what these leave to a run."""


@contextmanager
def measuring_once() -> Iterator[None]:
    """Plans of one model share what they measure, so that rows of a table differ by ranks and network alone. It is
    measured by the processor's clock."""
    def remembering(measure: Callable[..., Any]) -> Callable[..., Any]:
        known: list[Any] = []

        def measured(*arguments: Any, **named: Any) -> Any:
            if not known:
                known.append(measure(*arguments, **named))
            return known[0]
        return measured

    with ExitStack() as stack:
        for name in ("measure_speed", "measure_optimiser", "measure_disk"):
            stack.enter_context(patch.object(planner, name, remembering(getattr(planner, name))))
        stack.enter_context(patch.object(speed, "time", SimpleNamespace(perf_counter=time.process_time)))
        yield


def planned(model: Path, text: Path, job: Job, n: int, network: str) -> Plan:
    return plan_of(FinetuneConfig.complete(
        {"model_base": str(model), "train_data": (str(text),), "ranks": n, "network": network, "grad_acc": n,
         "mem_limit": job.mem_limit, **OPTIONS}))


def row(name: str, n: int, plans: list[Plan], times: float) -> str:
    """times: how many times as fast as this core a machine is."""
    here = plans[0].timing.seconds - plans[0].timing.exchange
    cells = [name, n, f"{plans[0].nbytes / 1e9:.1f} GB", f"{here:.0f} s", f"{here / times:.0f} s"]
    for plan in plans:
        exchange = plan.timing.exchange
        step = here / times + exchange
        tokens = plan.job.rows * plan.job.passes
        cells.append(f"{exchange:.2f} s, {here / times / step:.1%}, {tokens / step:.0f} tokens/s")
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default=",".join(JOBS), metavar="NAME,...")
    parser.add_argument("--desktop", type=float, default=7, help="speed of an office machine over this core's")
    parser.add_argument("--node", type=float, default=28, help="speed of a node of a cluster over this core's")
    options = parser.parse_args()
    text = write_text(options.folder / "book.txt")
    for name in options.models.split(","):
        job, model = JOBS[name], options.folder / f"{name}.gguf"
        write_with_holes(model, job.release())
        print("| model | machines | memory of each | a pass on one core here | on such a machine | "
              f"{' | '.join(job.networks)} |")
        print("|---|---|---|---|---|---|---|")
        with measuring_once():
            for n in job.machines:
                plans = [planned(model, text, job, n, network) for network in job.networks]
                print(row(name, n, plans, getattr(options, job.machine)), flush=True)
        print()
        model.unlink()


if __name__ == "__main__":
    main()
