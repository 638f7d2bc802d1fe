"""Repeats, alternating between whatever is compared, because a shared machine drifts: only ratios within a run hold."""
from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

Stopwatch = Callable[[], float]
"""Does a thing once and returns the seconds it took."""


WARM_UP = 0.02
"""Seconds of work after which a core and its thread are as awake as they are amid a step."""


def stopwatch(work: Callable[[], object]) -> Stopwatch:
    """Times `work`. If it is short it is done for WARM_UP seconds before, untimed."""
    taken = 0.0

    def once() -> float:
        nonlocal taken
        end = time.perf_counter() + WARM_UP
        while taken < WARM_UP and time.perf_counter() < end:
            work()
        began = time.perf_counter()
        work()
        taken = time.perf_counter() - began
        return taken
    return once


ENOUGH = {5.0: 5, 25.0: 3}
"""Repeats that are enough, after so many seconds; after the first of these, one warm-up is too."""


def alternate(contestants: Mapping[str, Stopwatch], *, repeats: int, warmups: int = 2,
              pause: float = 0.0) -> dict[str, list[float]]:
    """Seconds of each contestant's repeats, one repeat of each in turn.

    pause   seconds between them, long enough for the other's threads to stop spinning
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    began = time.perf_counter()
    for turn in range(-warmups, repeats):
        passed = time.perf_counter() - began
        enough = min((fewest for after, fewest in ENOUGH.items() if passed > after), default=repeats)
        if -warmups < turn < 0 and enough < repeats:
            continue
        if turn >= enough:
            break
        for name, run in contestants.items():
            if pause:
                time.sleep(pause)
            taken = run()
            if turn >= 0:
                seconds[name].append(taken)
    return seconds


def summary(seconds: list[float]) -> dict[str, float | int]:
    """What a result keeps of its repeats."""
    return {"seconds": median(seconds), "seconds_min": min(seconds), "repeats": len(seconds)}


def ratio(numerator: list[float], denominator: list[float]) -> float:
    """Median over the turns of one contestant's seconds to the other's in the same turn."""
    return median(a / b for a, b in zip(numerator, denominator))
