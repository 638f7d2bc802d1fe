"""A loss that is not finite: the message names the block, the branch and the tensor in which it began."""
import numpy as np
import pytest
from make_models import make_tiny

from lorafast.errors import LoraFastError
from lorafast.gguf.reader import GGUFFile, open_model
from lorafast.network.feed_forward import FeedForward
from lorafast.options.finetune import FinetuneConfig
from lorafast.tokenizer import load_tokenizer
from lorafast.training.learner import Learner
from lorafast.training.run import finetune


def run(model, tmp_path, checkpoint_out="", **options):
    (tmp_path / "text.txt").write_text("the love of thy sweet all and not to thou " * 20)
    return finetune(FinetuneConfig(model_base=str(model), train_data=(str(tmp_path / "text.txt"),), ctx=16, batch=2,
                                   seed=1, threads=1, adam_iter=8, warmup=0, checkpoint_in="", lora_out=(),
                                   checkpoint_out=checkpoint_out, **options))


@pytest.mark.parametrize("name", ["blk.1.attn_q.weight", "blk.0.ffn_down.weight"])
def test_a_nan_in_a_weight_is_named(tmp_path, name):
    model = make_tiny(tmp_path / "tiny.gguf", type="F32")
    tensor = GGUFFile(model).tensors[name]
    data = bytearray(model.read_bytes())
    data[tensor.offset + 8:tensor.offset + 12] = np.float32(np.nan).tobytes()
    model.write_bytes(data)
    with pytest.raises(LoraFastError, match=rf"first in block {name[4]}, \w+: {name} .* damaged"):
        run(model, tmp_path)


def test_where_a_gradient_overflowed_is_named(tmp_path, monkeypatch):
    backward = FeedForward.backward

    def broken(self, dx, d_out, *arguments):
        backward(self, dx, d_out, *arguments)
        dx[0, 0] = np.inf

    monkeypatch.setattr(FeedForward, "backward", broken)
    with pytest.raises(LoraFastError, match=r"gradient of iteration 0 is not finite, first in the backward pass of "
                                            r"block 1, FeedForward: the gradient of its input"):
        run(make_tiny(tmp_path / "tiny.gguf"), tmp_path)


def test_an_evaluation_that_is_not_finite_ends_the_run(tmp_path):
    model = make_tiny(tmp_path / "tiny.gguf", type="F32")
    data = bytearray(model.read_bytes())
    tensor = GGUFFile(model).tensors["token_embd.weight"]
    row = tensor.offset + 4 * tensor.shape[1] * 300             # of a token that only the data to evaluate on has
    data[row:row + 4] = np.float32(np.nan).tobytes()
    model.write_bytes(data)
    token = load_tokenizer(open_model(model)).token_text(300)
    (tmp_path / "valid.txt").write_text(f"the {token} " * 20)
    with pytest.raises(LoraFastError, match=r"the loss on .*valid.txt after iteration 0 is nan, token_embd.weight"):
        run(model, tmp_path, valid_data=(str(tmp_path / "valid.txt"),))


def test_a_checkpoint_worse_than_guessing_is_not_called_good(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    losses = iter([5.0, 5.0, 9.0, 9.0, np.nan])                 # ln 384 is 5.95

    def of_these(self, batches, iteration):
        self.gradients.flat[:] = 0
        return next(losses)

    monkeypatch.setattr(Learner, "loss_and_gradients", of_these)
    monkeypatch.setattr("lorafast.training.loop.first_fault", lambda *_: "found")
    with pytest.raises(LoraFastError, match=r"c-LATEST.gguf of iteration 3, has a loss above that of guessing; the "
                                            r"last good one, of iteration 1, is c-1.gguf"):
        run(make_tiny(tmp_path / "tiny.gguf"), tmp_path, save_every=1, checkpoint_out="c-ITERATION.gguf")


def test_a_rate_that_is_too_high_is_no_damaged_model(tmp_path):
    with pytest.raises(LoraFastError, match=r"overflowed|not finite before") as caught:
        run(make_tiny(tmp_path / "tiny.gguf"), tmp_path, adam_alpha=1e30)
    assert "damaged" not in str(caught.value) and "lower --adam-alpha" in str(caught.value)
