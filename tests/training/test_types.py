"""A tiny model of every weight type trains, and generates with what was trained."""
import numpy as np
import pytest
from llama_cpp_logits import llama_cpp_logits
from make_models import make_tiny
from numerics import nmse
from quant_blocks import TRAINABLE

import lorafast

LLAMA_CPP_LIMIT = 1e-3
TEXT = "the love of thy sweet all and not to thou that in my love with is " * 4


def tiny(folder, type, **options):
    size = max(64, type.block_size)
    return make_tiny(folder / "model.gguf", type=type.name, n_embd=size, n_ff=size, n_layer=1, **options)


@pytest.mark.parametrize("type", TRAINABLE, ids=lambda type: type.name)
def test_it_trains_and_generates(tmp_path, monkeypatch, type):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    model = tiny(tmp_path, type, embd_std=0.1)
    losses = []
    lorafast.finetune({"model_base": str(model), "train_data": ("text.txt",), "ctx": 32, "batch": 2, "adam_iter": 12,
                       "warmup": 1, "threads": 1, "adam_alpha": 1e-2, "seed": 1, "checkpoint_in": "",
                       "checkpoint_out": "", "lora_out": ("a.gguf",)},
                      callback=lambda event: losses.append(event.loss) if isinstance(event, lorafast.Step) else None)
    assert losses[-1] < 0.9 * losses[0]
    trained = lorafast.Model.open(model, [tmp_path / "a.gguf"], n_ctx=16)
    assert "".join(trained.generate("love", n_predict=4))


@pytest.mark.slow
@pytest.mark.parametrize("type", TRAINABLE, ids=lambda type: type.name)
def test_llama_cpp_computes_the_same(tmp_path, type):
    """But for its activations, which it rounds to 8 bits."""
    pytest.importorskip("llama_cpp")
    model, tokens = tiny(tmp_path, type), np.array([1, 300, 17, 263, 5, 101], np.int32)
    theirs = llama_cpp_logits(tmp_path, model, tokens)[0]
    assert nmse(lorafast.Model.open(model, n_ctx=16).forward(tokens), theirs) < LLAMA_CPP_LIMIT
