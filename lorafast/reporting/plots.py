"""Charts of numbers over iterations, as SVG for a page."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

COLOURS = {"faint": "#a9b8cd", "main": "#2563a8", "second": "#c2571a"}
WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 34, 40
"""Margins around the plotted area, in pixels."""


@dataclass(frozen=True)
class Line:
    """A series of points. style: a key of COLOURS; dots: mark each point."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "main"
    dots: bool = False


@dataclass(frozen=True)
class Chart:
    """A title, which says the unit, and what is drawn. from_zero: the axis of y begins there."""

    title: str
    lines: list[Line] = field(default_factory=list)
    from_zero: bool = False

    @property
    def drawn(self) -> list[Line]:
        """The lines that have finite points."""
        return [line for line in self.lines if any(map(math.isfinite, line.y))]

    @property
    def y_bounds(self) -> tuple[float, float]:
        """The axis of y: from 0 or a little below the lowest point to a little above the highest."""
        low, high = bounds([0.0] * self.from_zero + [y for line in self.drawn for y in line.y])
        margin = 0.04 * (high - low)
        return low - margin * (low != 0 or not self.from_zero), high + margin


def ticks(low: float, high: float, n: int = 5, least: float = 0.0) -> list[float]:
    """At most about `n` round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten, `least`
    apart."""
    step = 10.0 ** math.floor(math.log10((high - low) / n))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= n)
    step = max(step, least)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def number(x: float) -> str:
    """A tick's number, short."""
    if x == 0:
        return "0"
    return f"{x:.0e}".replace("e-0", "e-") if abs(x) < 1e-4 else f"{x:,.10g}"


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest, a little apart where they are equal."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = (low - 0.5, high + 0.5) if low == 0 else (low - 0.1 * abs(low), high + 0.1 * abs(high))
    return low, high


def svg(chart: Chart) -> str:
    """The chart as an SVG element."""
    lines = chart.drawn
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">',
             f'<text class="title" x="{LEFT}" y="18">{escape(chart.title)}</text>']
    if lines:
        x_low, x_high = bounds([x for line in lines for x in line.x])
        y_low, y_high = chart.y_bounds

        def place(x: float, y: float) -> tuple[float, float]:
            return (LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT),
                    TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM))

        for y in ticks(y_low, y_high):
            _, at = place(x_low, y)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
                         f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{number(y)}</text>')
        for x in ticks(x_low, x_high, 6, least=1):
            at, _ = place(x, y_low)
            parts.append(f'<text class="tick" x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" '
                         f'text-anchor="middle">{number(x)}</text>')
        parts.append(f'<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">iteration</text>')
        for line in lines:
            points = [place(x, y) for x, y in zip(line.x, line.y) if math.isfinite(y)]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{path}" stroke="{COLOURS[line.style]}"/>')
            if line.dots or len(points) == 1:
                parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLOURS[line.style]}"/>' for x, y in points]
        if len(lines) > 1:
            labels = "".join(f'<tspan dx="{14 if i else 0}" style="fill: {COLOURS[line.style]}">━━</tspan>'
                             f'<tspan dx="5">{escape(line.label)}</tspan>' for i, line in enumerate(lines))
            parts.append(f'<text class="legend" x="{WIDTH - RIGHT}" y="18" text-anchor="end">{labels}</text>')
    else:
        parts.append(f'<text class="tick" x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no data</text>')
    return "\n".join([*parts, "</svg>"])
