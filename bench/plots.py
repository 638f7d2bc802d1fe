"""The plots that README and docs show, from the result files of a folder: plots.svg (speed), memory.svg, precision.svg.

    python bench/plots.py [--results FOLDER]

A panel whose results are missing is left out. Needs matplotlib.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from results import RESULTS, read_results

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "lorafast", "font.size": 8, "axes.spines.top": False,
                            "axes.spines.right": False, "figure.constrained_layout.use": True})
from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

OURS, PEER = "#2166ac", "#b2b2b2"
PRECISIONS = {"float32": "black", "int16": "#2166ac", "int8": "#d6604d"}
PEERS = {"torch": "PyTorch + PEFT", "torch+mkl": "PyTorch + PEFT, MKL unbound"}
KINDS = {"libraries": ("libraries", "#d9d9d9"), "anonymous": ("adapter, activations, Python", "#2166ac"),
         "weights": ("weights", "#92c5de")}
"""What a process holds, by its name in a result file: what it is, and its colour."""
Rows = list[dict[str, Any]]


def against_peers(axes: Axes, rows: Rows) -> None:
    """Tokens a second of each contestant; a void comparison says so."""
    bars = []
    for row in rows:
        is_ours = row["program"] == "lorafast"
        program = (f"lorafast {row['type']} {row.get('precision', 'int16')}" if is_ours
                   else f"{PEERS[row['program']]} {row['type']}{' (void)' if row.get('void') else ''}")
        case = f"{row['model']}, {row['batch']} × {row['ctx']}: {program}"
        bars.append((case, row["tokens_per_s"], OURS if is_ours else PEER))
    horizontal(axes, bars, "{:.0f}")
    axes.set(title="Training, rank 4 on every matrix", xlabel="tokens a second")


def products(axes: Axes, rows: Rows) -> None:
    """GOP/s of the products by type and direction, with sgemm's on the same shape."""
    bars = []
    for row in rows:
        case = f"{row['type']} {row['T']} × {row['K']} × {row['N']} {row['op'].removeprefix('linear_')}"
        bars.append((case, row["gops"], OURS))
        if row["type"] == "Q8_0":
            bars.append(("OpenBLAS sgemm", row["sgemm"]["gops"], PEER))
    horizontal(axes, bars, "{:.0f}")
    axes.set(title="Products with frozen weights", xlabel="GOP/s")


def share_of_peak(axes: Axes, rows: Rows) -> None:
    bars = [(" ".join(filter(None, [row["op"], row.get("type"), row.get("label")])), row["percent_of_peak"], OURS)
            for row in rows]
    horizontal(axes, bars, "{:.0f} %")
    axes.axvline(100, color="black", linewidth=0.5)
    axes.set(title="Share of the peak of what limits each op", xlabel="percent")


def split_of_a_step(axes: Axes, rows: Rows) -> None:
    """A stacked bar for each model: percent of a step in each op."""
    named = [op for op, share in rows[0]["ops"].items() if share >= 2]
    colours = matplotlib.colormaps["tab20"].colors
    for y, row in enumerate(rows):
        left = 0.0
        shares = {op: row["ops"].get(op, 0.0) for op in named}
        shares["other"] = 100 - sum(shares.values())
        for (op, share), colour in zip(shares.items(), colours):
            axes.barh(y, share, left=left, color=colour, label=op if y == 0 else None)
            left += share
    axes.set_yticks(range(len(rows)), [f"{row['model']}, {row['batch']} × {row['ctx']}, {row.get('precision', 'int16')}"
                                       for row in rows])
    axes.invert_yaxis()
    axes.set(title="Where the time of a step goes", xlabel="percent")
    axes.legend(fontsize=6, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.25))


