"""Options from Python: paths, one or several, and what is wrong in one line."""
from pathlib import Path

import pytest

from lorafast.errors import UsageError
from lorafast.options.assignments import json_assignments
from lorafast.options.finetune import FinetuneConfig
from lorafast.options.values import options_of


def test_paths_and_sequences():
    one = options_of(FinetuneConfig, {"model_base": Path("m.gguf"), "train_data": "a.txt", "lora_out": Path("a.gguf")})
    assert (one.model_base, one.train_data, one.lora_out) == ("m.gguf", ("a.txt",), ("a.gguf",))
    listed = options_of(FinetuneConfig, {"model_base": "m", "targets": ["q_proj", "ffn_down"], "field": {"prompt": "q"},
                                         "template_arg": {"enable_thinking": False, "date": "today", "n": [1]}})
    assert listed.target_list() == ("attn_q", "ffn_down") and listed.field == ("prompt=q",)
    assert json_assignments(listed.template_arg) == {"enable_thinking": False, "date": "today", "n": [1]}
    several = options_of(FinetuneConfig, {"model_base": "m", "train_data": [Path("a.txt"), "b.txt"], "adam_alpha": 1})
    assert several.train_data == ("a.txt", "b.txt") and several.adam_iter is None


@pytest.mark.parametrize("given, message", [
    ({"model": "m"}, "unknown argument model"),
    ({"lora_rank": 3}, r"unknown argument lora_rank (did you mean lora_r?)"),
    ({"learning_rate": 3}, r"unknown argument learning_rate (did you mean adam_alpha?)"),
    ({"epochs": 1.5}, "epochs 1.5: must be a whole number"),
    ({"epochs": True}, "epochs True: must be a whole number"),
    ({"adam_alpha": "1e-4"}, "adam_alpha '1e-4': must be a number"),
    ({"train_data": 3}, "train_data 3: must be a path or text, or a sequence of them"),
    ({"model_base": None}, "model_base None: must be a path or text"),
    ({"dora": 1}, "dora 1: must be True or False"),
    ({"model_base": "m", "batch": 0}, "--batch 0: must be at least 1"),
])
def test_what_is_wrong_is_one_line(given, message):
    with pytest.raises(UsageError) as error:
        options_of(FinetuneConfig, given)
    assert str(error.value).startswith(message)
