"""Kills a random rank of runs under mpirun, and resumes: `python tests/reliability/kill_ranks.py --kills 100`

Each run has two or three ranks. At a random moment one of them, any, gets SIGKILL; the launcher must end within a set
time. The run is resumed from its newest checkpoint with another number of ranks, until it ends. Its adapter and
checkpoint must equal, bit by bit, those of one process that was never disturbed.
"""
from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

from make_models import make_tiny  # noqa: E402

from lorafast.adapters.checkpoint import read_checkpoint  # noqa: E402
from lorafast.distributed.launch import find_launcher  # noqa: E402

ITERATIONS, MOST_SECONDS = 400, 30
"""Steps of a run; seconds in which the launcher must have ended."""


def command(folder: Path, ranks: int) -> list[str]:
    """Goes on from the newest checkpoint to the end of the run."""
    newest = folder / "c-LATEST.gguf"
    done = read_checkpoint(newest).state.iteration if newest.exists() else 0
    launcher = [find_launcher(), "-n", str(ranks)] if ranks > 1 else []
    return [*launcher, sys.executable, "-m", "lorafast", "finetune", "--model-base", "../tiny.gguf", "--train-data",
            "../text.txt", "--ctx", "16", "--batch", "2", "--threads", "1", "-s", "7", "--warmup", "2", "--grad-acc",
            "3", "--save-every", "10", "--keep", "2", "--checkpoint-in", newest.name if done else "",
            "--checkpoint-out", "c-ITERATION.gguf", "--lora-out", "a.bin", "--adam-iter", str(ITERATIONS - done)]


def start(folder: Path, ranks: int) -> subprocess.Popen[bytes]:
    with open(folder / "log.txt", "wb") as log:
        return subprocess.Popen(command(folder, ranks), cwd=folder, stdout=log, stderr=log,
                                env={**os.environ, "PYTHONPATH": str(HERE.parents[1])})


def ranks_under(launcher: int) -> list[int]:
    """Processes of lorafast that this launcher has started."""
    rows = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            rows.append((int(path.name), parent, (path / "cmdline").read_bytes().split(b"\0")))
        except (OSError, ValueError):
            continue
    family = {launcher}
    for _ in range(4):
        family |= {pid for pid, parent, _ in rows if parent in family}
    return [pid for pid, _, argv in rows if pid in family and argv[1:3] == [b"-m", b"lorafast"]]


def disturbed(folder: Path, kills: int, chance: random.Random) -> int:
    """A run with so many kills at most, to its end. Returns how many hit a rank."""
    hit = 0
    for _ in range(kills):
        run = start(folder, chance.choice((2, 3)))
        time.sleep(chance.uniform(1.0, 5.0))
        ranks = ranks_under(run.pid)
        if ranks and run.poll() is None:
            os.kill(chance.choice(ranks), signal.SIGKILL)
            hit += 1
        if run.wait(MOST_SECONDS) == 0:
            return hit
    if start(folder, chance.choice((1, 2, 3))).wait(600):
        raise AssertionError((folder / "log.txt").read_text()[-1000:])
    return hit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        ground = Path(name)
        make_tiny(ground / "tiny.gguf", n_layer=1)
        (ground / "text.txt").write_text("the love of thy sweet all and not to thou that in my love with is " * 20)
        whole = ground / "whole"
        whole.mkdir()
        if start(whole, 1).wait():
            raise AssertionError((whole / "log.txt").read_text()[-1000:])
        kills = runs = 0
        while kills < options.kills:
            folder = ground / f"run-{runs}"
            folder.mkdir()
            kills += disturbed(folder, min(4, options.kills - kills), chance)
            runs += 1
            for file in ("a.bin", "c-LATEST.gguf"):
                if (folder / file).read_bytes() != (whole / file).read_bytes():
                    raise AssertionError(f"{folder / file} differs from that of a run that was never disturbed")
    print(f"{kills} kills in {runs} runs of {ITERATIONS} iterations, seed {options.seed}: bit-equal at the end")


if __name__ == "__main__":
    main()
