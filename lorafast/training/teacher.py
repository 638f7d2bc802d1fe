"""The teacher of --distill, for the batches of a run."""
from __future__ import annotations

import numpy as np

from ..data.batches import Batch
from ..data.open import Data
from ..data.samples import Sequences
from ..data.teacher_file import TeacherFile
from ..errors import LoraFastError, UsageError
from ..network.distillation import Targets
from ..network.trainer import Strategy
from .opening import Opened


class FileTeacher:
    """What a file says, with the options' weight and temperature."""

    def __init__(self, file: TeacherFile, weight: float, temperature: float) -> None:
        self.file, self.weight, self.temperature = file, weight, temperature

    def targets(self, batch: Batch) -> Targets:
        """The teacher's probabilities at the targets of a batch that count."""
        assert batch.rows is not None
        counts = np.add.reduceat(batch.targets >= 0, batch.begin[:-1], dtype=np.int64)
        ids, log_q = self.file.of(batch.rows, counts)
        return Targets(ids, log_q, self.weight, self.temperature)


def open_teacher(opened: Opened, data: Data, strategy: Strategy) -> FileTeacher | None:
    """The teacher of --distill; None without it. UsageError or LoraFastError where the file is not of this data and
    vocabulary."""
    config = opened.config
    if not config.distill:
        return None
    if not isinstance(data.train, Sequences):
        raise UsageError(f"--distill {config.distill}: {data.train.name} is text, but a teacher's file belongs to "
                         "records")
    if strategy.head_pieces:
        raise LoraFastError(f"--distill {config.distill}: the loss cannot be computed by pieces of the vocabulary, as "
                            "so little memory would need it; give a larger --mem-limit")
    return FileTeacher(TeacherFile(config.distill, data.train, opened.gguf.metadata), config.distill_weight,
                       config.temperature)