def scaling(over: str, xlabel: str) -> Callable[[Axes, Rows], None]:
    """Tokens a second over threads, context or batch, a line for each model."""
    def draw(axes: Axes, rows: Rows) -> None:
        for model in dict.fromkeys(row["model"] for row in rows):
            line = sorted((row[over], row["tokens_per_s"]) for row in rows if row["model"] == model)
            axes.plot(*zip(*line), marker="o", label=model)
        axes.set_xscale("log", base=2)
        ticks = sorted({row[over] for row in rows})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_ylim(0, 1.1 * max(row["tokens_per_s"] for row in rows))
        axes.set(xlabel=xlabel, ylabel="tokens a second", title=f"Scaling with {over}")
        axes.legend()
    return draw


def generation(axes: Axes, rows: Rows) -> None:
    bars = [(f"{row['model']} {row['type']}, {row['threads']} thread(s)", row["percent_of_peak"], OURS) for row in rows]
    horizontal(axes, bars, "{:.0f} %")
    axes.axvline(100, color="black", linewidth=0.5)
    axes.set(title="Generation: weights read, of the memory's bandwidth", xlabel="percent")


def memory_through_two_steps(axes: Axes, rows: Rows) -> None:
    """What a process holds, stacked by kind, under its limit; of one row."""
    row, = rows
    held = row["through_two_steps"]
    axes.stackplot(held["seconds"], [held[kind] for kind in KINDS], labels=[label for label, _ in KINDS.values()],
                   colors=[colour for _, colour in KINDS.values()], linewidth=0)
    axes.axhline(row["limit"], color="black", linewidth=1)
    axes.annotate(f"the limit, {row['limit']} MB", (0, row["limit"]), xytext=(2, 2), textcoords="offset points")
    for end in held["ends"][:-1]:
        axes.axvline(end, color="black", linewidth=0.5, linestyle=":")
    axes.set_xlim(0, held["ends"][-1])
    axes.set_ylim(0, 1.45 * row["limit"])
    axes.set(title=f"{row['model']}, batch {row['batch']}, ctx {row['ctx']}: two steps", xlabel="seconds",
             ylabel="MB resident")
    axes.legend(loc="upper right", ncols=3, fontsize=6, frameon=False, reverse=True)


def price_of_less_memory(axes: Axes, rows: Rows) -> None:
    """The time of a step against the memory that it may take, both in shares of a run without a limit."""
    for case in dict.fromkeys((row["model"], row["batch"], row["ctx"]) for row in rows):
        of_case = [row for row in rows if (row["model"], row["batch"], row["ctx"]) == case]
        whole = next((row for row in of_case if not row["limit"]), None)
        if whole:
            points = sorted((100 * row["limit"] * 2**20 / whole["peak_rss"], row["seconds"] / whole["seconds"])
                            for row in of_case if row["limit"])
            axes.plot(*zip(*points, (100, 1)), marker="o", label=f"{case[0]}, {case[1]} × {case[2]}")
    axes.set(title="The price of less memory", xlabel="limit, percent of the memory of a run without one",
             ylabel="time of a step, of that without a limit")
    axes.set_xlim(0, 105)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def validation_losses(axes: Axes, rows: Rows) -> None:
    """A line for each precision: the mean over the seeds; the band is from the lowest to the highest. Of one model and
    one kind of data."""
    for precision, colour in PRECISIONS.items():
        of_seeds = [row["losses"] for row in rows if row["precision"] == precision]
        if of_seeds:
            iterations = [iteration for iteration, _ in of_seeds[0]]
            at = list(zip(*([loss for _, loss in losses] for losses in of_seeds)))
            axes.plot(iterations, [sum(losses) / len(losses) for losses in at], color=colour, marker="o",
                      label=precision)
            axes.fill_between(iterations, [min(losses) for losses in at], [max(losses) for losses in at], color=colour,
                              alpha=0.15, linewidth=0)
    n_seeds = len({row["seed"] for row in rows})
    axes.set(title=f"{rows[0]['model']}, {rows[0]['data']}: mean and range of {n_seeds} seeds", xlabel="iteration",
             ylabel="validation loss, as the precision has it")
    axes.legend(frameon=False)


