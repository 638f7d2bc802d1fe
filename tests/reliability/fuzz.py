"""Feeds damaged and invented files to every reader: `python tests/reliability/fuzz.py --inputs 10000`.

Seeds are good files of each format. Mutations flip, cut, insert and exchange bytes, numbers of a header and values of
JSON; an input that reaches new lines of lorafast is kept and mutated further. A reader may raise LoraFastError only,
within two seconds, without taking memory beyond a small multiple of the input.
"""
from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

from mutations import mutated
from readers import READERS, Reader

from lorafast.errors import LoraFastError
from lorafast.system.process import peak_resident_bytes

SECONDS = 2.0
MEMORY_FACTOR, MEMORY_BASE = 60, 96 * 2**20
GROWTH = 1000
"""Bytes that an input which is kept may have beyond the longest seed: all that is made of long ones takes long."""
IN_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
"""Where the inputs are written: on a disk, opening them takes longer than reading them."""


class Hang(Exception):
    """A reader took too long."""


def alarm(number: int, frame: FrameType | None) -> None:
    raise Hang


class Coverage:
    """Lines of lorafast that have been reached.

    With sys.monitoring (from Python 3.12 on) a line costs time only when it is met first, and every input is watched.
    With sys.settrace each costs some, and each sixteenth input is.
    """

    def __init__(self) -> None:
        self.lines: set[tuple[str, int]] = set()
        self.share = 1 if hasattr(sys, "monitoring") else 16
        self._tried = self._known = 0

    def __enter__(self) -> Coverage:
        if hasattr(sys, "monitoring"):
            sys.monitoring.use_tool_id(sys.monitoring.COVERAGE_ID, "fuzz")
            sys.monitoring.register_callback(sys.monitoring.COVERAGE_ID, sys.monitoring.events.LINE, self._reached)
            sys.monitoring.set_events(sys.monitoring.COVERAGE_ID, sys.monitoring.events.LINE)
            sys.monitoring.restart_events()
        return self

    def __exit__(self, *exception: object) -> None:
        if hasattr(sys, "monitoring"):
            sys.monitoring.set_events(sys.monitoring.COVERAGE_ID, 0)
            sys.monitoring.free_tool_id(sys.monitoring.COVERAGE_ID)

    def _reached(self, code: CodeType, line: int) -> object:
        if "/lorafast/" in code.co_filename:
            self.lines.add((code.co_filename, line))
        return sys.monitoring.DISABLE

    def _trace(self, frame: FrameType, event: str, argument: object) -> object:
        if "/lorafast/" not in frame.f_code.co_filename:
            return None
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self._trace

    def begin(self) -> None:
        """Before an input."""
        if self.share > 1 and self._tried % self.share == 0:
            sys.settrace(self._trace)
        self._tried += 1

    def found_new(self) -> bool:
        """After an input: whether it reached lines that none had before."""
        sys.settrace(None)
        known, self._known = self._known, len(self.lines)
        return self._known > known


def attempt(reader: Reader, data: bytes, folder: Path) -> str:
    """What is wrong with how the reader took this input; "" if nothing."""
    reader.place(data, folder)
    before = peak_resident_bytes()
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        reader.read(folder)
    except LoraFastError as error:
        if len(str(error)) > 100_000:
            return f"a message of {len(str(error))} characters"
    except Hang:
        return f"hangs for more than {SECONDS:g} s"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"[:200]
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    taken = peak_resident_bytes() - before
    if taken > MEMORY_BASE + MEMORY_FACTOR * len(data):
        return f"takes {taken / 2**20:.0f} MB for {len(data)} bytes"
    return ""


def fuzz(reader: Reader, inputs: int, chance: random.Random, folder: Path,
         until: float) -> tuple[int, int, dict[str, bytes]]:
    """So many inputs; returns how many were tried, the lines reached, and the first input of each kind of fault."""
    corpus, faults, tried = list(reader.seeds(folder)), {}, 0
    longest = max(map(len, corpus)) + GROWTH
    reader.good(folder, corpus)
    signal.signal(signal.SIGVTALRM, alarm)
    with Coverage() as coverage:
        while tried < inputs and time.monotonic() < until:
            data = mutated(chance.choice(corpus), chance)
            coverage.begin()
            fault = attempt(reader, data, folder)
            is_new = coverage.found_new()
            if fault:
                faults.setdefault(fault.split(":")[0] + fault[-30:], data)
                print(f"{reader.name}: {fault}", file=sys.stderr)
            elif is_new and len(data) <= longest:
                corpus.append(data)
            tried += 1
    return tried, len(coverage.lines), faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=10000, help="over all readers together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--keep", default="", help="a folder for the inputs that found something")
    options = parser.parse_args()
    chosen = [reader for reader in READERS if options.only in reader.name]
    found: Counter[str] = Counter()
    print("| reader | inputs | lines reached | faults |\n|---|---|---|---|")
    for number, reader in enumerate(chosen):
        until = time.monotonic() + 60 * options.minutes / len(chosen)
        with tempfile.TemporaryDirectory(dir=IN_MEMORY) as folder:
            tried, lines, faults = fuzz(reader, options.inputs // len(chosen), random.Random(options.seed + number),
                                        Path(folder), until)
        print(f"| {reader.name} | {tried} | {lines} | {len(faults)} |", flush=True)
        found[reader.name] += len(faults)
        for index, data in enumerate(faults.values() if options.keep else ()):
            Path(options.keep, f"{reader.name.replace(' ', '-')}-{options.seed}-{index}").write_bytes(data)
    return 1 if sum(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
