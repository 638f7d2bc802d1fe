"""What `lorafast plan` says of released models on machines of several sizes: the tables in docs/models.md.

The files have the geometry of the real ones, a vocabulary of as many words, and holes for most weights: they
take little disk.

    python bench/plans.py FOLDER [--models NAME,...] [--machines GB,...]
"""
from __future__ import annotations

import argparse
import random
import re
import subprocess
import sys
from pathlib import Path
from string import ascii_lowercase

import numpy as np
from models import Pools
from released import RELEASES, Release

from lorafast.gguf.reader import DEFAULT_ALIGNMENT
from lorafast.gguf.writer import header

LIMITS = {8: "6G", 16: "13G", 32: "28G"}
"""Of a machine of so many GB, what it leaves to a run."""

ROUTING = ("token_embd.weight", "ffn_gate_inp.weight")
N_WORDS = 50000
"""Of the text, made up at random: where one repeats itself, few experts see it."""

OPTIONS = ("--preset", "modern", "--ctx", "1024", "--batch", "2", "--grad-acc", "1")
ROW = {"memory": r"in all +(.* MB)", "weights": r"weights in memory +(.*? MB)",
       "kept": r"activations kept for backward .* of (\d+ blocks of \d+)", "step": r"^  (.*) a step,",
       "speed": r"a step, (.*) tokens/s", "read": r"^  (.*) read from disk a step"}


def write_with_holes(path: Path, release: Release) -> None:
    """Routers and what they see are there where experts are, whose choice the plan looks at."""
    tensors, rng, pools = release.tensors(), np.random.default_rng(0), Pools()
    filled = ROUTING if any("_exps." in tensor.name for tensor in tensors) else ()
    with open(path, "wb") as file:
        at = _aligned(file.write(header(release.metadata(), tensors)))
        for tensor in tensors:
            if any(name in tensor.name for name in filled):
                file.seek(at)
                data = pools.filled(tensor, rng).data
                for chunk in data() if callable(data) else [data]:
                    file.write(np.ascontiguousarray(chunk))
            at += _aligned(tensor.nbytes)
        file.truncate(at)


def write_text(path: Path) -> Path:
    """Data to plan for, of words made up at random."""
    rng = random.Random(0)
    path.write_text(" ".join("".join(rng.choices(ascii_lowercase, k=rng.randint(2, 9))) for _ in range(N_WORDS)))
    return path


def _aligned(nbytes: int) -> int:
    return -(-nbytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default=",".join(RELEASES), metavar="NAME,...", help=", ".join(RELEASES))
    parser.add_argument("--machines", default="16,32", metavar="GB,...", help="of 8, 16, 32")
    args = parser.parse_args()
    text = write_text(args.folder / "book.txt")
    print("| model | file | machine | memory | of it weights | blocks kept | read a step | a step | tokens/s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in args.models.split(","):
        path = args.folder / f"{name}.gguf"
        write_with_holes(path, RELEASES[name])
        for machine in map(int, args.machines.split(",")):
            plan = subprocess.run([sys.executable, "-m", "lorafast", "plan", "--model-base", path, "--train-data", text,
                                   *OPTIONS, "--mem-limit", LIMITS[machine]], capture_output=True, text=True)
            if plan.returncode:
                print(f"| {name} | {path.stat().st_size / 1e9:.2f} GB | {machine} GB | {plan.stderr.strip()} |")
                continue
            found = {key: re.search(pattern, plan.stdout, re.MULTILINE) for key, pattern in ROW.items()}
            memory, weights, kept, step, speed, read = (match[1] if match else "0" for match in found.values())
            print(f"| {name} | {path.stat().st_size / 1e9:.2f} GB | {machine} GB | {memory} | {weights} | "
                  f"{kept.replace(' blocks', '')} | {read} | {step} | {speed} |", flush=True)
            print(plan.stdout, file=sys.stderr)
        path.unlink()


if __name__ == "__main__":
    main()
