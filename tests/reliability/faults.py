"""Makes every n-th call of the system fail, one after the other, in small runs: `python tests/reliability/faults.py`.

Writing, flushing, renaming, opening, and allocating memory fail with the errors of full disks, quotas, broken and
read-only ones; once, or from then on; or the process is killed at that call. Whatever fails, the run ends in one line
(or goes on), every file under a real name is whole, and resumed without the fault it comes to the bits of an
undisturbed run, with no temporary file left. --every goes through all calls of a run that is short enough for that.
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
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, zip_longest
from pathlib import Path

import numpy.ma as _imported_before_forking  # noqa: F401
from preload import library, preloaded
from runs import ITERATIONS, Ground, check_whole, contents, finish, said

from lorafast.planning import speed

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
RESUMED = ", resumed"
SHORT = ("report", f"report{RESUMED}")
"""Runs of two saves: an adapter, a checkpoint, metrics, a report. The other one goes on after the first save."""
SHORT_ITERATIONS = 4
KILLED = 0
"""In place of an error."""
speed.ENOUGH = 0            # a plan's measuring takes most of so short a run, and writes nothing


class Faults:
    """A series of faults; `tried` counts them by kind, `ended` those that ended the run, `fell` those after which
    something is not as it must be.
    """

    def __init__(self, folder: Path, scenarios: Sequence[str], iterations: int) -> None:
        self.ground, self.scenarios, self.iterations = Ground.prepare(folder), scenarios, iterations
        self.library = library()
        self.tried: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.fell: Counter[str] = Counter()
        self.expected: dict[str, dict[str, bytes]] = {}
        self.calls: dict[str, list[int]] = {}
        for scenario in scenarios:
            work = self._begin(f"whole {scenario}", scenario)
            self._finish(work, scenario, "write", 0, 0, False)
            self.expected[scenario] = contents(work)
            self.calls[scenario] = [int(n) for n in (folder / "counts").read_text().split()]

    def _begin(self, name: str, scenario: str) -> Path:
        """A fresh working folder; of a run that goes on, with the files of its first half."""
        if not scenario.endswith(RESUMED):
            return self.ground.begin(name)
        half = self.ground.folder / "half"
        if not half.exists():
            self._resume(self.ground.begin("half"), scenario, self.iterations // 2)
        return Path(shutil.copytree(half, self.ground.folder / name.replace(" ", "-")))

    def _command(self, work: Path, scenario: str, iterations: int) -> list[str]:
        return self.ground.command(work, scenario.removesuffix(RESUMED), iterations=iterations)

    def _resume(self, work: Path, scenario: str, iterations: int) -> None:
        """Runs the scenario from wherever its files stand, undisturbed."""
        if finish(work, self._command(work, scenario, iterations)):
            raise AssertionError(f"fails without a fault: {said(work)}")

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

        return finish(work, self._command(work, scenario, self.iterations), arm)

    def run(self, scenario: str, kind: str, error: int, at: int, goes_on: bool) -> None:
        """One run with a fault, then one without."""
        work = self._begin("run", scenario)
        fails = f"fails with {errno.errorcode[error]}" if error else "kills"
        what = f"{scenario}: {kind} {at} {fails}{' from then on' if goes_on else ''}"
        status = self._finish(work, scenario, kind, error, at, goes_on)
        try:
            self._judge(work, scenario, status, error)
        except Exception as found:
            self.fell[kind] += 1
            print(f"{what}: {found}", file=sys.stderr)
        self.tried[kind] += 1
        self.ended[kind] += status != 0
        shutil.rmtree(work)

    def _judge(self, work: Path, scenario: str, status: int, error: int) -> None:
        """Raises for what must not be after a run that ended so; then resumes it and compares the files."""
        lines = [line for line in said(work).splitlines() if line.startswith("lorafast: error")]
        as_it_should = len(lines) == status and status in (0, 1) if error else status == -signal.SIGKILL and not lines
        if not as_it_should or "a bug in lorafast" in said(work) or "Traceback" in said(work):
            raise AssertionError(f"ended with {status}: {said(work)[-2000:]}")
        check_whole(self.ground, work)
        self._resume(work, scenario, self.iterations)
        got, expected = contents(work), self.expected[scenario]
        different = sorted(name for name in got.keys() | expected.keys() if got.get(name) != expected.get(name))
        hidden = [path.name for path in work.iterdir() if path.name.startswith(".")]
        if different or hidden:
            raise AssertionError(f"differs in {different}, leaves {hidden}")

    def all(self, kind: str) -> list[Callable[[], None]]:
        """Every fault of a kind: each call with each error, once and for good."""
        return [partial(self.run, scenario, kind, error, at, goes_on)
                for scenario in self.scenarios for error in KINDS[kind] for at in self._calls(scenario, kind)
                for goes_on in (False, True)]

    def each_call(self, kind: str) -> list[Callable[[], None]]:
        """Three faults for each call: an error once, another one from then on, and a kill."""
        once, for_good = KINDS[kind][0], KINDS[kind][-1]
        return [partial(self.run, scenario, kind, error, at, goes_on)
                for scenario in self.scenarios for at in self._calls(scenario, kind)
                for error, goes_on in ((once, False), (for_good, True), (KILLED, False))]

    def _calls(self, scenario: str, kind: str) -> range:
        return range(1, self.calls[scenario][list(KINDS).index(kind)] + 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--faults", type=int, default=0, help="so many, chosen at random; 0: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--only", default="", help="one kind")
    parser.add_argument("--every", action="store_true", help="every call of a short run, and a kill at each, too")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if not library():
            return preloaded(folder)
        faults = Faults(Path(folder), SHORT if options.every else SCENARIOS,
                        SHORT_ITERATIONS if options.every else ITERATIONS)
        possible = {kind: faults.each_call(kind) if options.every else faults.all(kind)
                    for kind in KINDS if options.only in ("", kind)}
        for each in possible.values() if options.faults else ():
            random.Random(options.seed).shuffle(each)
        chosen = [fault for fault in chain(*zip_longest(*possible.values())) if fault]
        for fault in chosen[:options.faults or None]:
            if time.monotonic() - began > 60 * options.minutes:
                break
            fault()
    print("| what fails | possible | tried | ended the run | resumed |\n|---|---|---|---|---|")
    for kind in possible:
        outcome = f"{faults.fell[kind]} not as it must be" if faults.fell[kind] else "bit-equal"
        print(f"| {kind} | {len(possible[kind])} | {faults.tried[kind]} | {faults.ended[kind]} | {outcome} |")
    print(f"\n{sum(faults.tried.values())} faults, seed {options.seed}; {time.monotonic() - began:.0f} s")
    return 1 if faults.fell else 0


if __name__ == "__main__":
    sys.exit(main())
