"""Kills runs at random moments and shows that nothing is lost: `python tests/reliability/crash.py --kills 1000`.

Each run is killed by SIGKILL again and again, most often while it saves, and resumed with another number of threads.
After each kill every file under a real name must be whole; at the end all files and logged numbers must equal, bit by
bit, those of a run that was never disturbed. With --power-cut a kill also loses what had not been flushed: of each file
the contents at its last fsync remain, of each folder the names at its last fsync.
"""
from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from runs import ITERATIONS, SCENARIOS, Ground, check_whole, contents, finish, said, start

SHARE_WHILE_SAVING = 0.75


class Crashes:
    """A series of kills over all scenarios."""

    def __init__(self, folder: Path, seed: int, power_cut: bool) -> None:
        self.random, self.power_cut = random.Random(seed), power_cut
        self.ground = Ground.prepare(folder)
        self.kills: Counter[str] = Counter()
        self.runs: Counter[str] = Counter()
        self.files_read = 0
        self.expected = {name: self._undisturbed(name) for name in SCENARIOS}

    def _undisturbed(self, scenario: str) -> tuple[dict[str, bytes], float]:
        """The files of a run that was never killed, and how long it took."""
        work, began = self.ground.begin(f"whole {scenario}"), time.monotonic()
        status = finish(work, self.ground.command(work, scenario))
        if status:
            raise AssertionError(f"{scenario}: ended with {status}: {said(work)}")
        return contents(work), time.monotonic() - began

    def run(self, scenario: str, kills: int) -> int:
        """Kills one run so many times, or until it ends; compares its files. Returns the number of kills."""
        work = self.ground.begin(f"run {sum(self.runs.values())} {scenario}")
        done = sum(self._kill(work, scenario) for _ in range(kills))
        status = finish(work, self.ground.command(work, scenario, threads=2))
        if status:
            raise AssertionError(f"{work}: resuming ended with {status}: {said(work)}")
        self._compare(work, self.expected[scenario][0])
        shutil.rmtree(work)
        self.runs[scenario] += 1
        self.kills[scenario] += done
        return done

    def _kill(self, work: Path, scenario: str) -> bool:
        """Starts or resumes the run and kills it; whether it was still alive."""
        durable = Durable(work) if self.power_cut else None
        argv = self.ground.command(work, scenario, threads=self.random.choice((1, 2)))
        pid, pipe = start(work, argv, durable.listen if durable else lambda: None)
        if self.random.random() < SHARE_WHILE_SAVING:
            for _ in range(self.random.randint(1, 3)):
                while os.read(pipe, 1) == b"e":
                    pass
            time.sleep(self.random.uniform(0, 0.05))
        else:
            time.sleep(self.random.uniform(0, self.expected[scenario][1]))
        os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(pipe)
        if status not in (0, -signal.SIGKILL):
            raise AssertionError(f"{work}: ended with {status}: {said(work)}")
        if durable:
            durable.cut()
        self.files_read += check_whole(self.ground, work)
        return status != 0

    def _compare(self, work: Path, expected: dict[str, bytes]) -> None:
        got = contents(work)
        if self.power_cut:          # lines of metrics are not flushed one by one: those of the last moments may be gone
            got.pop("metrics.jsonl", None)
            expected = {name: data for name, data in expected.items() if name != "metrics.jsonl"}
        different = sorted(name for name in got.keys() | expected.keys() if got.get(name) != expected.get(name))
        hidden = [path.name for path in work.iterdir() if path.name.startswith(".")]
        if different or hidden:
            raise AssertionError(f"{work}: differs in {different}, leaves {hidden}")


class Durable:
    """What of a folder is on the disk for certain: kept beside it, by the calls of fsync of the process that writes."""

    def __init__(self, work: Path) -> None:
        self.work, self.store = work, work.with_name(work.name + ".durable")
        shutil.rmtree(self.store, ignore_errors=True)
        shutil.copytree(work, self.store / "names", symlinks=True)
        self.by_inode = self.store / "inodes"
        self.by_inode.mkdir()
        for path in [path for path in work.rglob("*") if path.is_file()]:
            shutil.copy(path, self.by_inode / str(path.stat().st_ino))
        self._list(work)
        for folder in [path for path in work.iterdir() if path.is_dir()]:
            self._list(folder)

    def _list(self, folder: Path) -> None:
        lines = "".join(f"{path.stat().st_ino} {'d' if path.is_dir() else 'f'} {path.name}\n"
                        for path in folder.iterdir())
        temporary = self.store / "listing.new"
        temporary.write_text(lines)
        os.replace(temporary, self.store / f"listing {folder.stat().st_ino}")

    def listen(self) -> None:
        """In the process that writes: notes each fsync."""
        fsync = os.fsync

        def noted(descriptor: int) -> None:
            fsync(descriptor)
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path.is_dir():
                self._list(path)
            elif path.exists():
                temporary = self.by_inode / "new"
                shutil.copy(path, temporary)
                os.replace(temporary, self.by_inode / str(os.fstat(descriptor).st_ino))

        os.fsync = noted

    def cut(self) -> None:
        """Puts into the folder what the power cut left."""
        rest = self.store / "rest"
        self._restore(self.work.stat().st_ino, rest)
        shutil.rmtree(self.work)
        rest.rename(self.work)
        shutil.rmtree(self.store)

    def _restore(self, inode: int, target: Path) -> None:
        target.mkdir()
        listing = self.store / f"listing {inode}"
        for line in listing.read_text().splitlines() if listing.exists() else ():
            number, kind, name = line.split(" ", 2)
            if kind == "d":
                self._restore(int(number), target / name)
            elif (self.by_inode / number).exists():
                shutil.copy2(self.by_inode / number, target / name)
            else:
                (target / name).touch()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--power-cut", action="store_true")
    parser.add_argument("--minutes", type=float, default=60)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        crashes = Crashes(Path(folder), options.seed, options.power_cut)
        names = list(SCENARIOS)
        while (done := sum(crashes.kills.values())) < options.kills and time.monotonic() - began < 60 * options.minutes:
            scenario = names[sum(crashes.runs.values()) % len(names)]
            crashes.run(scenario, min(options.kills - done, crashes.random.randint(2, 6)))
    what = "power cuts" if options.power_cut else "kills"
    print(f"| scenario | runs | {what} | at the end |\n|---|---|---|---|")
    for name in SCENARIOS:
        print(f"| {name} | {crashes.runs[name]} | {crashes.kills[name]} | bit-equal |")
    print(f"\n{sum(crashes.kills.values())} {what} in {sum(crashes.runs.values())} runs of {ITERATIONS} iterations, "
          f"seed {options.seed}; {crashes.files_read} files read after them, all whole; "
          f"{time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
