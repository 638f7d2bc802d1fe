"""`lorafast report`: a page that shows how a run went."""
from __future__ import annotations

from pathlib import Path

from ..gguf.file_form import FileForm
from ..options.overwriting import Target, check_overwriting
from ..options.tools import ReportOptions
from ..reporting.report import find_metrics, write_report
from ..system.output import show


def run(options: ReportOptions) -> int:
    """Runs the command and returns its exit status."""
    metrics = find_metrics(options.run)
    page = options.output or str(Path(metrics).with_suffix(".html"))
    check_overwriting([Target("--output", page, FileForm.REPORT)], {metrics: "the metrics"}, force=options.force)
    for path in write_report(metrics, page):
        show(f"wrote {path}")
    return 0
