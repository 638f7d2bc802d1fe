"""What `lorafast inspect` shows of models, adapters and checkpoints."""
import numpy as np
import pytest
from golden_files import unpack
from make_models import make_tiny

from lorafast.adapters import BaseModel, write_adapter
from lorafast.commands.inspect_model import change_square, inspect_file, shown
from lorafast.errors import FormatError
from lorafast.gguf.file_form import FileForm
from lorafast.gguf.reader import GGUFFile
from lorafast.gguf.roles import LLAMA_FINETUNE_NAMES
from lorafast.gguf.types import GGMLType, GGUFValueType
from lorafast.gguf.writer import TensorToWrite, write_gguf
from tests.adapters.test_gguf import MATRICES, random_adapter


def text_of(path, **kwargs) -> str:
    return "\n".join(inspect_file(str(path), **kwargs))


def test_a_model(tmp_path):
    model = make_tiny(tmp_path / "model.gguf", n_layer=3, types={"blk.1.attn_v.weight": "F16"})
    text = text_of(model)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0].startswith(f"{model}: a base model (Q8_0), GGUF version 3, 0.2 MB, 0.2 million parameters")
    assert "llama.block_count u32 3" in lines and "tokenizer.ggml.bos_token_id u32 1" in lines
    assert "tokenizer.ggml.tokens arr[str] ['<unk>', '<s>', '</s>', '<0x00>', ... (384 in all)]" in lines
    assert "blk.*.attn_q.weight 3 q8_0 64 × 64 0.0 MB" in lines
    assert "blk.*.attn_v.weight 2 q8_0 32 × 64 0.0 MB" in lines and "blk.*.attn_v.weight 1 f16 32 × 64 0.0 MB" in lines
    assert "q8_0 22 0.2 MB 8.50" in lines and "f32 7 0.0 MB 32.00" in lines
    everything = text_of(model, everything=True)
    assert "blk.2.attn_q.weight" in everything and "blk.*." not in everything and "[filler7]" in everything
    assert max(map(len, text.splitlines()[1:])) <= 120


def nested(depth: int) -> list:
    """Arrays of arrays, with numbers in the innermost."""
    return [nested(depth - 1) for _ in range(5)] if depth else [1, 2, 3, 4, 5]


U32, TEXT, ARRAY = GGUFValueType.UINT32, GGUFValueType.STRING, GGUFValueType.ARRAY
HOSTILE = {
    "a long key among short ones": [("k" * 20_000, U32, 1), *((f"{i}", U32, i) for i in range(1000))],
    "long keys": [(f"{i}" + "k" * 1000, U32, i) for i in range(20)],
    "a long text": [("k", TEXT, "\x1b" * 20_000)],
    "many long texts": [(f"{i}", TEXT, "\U000e0001" * 200) for i in range(100)],
    "an array of long texts": [("k", (ARRAY, TEXT), ["\t" * 1000] * 20)],
    "many arrays of texts": [(f"{i}", (ARRAY, TEXT), ["\x1b" * 80] * 5) for i in range(100)],
    "long arrays": [("k", (ARRAY, GGUFValueType.BOOL), np.zeros(20_000, bool))],
    "many arrays": [(f"{i}", (ARRAY, GGUFValueType.INT8), np.full(9, -128, np.int8)) for i in range(1000)],
    "arrays of arrays": [(f"{i}", (ARRAY, ARRAY), [np.array(row, np.uint8) for row in nested(1)] * 4)
                         for i in range(100)],
    "empty arrays of arrays": [("k", (ARRAY, ARRAY), [np.zeros(0, np.uint8)] * 2000)],
}


@pytest.mark.parametrize("metadata", HOSTILE.values(), ids=HOSTILE)
def test_what_is_shown_of_metadata_is_a_small_multiple_of_the_file(tmp_path, metadata):
    """A file of 408 kB made inspect print 604 MB, where one long name widened every line."""
    write_gguf(tmp_path / "model.gguf", [("general.architecture", TEXT, "llama"), *metadata], [])
    size = (tmp_path / "model.gguf").stat().st_size
    assert len(text_of(tmp_path / "model.gguf")) < 4 * size + 1000
    assert len(text_of(tmp_path / "model.gguf", everything=True)) < 8 * size + 1000


@pytest.mark.parametrize("names", [["t" * 20_000, *map(str, range(500))], [f"{i}" + "t" * 1000 for i in range(20)]],
                         ids=["a long name among short ones", "long names"])
def test_what_is_shown_of_tensors_is_a_small_multiple_of_the_file(tmp_path, names):
    write_gguf(tmp_path / "model.gguf", [("general.architecture", TEXT, "llama")],
               [TensorToWrite(name, GGMLType.F32, (1,), np.zeros(1, np.float32)) for name in names])
    size = (tmp_path / "model.gguf").stat().st_size
    for everything in (False, True):
        assert len(text_of(tmp_path / "model.gguf", everything=everything)) < 4 * size + 1000


