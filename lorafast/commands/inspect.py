"""`lorafast inspect`: what a file holds; with --model-base, training data as the trainer sees it."""
from __future__ import annotations

import sys

from ..options.tools import InspectOptions
from ..system.output import show
from .inspect_data import show_data
from .inspect_model import inspect_file


def run(options: InspectOptions) -> int:
    """Runs the command and returns its exit status."""
    if options.model_base:
        show_data(options, sys.stdout)
    else:
        for line in inspect_file(options.file, everything=options.all):
            show(line)
    return 0
