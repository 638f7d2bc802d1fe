"""Trains for a while, with saves, evaluations and generation, and watches that nothing grows: `soak.py --minutes 60`.

Memory, open files, maps and threads of the process, and the time of a step, are compared between the second and the
last fifth of the run: the first still fills caches.
"""
from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from make_models import make_tiny  # noqa: E402

from lorafast.options.finetune import FinetuneConfig  # noqa: E402
from lorafast.reporting.events import Event, Step  # noqa: E402
from lorafast.system.process import resident_bytes  # noqa: E402
from lorafast.training.run import finetune  # noqa: E402

GROWTH = {"memory, MB": 8.0, "open files": 1.0, "maps": 8.0, "threads": 1.0}
"""How much more of it there may be at the end; of the time of a step, a half (other work may run beside it)."""
SLOWER = 1.5
EVERY = 5
"""Steps between two looks."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60)
    options = parser.parse_args()
    rows: list[dict[str, float]] = []
    newest = time.process_time()

    def observe(event: Event) -> None:
        nonlocal newest
        if isinstance(event, Step) and event.iteration % EVERY == 0:
            now = time.process_time()
            rows.append({"memory, MB": resident_bytes() / 2**20, "open files": len(os.listdir("/proc/self/fd")),
                         "maps": len(Path("/proc/self/maps").read_text().splitlines()),
                         "threads": len(os.listdir("/proc/self/task")), "CPU ms a step": 1000 * (now - newest) / EVERY})
            newest = now

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("text.txt").write_text("the love of thy sweet all and not to thou that in my love with is " * 50)
        result = finetune(FinetuneConfig(
            model_base=str(make_tiny(Path("tiny.gguf"))), train_data=("text.txt",), ctx=16, batch=2, seed=1, threads=1,
            adam_iter=10**6, save_every=50, eval_every=50, valid_split=0.1, sample_prompt=("the ",), sample_tokens=4,
            keep=2, checkpoint_in="", checkpoint_out="c-ITERATION.gguf", lora_out=("a-ITERATION.bin",),
            max_minutes=options.minutes), observers=[observe])
        os.chdir("/")
    fifth = len(rows) // 5
    early, late = rows[fifth:2 * fifth], rows[-fifth:]
    print("| | early | late | |\n|---|---|---|---|")
    grown = []
    for name in rows[0]:
        before, after = (statistics.median(row[name] for row in part) for part in (early, late))
        flat = after <= before * SLOWER if name == "CPU ms a step" else after - before <= GROWTH[name]
        print(f"| {name} | {before:.1f} | {after:.1f} | {'flat' if flat else 'grown'} |")
        grown += [] if flat else [name]
    print(f"\n{result.iteration} steps in {options.minutes:g} minutes")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
