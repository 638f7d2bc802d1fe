"""`lorafast inspect`: what a file holds; with --model-base, training data as the trainer sees it."""
from __future__ import annotations

import sys

from ..errors import FormatError
from ..gguf.recognise import is_data
from ..options.tools import InspectOptions
from ..system.hub import local_path
from ..system.output import show
from .inspect_data import show_data
from .inspect_model import inspect_file


def run(options: InspectOptions) -> int:
    """Runs the command and returns its exit status."""
    if options.model_base:
        show_data(options, sys.stdout)
    else:
        path = local_path(options.file)
        try:
            lines = list(inspect_file(path, everything=options.all))
        except FormatError as error:
            if is_data(path):
                raise FormatError(f"{error}. To show training data, add --model-base MODEL.gguf") from None
            raise
        for line in lines:
            show(line)
    return 0
