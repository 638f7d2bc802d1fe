"""Makes every n-th call of the system fail, one after the other, in small runs: `python tests/reliability/faults.py`.

Writing, flushing, renaming, opening, and allocating memory fail with the errors of full disks, quotas, broken and
read-only ones; once, or from then on. Whatever fails, the run ends in one line (or goes on), every file under a real
name is whole, no temporary file stays, and resumed without the fault it comes to the bits of an undisturbed run.
"""
from __future__ import annotations

import argparse
import errno
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path

from preload import library, preloaded
from runs import Ground, check_whole, contents, finish, said

KINDS = {
    "write": [errno.ENOSPC, errno.EIO, errno.EDQUOT],
    "fsync": [errno.EIO, errno.ENOSPC],
    "rename": [errno.EACCES, errno.EIO],
    "open": [errno.EACCES, errno.EROFS, errno.EMFILE],
    "memory": [errno.ENOMEM],
    "kernels' memory": [errno.ENOMEM],
}
"""Kinds of calls, in the order of the library's enum, and the errors that they meet."""
SECONDS = 120
SCENARIOS = ("several outputs", "evaluation", "packed records")


class Faults:
    """A series of faults; `tried` counts them by kind, `ended` those that ended the run."""

    def __init__(self, folder: Path) -> None:
        self.ground = Ground.prepare(folder)
        self.library = library()
        self.tried: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.expected: dict[str, dict[str, bytes]] = {}
        self.calls: dict[str, list[int]] = {}
        for scenario in SCENARIOS:
            work = self.ground.begin(f"whole {scenario}")
            self._finish(work, scenario, "write", 0, 0, False)
            self.expected[scenario] = contents(work)
            self.calls[scenario] = [int(n) for n in (folder / "counts").read_text().split()]

    def _finish(self, work: Path, scenario: str, kind: str, error: int, at: int, goes_on: bool) -> int:
        """Runs the scenario with that call failing; the exit status."""
        number = list(KINDS).index(kind)
        counts = work.parent / "counts"

        def arm() -> None:
            exit_at_once = os._exit

            def count_and_exit(status: int) -> None:
                self.library.faults_arm(-1, 0, 0, 0, b"") if at else counts.write_text(
                    " ".join(str(self.library.faults_count(each)) for each in range(len(KINDS))))
                exit_at_once(status)

            os._exit = count_and_exit       # type: ignore[assignment]
            signal.alarm(SECONDS)           # what hangs ends by it
            self.library.faults_arm(number, error, at, -1 if goes_on else 0, os.fsencode(work))

        return finish(work, self.ground.command(work, scenario), arm)

    def run(self, scenario: str, kind: str, error: int, at: int, goes_on: bool) -> None:
        """One run with a fault, then one without."""
        work = self.ground.begin("run")
        what = f"{scenario}: {kind} {at} fails with {errno.errorcode[error]}{' from then on' if goes_on else ''}"
        status = self._finish(work, scenario, kind, error, at, goes_on)
        lines = [line for line in said(work).splitlines() if line.startswith("lorafast: error")]
        if status not in (0, 1) or len(lines) != status or any("a bug in lorafast" in line for line in lines) \
                or "Traceback" in said(work):
            raise AssertionError(f"{what}: ended with {status}: {said(work)[-2000:]}")
        check_whole(self.ground, work)
        if finish(work, self.ground.command(work, scenario)):
            raise AssertionError(f"{what}: resuming failed: {said(work)}")
        got, expected = contents(work), self.expected[scenario]
        different = sorted(name for name in got.keys() | expected.keys()
                           if got.get(name) != expected.get(name) and not name.startswith("metrics"))
        hidden = [path.name for path in work.iterdir() if path.name.startswith(".")]
        if different or hidden:
            raise AssertionError(f"{what}: differs in {different}, leaves {hidden}")
        self.tried[kind] += 1
        self.ended[kind] += status
        shutil.rmtree(work)

    def all(self, kind: str) -> list[Callable[[], None]]:
        """Every fault of a kind: each call with each error, once and for good."""
        number = list(KINDS).index(kind)
        return [partial(self.run, scenario, kind, error, at, goes_on)
                for scenario in SCENARIOS for error in KINDS[kind]
                for at in range(1, self.calls[scenario][number] + 1) for goes_on in (False, True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--faults", type=int, default=0, help="so many, chosen at random; 0: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--only", default="", help="one kind")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if not library():
            return preloaded(folder)
        faults = Faults(Path(folder))
        possible = {kind: faults.all(kind) for kind in KINDS if options.only in ("", kind)}
        for each in possible.values():
            random.Random(options.seed).shuffle(each)
        chosen = [fault for fault in chain(*zip_longest(*possible.values())) if fault]
        for fault in chosen[:options.faults or None]:
            if time.monotonic() - began > 60 * options.minutes:
                break
            fault()
    print("| what fails | possible | tried | ended the run | resumed |\n|---|---|---|---|---|")
    for kind in possible:
        print(f"| {kind} | {len(possible[kind])} | {faults.tried[kind]} | {faults.ended[kind]} | bit-equal |")
    print(f"\n{sum(faults.tried.values())} faults, seed {options.seed}; {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
