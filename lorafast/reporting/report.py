"""What a run's metrics look like: one page that needs nothing else.

    lorafast report metrics.jsonl
"""
from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..errors import FormatError, LoraFastError, UsageError
from ..system.atomic import atomic_write
from .log import Progress, duration
from .metrics import read_metrics
from .plots import Chart, Line, svg

MAX_POINTS = 1500
"""Points of a line in a plot; of a longer one the means of this many stretches are drawn."""


def find_metrics(run: str) -> str:
    """The file of metrics at that path, or in that folder. LoraFastError if there is none, UsageError if there are
    several."""
    if not os.path.isdir(run):
        return run
    found = sorted(map(str, Path(run).glob("*.jsonl")))
    if not found:
        raise LoraFastError(f"{run}: no .jsonl file there; --metrics FILE of a run writes one")
    if len(found) > 1:
        raise UsageError(f"{run}: holds several runs; name one of {', '.join(found)}")
    return found[0]


class NothingDone(FormatError):
    """Metrics without an iteration."""


def write_report(metrics: str | os.PathLike, page: str | os.PathLike) -> list[str]:
    """Writes the page; returns its path. NothingDone if there is nothing to show yet."""
    records = list(read_metrics(metrics))
    charts = charts_of(records)
    if not any(chart.drawn for chart in charts):
        raise NothingDone(f"{metrics}: no iteration is done yet, there is nothing to show")
    with atomic_write(page) as file:
        file.write(page_of(records, charts).encode("utf-8", "replace"))
    return [str(page)]


