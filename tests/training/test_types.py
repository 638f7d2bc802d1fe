"""A tiny model of every weight type trains, and generates with what was trained."""
import pytest
from make_models import make_tiny
from quant_blocks import TRAINABLE

import lorafast

TEXT = "the love of thy sweet all and not to thou that in my love with is " * 4


@pytest.mark.parametrize("type", TRAINABLE, ids=lambda type: type.name)
def test_it_trains_and_generates(tmp_path, monkeypatch, type):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    size = max(64, type.block_size)
    model = make_tiny(tmp_path / "model.gguf", type=type.name, n_embd=size, n_ff=size, n_layer=1, embd_std=0.1)
    losses = []
    lorafast.finetune({"model_base": str(model), "train_data": ("text.txt",), "ctx": 32, "batch": 2, "adam_iter": 12,
                       "warmup": 1, "threads": 1, "adam_alpha": 1e-2, "seed": 1, "checkpoint_in": "",
                       "checkpoint_out": "", "lora_out": ("a.gguf",)},
                      lambda event: losses.append(event.loss) if isinstance(event, lorafast.Step) else None)
    assert losses[-1] < 0.9 * losses[0]
    trained = lorafast.Model.open(model, [tmp_path / "a.gguf"], n_ctx=16)
    assert "".join(trained.generate("love", n_predict=4))