def horizontal(axes: Axes, bars: list[tuple[str, float, str]], form: str) -> None:
    drawn = axes.barh(range(len(bars)), [value for _, value, _ in bars], color=[colour for *_, colour in bars])
    axes.bar_label(drawn, [form.format(value) for _, value, _ in bars], padding=2, fontsize=6)
    axes.set_yticks(range(len(bars)), [label for label, *_ in bars], fontsize=6)
    axes.invert_yaxis()
    axes.margins(x=0.15)


def panels(results: dict[str, dict[str, Any]]) -> list[tuple[Callable[[Axes, Rows], None], Rows]]:
    """What to draw, and of which rows: those on all threads, in the best ISA, unless the panel is about that."""
    def rows(bench: str) -> Rows:
        return results[bench]["rows"] if bench in results else []

    def comparison(name: str) -> Rows:
        return [row for row in rows("train") if row["comparison"] == name]

    kernels = [row for row in rows("kernels") if row["threads"] == results["kernels"]["machine"]["threads"]
               and row["isa"] == results["kernels"]["machine"]["isa"]]
    linear = [row for row in kernels if row["op"].startswith("linear") and row["T"] > 1]
    peers = comparison("peers")
    ours = [row for row in peers if row["program"] == "lorafast"]
    some = [row for row in linear if (row["N"], row["K"], row["type"]) == (4096, 4096, "Q8_0")]
    return [panel for panel in (
        (against_peers, peers),
        (split_of_a_step, ours),
        (products, linear),
        (share_of_peak, some + [row for row in kernels if not row["op"].startswith("linear")]),
        (scaling("threads", "threads"), comparison("threads")),
        (scaling("ctx", "context, batch 1"), comparison("context")),
        (scaling("batch", "batch, ctx 64"), comparison("batch")),
        (generation, rows("generate")),
    ) if panel[1]]


def memory_panels(results: dict[str, dict[str, Any]]) -> list[tuple[Callable[[Axes, Rows], None], Rows]]:
    """The tightest run of each model, then all of them."""
    rows = results["memory"]["rows"] if "memory" in results else []
    watched = [(memory_through_two_steps, [row]) for row in rows if "through_two_steps" in row]
    return [*watched, (price_of_less_memory, rows)] if rows else []


def precision_panels(results: dict[str, dict[str, Any]]) -> list[tuple[Callable[[Axes, Rows], None], Rows]]:
    """One for each model and kind of data."""
    rows = results["precision"]["rows"] if "precision" in results else []
    return [(validation_losses, [row for row in rows if (row["model"], row["data"]) == case])
            for case in dict.fromkeys((row["model"], row["data"]) for row in rows)]


PAGES = {"memory": memory_panels, "precision": precision_panels}
"""Pages of one result file each, by its name."""


def draw_page(panels: list[tuple[Callable[[Axes, Rows], None], Rows]], machine: dict[str, Any], path: Path) -> None:
    """At most two panels in a row."""
    columns = min(2, len(panels))
    n_rows = -(-len(panels) // columns)
    figure, grid = pyplot.subplots(n_rows, columns, figsize=(6 * columns, 4 * n_rows), squeeze=False)
    for axes, (draw, rows) in zip(grid.flat, panels):
        draw(axes, rows)
    for axes in grid.flat[len(panels):]:
        axes.remove()
    figure.suptitle(f"{machine['cpu']}, {machine['threads']} threads, {machine['isa']}, commit {machine['commit']}")
    figure.savefig(path, metadata={"Date": None})
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    args = parser.parse_args()
    files = [args.results / f"{bench}.json" for bench in ("kernels", "train", "generate", *PAGES)]
    results = {path.stem: read_results(path) for path in files if path.exists()}
    pages = {"plots": panels(results)} | {name: draw(results) for name, draw in PAGES.items()}
    if not any(pages.values()):
        raise SystemExit(f"no results in {args.results}: run the benches first")
    for name, drawn in pages.items():
        if drawn:
            machine = results[name if name in PAGES else next(iter(results))]["machine"]
            draw_page(drawn, machine, args.results / f"{name}.svg")


if __name__ == "__main__":
    main()
