"""`lorafast report`: a page that shows how a run went."""
from __future__ import annotations

from pathlib import Path

from ..options.tools import ReportOptions
from ..reporting.report import find_metrics, write_report


def run(options: ReportOptions) -> int:
    """Runs the command and returns its exit status."""
    metrics = find_metrics(options.run)
    for path in write_report(metrics, options.output or Path(metrics).with_suffix(".html")):
        print("wrote", path)
    return 0
