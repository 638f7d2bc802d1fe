"""The table of processors in docs/speed.md, from bench/results/train.json and bench/results/<processor>/train.json.

    python bench/row.py --name            the folder's name for this processor
    python bench/row.py                   writes the table anew

`make bench-row` measures this machine into a folder of its own and writes the table: a row that can be sent.
"""
from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from machine import describe
from results import RESULTS, read_results

from lorafast.system.threads import physical_cores

PAGE = Path(__file__).parent.parent / "docs/speed.md"
BEGIN, END = "<!-- made by bench/row.py -->", "<!-- end -->"
COLUMNS = ("processor", "threads", "model", "lorafast int16", "int8", "float32", "PyTorch float32", "with MKL unbound",
           "bfloat16", "with MKL unbound", "best to best")
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def folder_name(machine: dict[str, Any]) -> str:
    """`amd-epyc-avx2-2`: the processor, the instruction set in use, the threads."""
    words = re.sub(r"\((?:R|TM)\)|CPU|Processor|@.*", " ", machine["cpu"])
    return "-".join(re.findall(r"[a-z0-9]+", words.lower())) + f"-{machine['isa']}-{machine['threads']}"


def table_rows(result: dict[str, Any]) -> list[str]:
    """A line for each model at batch 4 ctx 64; milliseconds a step."""
    machine, lines = result["machine"], []
    peers = [row for row in result["rows"] if row["comparison"] == "peers" and (row["batch"], row["ctx"]) == (4, 64)]
    for model in dict.fromkeys(row["model"] for row in peers):
        seconds = {(row["program"], row.get("precision", "int16") if row["program"] == "lorafast" else row["type"]):
                   row["seconds"] for row in peers if row["model"] == model}
        ours = [seconds.get(("lorafast", precision)) for precision in ("int16", "int8", "float32")]
        theirs = [seconds.get((program, type))
                  for type in ("float32", "bfloat16") for program in ("torch", "torch+mkl")]
        known, peer = [s for s in ours if s], [s for s in theirs if s]
        ratio = f"{min(peer) / min(known):.2f}" if known and peer else ""
        cells = [f"{machine['cpu']}, {machine['isa']}", str(machine["threads"]), model,
                 *(f"{1000 * s:.0f} ms" if s else "" for s in (*ours, *theirs)), ratio]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", action="store_true", help="print the name of this processor's folder")
    if parser.parse_args().name:
        print(folder_name(describe(physical_cores())))
        return
    paths = [RESULTS / "train.json", *sorted(RESULTS.glob("*/train.json"))]
    lines = [line for path in paths for line in table_rows(read_results(path))]
    text = PAGE.read_text("utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{HEAD}\n" + "\n".join(lines) + f"\n{END}{after}", "utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
