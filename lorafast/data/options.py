"""How a run reads its data, from its options."""
from __future__ import annotations

from ..options.assignments import assignments, json_assignments
from ..options.finetune import FinetuneConfig
from .open import DataOptions


def data_options(config: FinetuneConfig) -> DataOptions:
    """How the data is to be read."""
    return DataOptions(
        config.train_data, config.valid_data, config.valid_split, config.data_format, config.chat_template,
        config.train_on_prompt, config.skip_bad, config.data_cache, config.stride, config.start_text,
        config.include_sample_start, config.overlapping_samples, assignments(config.field), config.raw_pairs,
        json_assignments(config.template_arg), config.method)
