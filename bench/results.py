"""Result files: JSON with the bench's name, the machine, its peaks, and rows; a row's keys say what was measured."""
from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write_results(path: Path, bench: str, machine: dict, peaks: dict, rows: Sequence[dict[str, Any]]) -> None:
    """One row a line, so that a change of a number is a change of a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps({"bench": bench, "machine": machine, "peaks": _rounded(peaks)}, indent=1)[:-2]
    lines = ",\n  ".join(json.dumps(_rounded(row)) for row in rows)
    path.write_text(f'{head},\n "rows": [\n  {lines}\n ]\n}}\n')
    print(f"wrote {path}")


def read_results(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _rounded(value: Any) -> Any:
    """Floats to five digits; a bench knows no more."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) and math.isfinite(value) else value
