"""Models that do not fit themselves are refused, in one line, when they are opened."""
import numpy as np
import pytest
from hybrid_models import make_hybrid
from make_models import U32, make_tiny

from lorafast.errors import FormatError
from lorafast.gguf.reader import GGUFFile, open_model
from lorafast.gguf.types import GGMLType
from lorafast.gguf.writer import TensorToWrite, write_gguf
from lorafast.network.hparams import read_hparams


def rewritten(source, target, rows=None, **added):
    """A copy of a model with only the first rows of some matrices, by name, and with more tensors (F32)."""
    file, rows = GGUFFile(source), rows or {}
    tensors = [TensorToWrite(t.name, t.type, (rows.get(t.name, t.shape[0]), *t.shape[1:]),
                             t.data[:rows[t.name]] if t.name in rows else t.data) for t in file.tensors.values()]
    tensors += [TensorToWrite(f"{name}.weight", GGMLType.F32, values.shape, values) for name, values in added.items()]
    write_gguf(target, [(key, file.value_types[key], value) for key, value in file.metadata.items()], tensors)
    return open_model(target)


def test_fewer_rows_than_tokens(tmp_path):
    model = make_tiny(tmp_path / "model.gguf")
    short = rewritten(model, tmp_path / "short.gguf", dict.fromkeys(("token_embd.weight", "output.weight"), 320))
    with pytest.raises(FormatError, match=r"384 tokens in the vocabulary, but 320 rows in token_embd\.weight"):
        read_hparams(short)


def test_factors_of_the_wrong_length(tmp_path):
    model = make_tiny(tmp_path / "model.gguf")
    bad = rewritten(model, tmp_path / "bad.gguf", rope_freqs=np.ones(5, np.float32))
    with pytest.raises(FormatError, match=r"'rope_freqs\.weight' has shape \(5,\), wanted \(8,\)"):
        read_hparams(bad)


def test_a_window_of_nothing(tmp_path):
    file = GGUFFile(make_hybrid(tmp_path / "model.gguf", "gemma4"))
    metadata = [(key, file.value_types[key], 0 if key.endswith("sliding_window") else value)
                for key, value in file.metadata.items()]
    write_gguf(tmp_path / "bad.gguf", metadata, [TensorToWrite(t.name, t.type, t.shape, t.data)
                                                 for t in file.tensors.values()])
    with pytest.raises(FormatError, match=r"sliding_window' is 0, but \d+ blocks see a window only"):
        read_hparams(open_model(tmp_path / "bad.gguf"))


def test_more_blocks_than_the_key_counts(tmp_path):
    """Only what predicts tokens further ahead may stand behind the network's own blocks."""
    model, counted = make_tiny(tmp_path / "model.gguf", n_layer=3), [("llama.block_count", U32, 2)]
    with pytest.raises(FormatError, match=r"block_count' counts 2 blocks, but .* such as 'blk\.2\."):
        read_hparams(open_model(make_tiny(tmp_path / "bad.gguf", n_layer=3, metadata=counted)))
    ahead = make_tiny(tmp_path / "key.gguf", n_layer=3, metadata=[("llama.nextn_predict_layers", U32, 1)])
    assert read_hparams(open_model(ahead)).n_layer == 2
    named = rewritten(model, tmp_path / "names.gguf", **{"blk.3.nextn.eh_proj": np.ones((2, 4), np.float32)})
    assert read_hparams(named).n_layer == 3


@pytest.mark.parametrize("name, reason", [("granitehybrid", r" \(it has blocks of Mamba\)"), ("gptj", "")])
def test_other_architectures_are_refused_by_name(tmp_path, name, reason):
    with pytest.raises(FormatError, match=f"architecture '{name}' is not supported{reason}; lorafast trains llama, "):
        read_hparams(open_model(make_tiny(tmp_path / "model.gguf", architecture=name)))