def charts_of(records: Sequence[dict[str, Any]]) -> list[Chart]:
    """Losses, learning rate, gradient norm and speed."""
    steps = [record for record in records if record["event"] == "step"]
    evaluations = [record for record in records if record["event"] == "evaluation"]

    def column(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
        return [math.nan if row.get(name) is None else float(row[name]) for row in rows]

    def line(label: str, y: list[float], style: str = "main") -> Line:
        return Line(label, *thinned(column(steps, "iteration"), y), style)

    losses = column(steps, "loss")
    with_rewards = any("reward_margin" in step for step in steps)
    rewards = [
        Chart("Rewards", [line("chosen", smoothed(column(steps, "reward_chosen"))),
                          line("rejected", smoothed(column(steps, "reward_rejected")), "second")]),
        Chart("Accuracy of the rewards", [
            line("smoothed", smoothed(column(steps, "reward_accuracy"))),
            Line("evaluation", column(evaluations, "iteration"), column(evaluations, "reward_accuracy"), "second",
                 dots=True)], from_zero=True)] if with_rewards else []
    return [
        Chart("Loss" if with_rewards else "Loss, nats per token", [
            line("each batch", losses, "faint"), line("smoothed", smoothed(losses)),
            Line("evaluation", column(evaluations, "iteration"), column(evaluations, "loss"), "second", dots=True)]),
        *rewards,
        Chart("Learning rate", [line("learning rate", column(steps, "learning_rate"))], from_zero=True),
        Chart("Norm of the gradient, before clipping", [line("norm", column(steps, "gradient_norm"))], from_zero=True),
        Chart("Speed, tokens per second", [line("speed", column(steps, "tokens_per_second"))], from_zero=True),
    ]


def smoothed(losses: Sequence[float]) -> list[float]:
    """The losses as the terminal shows them: a mean in which older losses weigh less. What is no number is passed
    over."""
    out, weight, mean = [], 0.0, 0.0
    for loss in losses:
        if math.isnan(loss):
            out.append(mean if weight else loss)
            continue
        weight = Progress.MEMORY * weight + 1
        mean += (loss - mean) / weight
        out.append(mean)
    return out


def thinned(x: list[float], y: list[float]) -> tuple[list[float], list[float]]:
    """At most MAX_POINTS points, each the mean of a stretch of the line."""
    size = -(-len(x) // MAX_POINTS)
    if size <= 1:
        return x, y
    means = [[sum(values[i:i + size]) / len(values[i:i + size]) for i in range(0, len(values), size)]
             for values in (x, y)]
    return means[0], means[1]


def heading(records: Sequence[dict[str, Any]]) -> str:
    """What was trained on what."""
    options = _options(records)
    model = Path(options.get("model_base", "")).name or "a model"
    data = options.get("train_data", [])
    return f"{model} on {', '.join(Path(path).name for path in data)}" if data else model


def _options(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    started = [record for record in records if record["event"] == "started"]
    return started[-1].get("options", {}) if started else {}


# ------------------------------------------------------------------------------------------------------------ the page

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff }
body { max-width: 1180px; margin: 2rem auto; padding: 0 1.2rem }
h1 { font-size: 1.5rem; margin: 0 0 .3rem } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem }
.facts { display: flex; flex-wrap: wrap; gap: .6rem 2.2rem; margin: 1rem 0 }
.facts div { white-space: nowrap } .facts b { display: block; font-size: 1.25rem; font-weight: 600 }
.facts span, .note { color: #5b6778 }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 1.2rem }
svg { width: 100%; height: auto } svg text { font: 12px system-ui, sans-serif; fill: #5b6778 }
svg .title { font-weight: 600; fill: #1c2430 } svg .grid { stroke: #e3e7ee }
svg polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round }
table { border-collapse: collapse } td, th { text-align: left; vertical-align: top; padding: .35rem 2.2rem .35rem 0;
border-top: 1px solid #e3e7ee } th { font-weight: 600; white-space: nowrap }
.text { white-space: pre-wrap; overflow-wrap: anywhere } .prompt td { color: #5b6778; padding-top: 1.2rem; border: 0 }
details { margin: 2rem 0 } summary { cursor: pointer; font-weight: 600 } code { font-size: 13px }
"""


def page_of(records: Sequence[dict[str, Any]], charts: Sequence[Chart]) -> str:
    """The page as HTML, with everything inside."""
    title = escape(heading(records))
    parts = [f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>',
             '<meta name="viewport" content="width=device-width">', f"<style>{STYLE}</style>\n</head>\n<body>",
             f"<h1>{title}</h1>", f'<p class="note">{escape(_when(records))}</p>', facts(records),
             '<div class="charts">', *map(svg, charts), "</div>"]
    for event, name, rows in (("evaluation", "Evaluation", evaluation_rows), ("continuation", "Samples", sample_rows)):
        chosen = [record for record in records if record["event"] == event]
        if chosen:
            parts += [f"<h2>{name}</h2>", "<table>", *rows(chosen), "</table>"]
    options = _options(records)
    if options:
        parts += ["<details><summary>All options</summary>", "<table>",
                  *(f"<tr><th>{escape(name.replace('_', '-'))}</th><td><code>{escape(_shown(value))}</code></td></tr>"
                    for name, value in options.items() if value not in (None, "", [])), "</table></details>"]
    return "\n".join([*parts, "</body>", "</html>", ""])


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _when(records: Sequence[dict[str, Any]]) -> str:
    begin = time.strftime("%Y-%m-%d %H:%M", time.localtime(records[0].get("time", 0)))
    ended = [record for record in records if record["event"] == "ended"]
    return f"Begun {begin}. " + (f"Finished: {ended[-1]['reason']}." if ended else "Not finished.")


def facts(records: Sequence[dict[str, Any]]) -> str:
    """The numbers one looks for first."""
    steps = [record for record in records if record["event"] == "step"]
    losses = [step["loss"] for step in steps]
    seconds = sum(step["seconds"] for step in steps)
    n_tokens = sum(step["tokens"] for step in steps)
    shown = [("iterations", f"{steps[-1]['iteration']:,}"), ("tokens", f"{n_tokens:,}"),
             ("computing", duration(1000 * seconds)), ("tokens per second", f"{n_tokens / seconds:,.0f}"),
             ("first loss", f"{losses[0]:.3f}"), ("smoothed loss", f"{smoothed(losses)[-1]:.3f}")]
    evaluations = [record for record in records if record["event"] == "evaluation"]
    if evaluations:
        best = min(evaluations, key=lambda record: record["loss"])
        shown.append((f"lowest evaluation loss, at {best['iteration']}", f"{best['loss']:.3f}"))
    if memory := max((step.get("memory") or 0 for step in steps), default=0):
        shown.append(("most memory seen", f"{memory / 2**20:,.0f} MB"))
    cells = "".join(f"<div><b>{value}</b><span>{escape(name)}</span></div>" for name, value in shown)
    return f'<div class="facts">{cells}</div>'


def evaluation_rows(evaluations: Sequence[dict[str, Any]]) -> list[str]:
    best = min(evaluation["loss"] for evaluation in evaluations)
    columns = {"perplexity": [f"{math.exp(min(evaluation['loss'], 700)):,.3f}" for evaluation in evaluations]}
    if any("reward_margin" in evaluation for evaluation in evaluations):
        columns = {name: [f"{evaluation.get(f'reward_{name}', math.nan):.3f}" for evaluation in evaluations]
                   for name in ("margin", "accuracy")}
    if any("score" in evaluation for evaluation in evaluations):
        columns["score"] = [f"{evaluation.get('score', math.nan):.3f}" for evaluation in evaluations]
    rows = ["<tr><th>iteration</th><th>loss</th>" + "".join(f"<th>{name}</th>" for name in columns) + "<th></th></tr>"]
    for i, evaluation in enumerate(evaluations):
        mark = "lowest" if evaluation["loss"] == best else ""
        more = "".join(f"<td>{values[i]}</td>" for values in columns.values())
        rows.append(f"<tr><td>{evaluation['iteration']}</td><td>{evaluation['loss']:.4f}</td>{more}<td>{mark}</td></tr>")
    return rows


def sample_rows(samples: Sequence[dict[str, Any]]) -> list[str]:
    """Prompt by prompt, how each went on after more and more iterations."""
    rows = ["<tr><th>iteration</th><th>text</th></tr>"]
    for prompt in dict.fromkeys(sample["prompt"] for sample in samples):
        rows.append(f'<tr class="prompt"><td></td><td class="text">{escape(prompt)}</td></tr>')
        rows += [f'<tr><td>{sample["iteration"]}</td>'
                 f'<td class="text">{escape(sample["text"].removeprefix(" "))}</td></tr>'
                 for sample in samples if sample["prompt"] == prompt]
    return rows