@pytest.mark.parametrize("form, name, targets", [
    (FileForm.GGLA, "a.bin", LLAMA_FINETUNE_NAMES), (FileForm.GGUF, "a.gguf", MATRICES),
    (FileForm.PEFT, "a/", MATRICES)])
def test_an_adapter_of_any_form(tmp_path, form, name, targets):
    model = GGUFFile(make_tiny(tmp_path / "model.gguf"))
    shapes = {key: tensor.shape for key, tensor in model.tensors.items()}
    adapter = random_adapter(shapes, targets=targets, alpha=6, r=3)
    write_adapter(form, tmp_path / name, adapter, BaseModel.from_gguf(model))
    lines = text_of(f"{tmp_path}/{name}").splitlines()
    assert form.value.split()[0] in lines[0] and f"{len(adapter.pairs)} pairs" in lines[1]
    assert "alpha / r: 6 / 3 = 2" in lines[1]
    row, = (line.split() for line in lines if line.startswith("attn_q "))
    pairs = [adapter.pairs[f"blk.{layer}.attn_q.weight"] for layer in range(2)]
    expected = [np.sqrt(np.mean([np.square(x).sum() for x in parts])) for parts in (
        [a for a, _ in pairs], [b for _, b in pairs], [2 * b.T @ a for a, b in pairs])]
    assert row[:6] == ["attn_q", "2", "3", "64", "×", "64"]
    assert [float(value) for value in row[6:9]] == pytest.approx(expected, rel=1e-2)
    assert float(row[9]) == pytest.approx(expected[2] / 64, rel=1e-2)
    assert any(line.startswith("blk.1.attn_q.weight ") for line in inspect_file(f"{tmp_path}/{name}", everything=True))


def test_magnitudes(tmp_path):
    model = GGUFFile(make_tiny(tmp_path / "model.gguf"))
    shapes = {key: tensor.shape for key, tensor in model.tensors.items()}
    adapter = random_adapter(shapes, targets=["attn_q", "ffn_down"], dora=True)
    write_adapter(FileForm.PEFT, tmp_path / "a", adapter, BaseModel.from_gguf(model))
    lines = text_of(tmp_path / "a").splitlines()
    n_params = sum(part.size for name in adapter.pairs for part in adapter.parts(name))
    assert lines[1].startswith(f"4 pairs with magnitudes (DoRA), {n_params / 1e6:.3f} million parameters")
    row, = (line.split() for line in lines if line.startswith("ffn_down "))
    mean = np.mean([adapter.magnitudes[f"blk.{layer}.ffn_down.weight"] for layer in range(2)])
    assert float(row[-1]) == pytest.approx(mean, rel=1e-3)


def test_values_that_are_not_finite_are_told(tmp_path):
    adapter = random_adapter({"blk.0.attn_q.weight": (8, 8)}, targets=["attn_q"])
    adapter.pairs["blk.0.attn_q.weight"][1][0, 0] = np.nan
    write_adapter(FileForm.GGLA, tmp_path / "a.bin", adapter, BaseModel("llama", 1, 1, 1, False))
    assert "warning: 1 pair with values that are not finite, blk.0.attn_q.weight" in text_of(tmp_path / "a.bin")


def test_a_checkpoint_of_the_original(tmp_path):
    text = text_of(unpack("tinymha-seed1-20.gguf", tmp_path))
    assert "iterations 20, samples 80, tokens 5120, epochs 0" in text
    assert "written by: llama.cpp's finetune" in text and "order RIGHT_TO_LEFT, recognised: read so, " in text
    assert "sample 80 of " in text and "ranks: token_embd 4, output_norm 1, output 4, attn_norm 1" in text
    assert "\nffn_up " in text


def test_the_change_without_the_product():
    a, b = np.random.default_rng(0).standard_normal((2, 3, 50)).astype(np.float32)
    assert change_square(a, b, 0.5) == pytest.approx(np.square(0.5 * b.T @ a).sum(), rel=1e-5)


def test_values_in_one_line():
    assert shown("a\nb") == r"'a\nb'" and shown("x" * 100).endswith("x... (100 characters)")
    assert shown(np.arange(3.0)) == "[0, 1, 2]" and shown(["a"] * 9) == "['a', 'a', 'a', 'a', ... (9 in all)]"
    assert shown(1e-5) == "1e-05" and shown(True) == "True" and shown([[1, 2], [3]], True) == "[[1, 2], [3]]"


def test_anything_else(tmp_path):
    (tmp_path / "text").write_text("Shall I compare thee")
    with pytest.raises(FormatError):
        text_of(tmp_path / "text")
