"""A loss that is not finite: the message names the block, the branch and the tensor in which it began."""
import numpy as np
import pytest
from make_models import make_tiny

from lorafast.errors import LoraFastError
from lorafast.gguf.reader import GGUFFile
from lorafast.options.finetune import FinetuneConfig
from lorafast.training.run import finetune


def run(model, tmp_path, **options):
    (tmp_path / "text.txt").write_text("the love of thy sweet all and not to thou " * 20)
    return finetune(FinetuneConfig(model_base=str(model), train_data=(str(tmp_path / "text.txt"),), ctx=16, batch=2,
                                   seed=1,
                                   threads=1, adam_iter=8, warmup=0, checkpoint_in="", checkpoint_out="", lora_out=(),
                                   **options))


@pytest.mark.parametrize("name", ["blk.1.attn_q.weight", "blk.0.ffn_down.weight"])
def test_a_nan_in_a_weight_is_named(tmp_path, name):
    model = make_tiny(tmp_path / "tiny.gguf", type="F32")
    tensor = GGUFFile(model).tensors[name]
    data = bytearray(model.read_bytes())
    data[tensor.offset + 8:tensor.offset + 12] = np.float32(np.nan).tobytes()
    model.write_bytes(data)
    with pytest.raises(LoraFastError, match=rf"first in block {name[4]}, \w+: {name} .* damaged"):
        run(model, tmp_path)


def test_a_rate_that_is_too_high_is_no_damaged_model(tmp_path):
    with pytest.raises(LoraFastError, match=r"overflowed|not finite before") as caught:
        run(make_tiny(tmp_path / "tiny.gguf"), tmp_path, adam_alpha=1e30)
    assert "damaged" not in str(caught.value) and "lower --adam-alpha" in str(caught.value)
