"""Merged models: W + s·BᵀA in every type, what stays as it was, tied embeddings, and what the report says."""
import numpy as np
import pytest
from adapter_merge import with_magnitudes
from make_models import make_tiny
from numerics import nmse

import lorafast
import lorafast.commands.merge
from lorafast.adapters import AdapterFile, BaseModel, write_adapter
from lorafast.commands.inspect_model import inspect_file
from lorafast.commands.merge import Change, merge_model, report_lines, run as run_merge
from lorafast.errors import FormatError, LoraFastError, UsageError
from lorafast.gguf.file_form import FileForm
from lorafast.gguf.quantize_k import quantize
from lorafast.gguf.quants import dequantize
from lorafast.gguf.reader import GGUFFile
from lorafast.gguf.roles import BLOCK_MATRICES, LLAMA_FINETUNE_NAMES
from lorafast.gguf.types import GGMLType
from lorafast.gguf.writer import TensorToWrite, write_gguf
from lorafast.network.hparams import read_hparams
from lorafast.options.declare import parse
from lorafast.options.tools import MERGE_TYPES, MergeOptions
from lorafast.system.live import Meter
from tests.adapters.test_gguf import MATRICES, llama_cpp_logits, random_adapter

OF_256 = dict(n_embd=256, n_ff=512, n_layer=1)


def model_and_adapter(folder, *, targets=MATRICES, size=0.02, dora=False, **kwargs):
    model = GGUFFile(make_tiny(folder / "model.gguf", **kwargs))
    shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
    return model, random_adapter(shapes, targets=[target for target in targets if f"{target}.weight" in shapes
                                                  or f"blk.0.{target}.weight" in shapes], size=size, dora=dora)


def expected(model, adapters, name):
    w, changes = model.tensors[name].to_float32().astype(np.float64), []
    for adapter, factor in adapters:
        if name in adapter.pairs:
            a, b = adapter.pairs[name]
            v = w + adapter.scale * (b.T.astype(np.float64) @ a).reshape(w.shape)
            if name in adapter.magnitudes:
                v = with_magnitudes(v, adapter.magnitudes[name], name)
            changes.append(factor * (v - w))
    return w + sum(changes)


def test_float32_is_exact_norms_included(tmp_path):
    model, adapter = model_and_adapter(tmp_path, type="F32", targets=LLAMA_FINETUNE_NAMES)
    report = merge_model(tmp_path / "merged.gguf", model, [(adapter, 1.0)])
    merged = GGUFFile(tmp_path / "merged.gguf")
    assert list(merged.tensors) == list(model.tensors) and len(adapter.pairs) == 2 * 9 + 3
    for name, tensor in merged.tensors.items():
        np.testing.assert_allclose(tensor.to_float32(), expected(model, [(adapter, 1)], name), rtol=1e-5, atol=1e-6)
    assert report.total.tensors == len(adapter.pairs) and report.total.survived == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("tied", [False, True])
def test_magnitudes_are_merged(tmp_path, monkeypatch, tied):
    """Beside a plain adapter, each with a factor; the embedding's columns in two passes, whatever the chunks."""
    monkeypatch.setattr(lorafast.commands.merge, "CHUNK", 7 * 64)
    model, dora = model_and_adapter(tmp_path, type="F32", tied=tied, dora=True)
    _, plain = model_and_adapter(tmp_path, type="F32", tied=tied, targets=["attn_q", "ffn_up"])
    for adapters in ([(dora, 1.0)], [(dora, 0.5), (plain, 2.0)]):
        report = merge_model(tmp_path / "merged.gguf", model, adapters, n_threads=2)
        merged = GGUFFile(tmp_path / "merged.gguf").tensors
        for name in model.tensors:
            np.testing.assert_allclose(merged[name].to_float32(), expected(model, adapters, name), rtol=1e-5, atol=1e-6)
        assert report.total.survived == pytest.approx(1, abs=1e-3)
    if tied:
        np.testing.assert_array_equal(merged["output.weight"].data, model.tensors["token_embd.weight"].data)


def test_magnitudes_of_another_model_are_refused(tmp_path):
    model, dora = model_and_adapter(tmp_path, type="F32", dora=True, targets=["token_embd"])
    dora.magnitudes["token_embd.weight"] = np.ones(384, np.float32)
    with pytest.raises(LoraFastError, match=r"magnitudes of shape \(384,\) for token_embd.weight"):
        merge_model(tmp_path / "merged.gguf", model, [(dora, 1.0)])


@pytest.mark.parametrize("type", list(MERGE_TYPES.values()), ids=lambda type: type.label)
def test_each_type_is_kept_and_rounded_once(tmp_path, type):
    model, adapter = model_and_adapter(tmp_path, type=type.name, targets=["attn_q", "ffn_down"], **OF_256)
    merge_model(tmp_path / "merged.gguf", model, [(adapter, 1.0)], n_threads=2)
    merged = GGUFFile(tmp_path / "merged.gguf")
    for name, tensor in merged.tensors.items():
        assert tensor.type is model.tensors[name].type
        if name not in adapter.pairs:
            np.testing.assert_array_equal(tensor.data, model.tensors[name].data)
        else:
            w = expected(model, [(adapter, 1)], name).astype(np.float32)
            rounding = dequantize(quantize(w, type), type) - w
            got = tensor.to_float32() - w
            assert np.square(got).sum() == pytest.approx(np.square(rounding).sum(), rel=1e-3, abs=1e-6)


def test_q8_0_is_within_the_error_of_requantising(tmp_path):
    """No value is further from base + adapter than half a step of its block, and logits err as with another's
    quantiser."""
    quants = pytest.importorskip("gguf.quants")
    model, adapter = model_and_adapter(tmp_path, type="Q8_0", n_embd=64, targets=MATRICES)
    merge_model(tmp_path / "merged.gguf", model, [(adapter, 1.0)])
    theirs = []
    for name, tensor in GGUFFile(tmp_path / "merged.gguf").tensors.items():
        data = tensor.data
        if name in adapter.pairs:
            wanted = expected(model, [(adapter, 1)], name)
            step = np.repeat(tensor.data.reshape(-1, 34)[:, :2].copy().view("<f2").astype(np.float64), 32, axis=1)
            error = np.abs(tensor.to_float32() - wanted).reshape(step.shape)
            assert (error <= step * (0.5 + 128 * 2.0**-11)).all()       # 2^-11: the step itself is rounded to float16
            data = quants.quantize(wanted.astype(np.float32), quants.GGMLQuantizationType.Q8_0)
        theirs.append(TensorToWrite(name, tensor.type, tensor.shape, np.ascontiguousarray(data)))
    metadata = [(key, model.value_types[key], value) for key, value in model.metadata.items()]
    write_gguf(tmp_path / "theirs.gguf", metadata, theirs)
    write_adapter(FileForm.GGUF, tmp_path / "a.gguf", adapter, BaseModel.from_gguf(model))

    tokens = np.random.default_rng(0).integers(3, 380, 64)
    exact = lorafast.Model.open(model.path, [tmp_path / "a.gguf"]).forward(tokens)
    ours, other = (nmse(lorafast.Model.open(tmp_path / name).forward(tokens), exact)
                   for name in ("merged.gguf", "theirs.gguf"))
    assert 0 < ours < 1.01 * other


def test_metadata_stays(tmp_path):
    model, adapter = model_and_adapter(tmp_path)
    merge_model(tmp_path / "merged.gguf", model, [(adapter, 1.0)])
    merged = GGUFFile(tmp_path / "merged.gguf")
    assert list(merged.metadata) == [*model.metadata, "lorafast.crc32"]
    assert model.value_types.items() <= merged.value_types.items()
    assert all(np.array_equal(merged.metadata[key], value) for key, value in model.metadata.items())


@pytest.mark.parametrize("name, file_type", [("f16", 1), ("q8_0", 7), ("bf16", 32), ("q4_K", 15), ("f32", 0)])
def test_another_type(tmp_path, name, file_type):
    model, adapter = model_and_adapter(tmp_path, type="Q6_K", targets=["attn_q"], **OF_256)
    type = MERGE_TYPES[name.lower()]
    merge_model(tmp_path / "merged.gguf", model, [(adapter, 1.0)], type=type)
    merged = GGUFFile(tmp_path / "merged.gguf")
    assert merged.metadata["general.file_type"] == file_type
    for tensor_name, tensor in merged.tensors.items():
        assert tensor.type is (type if len(tensor.shape) == 2 else GGMLType.F32)
        w = expected(model, [(adapter, 1)], tensor_name)
        assert np.square(tensor.to_float32() - w).sum() < 0.02 * np.square(w).sum()


@pytest.mark.parametrize("type", MERGE_TYPES.values(), ids=MERGE_TYPES)
def test_every_type_is_written(tmp_path, type):
    """Each that `--type` knows, from the command line on: the values are those that its quantiser makes."""
    model, adapter = model_and_adapter(tmp_path, type="F32", targets=["attn_q"], **{**OF_256, "n_ff": 256})
    write_adapter(FileForm.GGUF, tmp_path / "adapter.gguf", adapter, BaseModel.from_gguf(model))
    options = parse(MergeOptions, ["-m", str(model.path), "--lora", str(tmp_path / "adapter.gguf"), "-o",
                                   str(tmp_path / "merged.gguf"), "--type", type.label])
    run_merge(options, [].append)
    merged = GGUFFile(tmp_path / "merged.gguf")
    assert merged.metadata["general.file_type"] == type.weights.file_type
    for name, tensor in merged.tensors.items():
        if len(tensor.shape) == 2:
            w = expected(model, [(adapter, 1)], name).astype(np.float32)
            assert tensor.type is type
            assert nmse(tensor.to_float32(), dequantize(quantize(w, type), type)) < 1e-3


@pytest.mark.parametrize("type, instead", [("IQ2_XS", "q2_k"), ("IQ3_S", "q3_k")])
def test_types_that_take_an_importance_matrix_are_merged_into_others(tmp_path, type, instead):
    model, adapter = model_and_adapter(tmp_path, type=type, targets=["attn_q"], **OF_256)
    with pytest.raises(LoraFastError, match=f"is {type.lower()}, .*--type {instead}, or with --type f16 .*--imatrix"):
        merge_model(tmp_path / "merged.gguf", model, [(adapter, 1.0)])
    merge_model(tmp_path / "merged.gguf", model, [(adapter, 1.0)], type=MERGE_TYPES[instead])
    assert GGUFFile(tmp_path / "merged.gguf").tensors["blk.0.attn_q.weight"].type is MERGE_TYPES[instead]


def test_a_scale_in_a_tensor_of_its_own_is_refused(tmp_path):
    """As NVFP4 files have them: values would be wrong by that factor."""
    model, adapter = model_and_adapter(tmp_path, type="NVFP4", n_ff=128, targets=["attn_q"])
    scale = TensorToWrite("blk.0.attn_q.scale", GGMLType.F32, (1,), np.array([0.5], np.float32))
    tensors = [TensorToWrite(t.name, t.type, t.shape, t.data) for t in model.tensors.values()]
    types = [(key, model.value_types[key] if model.value_types[key][1] else model.value_types[key][0], value)
             for key, value in model.metadata.items()]
    write_gguf(tmp_path / "scaled.gguf", types, [*tensors, scale])
    scaled = GGUFFile(tmp_path / "scaled.gguf")
    with pytest.raises(LoraFastError, match=r"blk.0.attn_q.weight' has a scale in a tensor of its own"):
        merge_model(tmp_path / "merged.gguf", scaled, [(adapter, 1.0)])
    with pytest.raises(LoraFastError, match=r"blk.0.attn_q.scale"):
        read_hparams(scaled)


def test_rows_that_are_no_whole_blocks(tmp_path):
    model, adapter = model_and_adapter(tmp_path, n_embd=64, n_ff=256, targets=["attn_q"])
    report = merge_model(tmp_path / "merged.gguf", model, [(adapter, 1.0)], type=GGMLType.Q4_K)
    merged = GGUFFile(tmp_path / "merged.gguf").tensors
    assert merged["blk.0.ffn_down.weight"].type is GGMLType.Q4_K and merged["blk.0.attn_q.weight"].type is GGMLType.Q5_0
    assert "not a multiple of the 256 values in a block of q4_K; they are stored as q5_0" in report.notes[0]


def test_progress_is_shown(tmp_path, monkeypatch):
    model, adapter = model_and_adapter(tmp_path, targets=["attn_q"])
    monkeypatch.setattr(Meter, "FIRST", 0.0)
    monkeypatch.setattr(Meter, "INTERVAL", 0.0)
    shown = []
    merge_model(tmp_path / "merged.gguf", model, [(adapter, 1.0)], progress=shown.append)
    assert shown[-2:] == [f"writing {tmp_path / 'merged.gguf'}: 100%, 0:00 left", ""]


def test_several_adapters_add_up(tmp_path):
    model, one = model_and_adapter(tmp_path, type="F32", targets=["attn_q", "ffn_up"])
    two = AdapterFile({"blk.1.attn_q.weight": tuple(part[:2] for part in one.pairs["blk.0.attn_q.weight"])})
    adapters = [(one, 0.5), (two, -2.0)]
    merge_model(tmp_path / "merged.gguf", model, adapters)
    for name, tensor in GGUFFile(tmp_path / "merged.gguf").tensors.items():
        np.testing.assert_allclose(tensor.to_float32(), expected(model, adapters, name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", ["token_embd", "output"])
def test_a_tied_model_gets_an_output_matrix_where_it_needs_one(tmp_path, target):
    model = GGUFFile(make_tiny(tmp_path / "model.gguf", type="F32", tied=True))
    rng = np.random.default_rng(0)
    pair = rng.standard_normal((3, 64)).astype(np.float32), rng.standard_normal((3, 384)).astype(np.float32)
    report = merge_model(tmp_path / "merged.gguf", model, [(AdapterFile({f"{target}.weight": pair}), 1.0)])
    merged = GGUFFile(tmp_path / "merged.gguf").tensors
    other = "output" if target == "token_embd" else "token_embd"
    embedding = model.tensors["token_embd.weight"].to_float32()
    np.testing.assert_array_equal(merged[f"{other}.weight"].to_float32(), embedding)
    changed = merged[f"{target}.weight"].to_float32()
    np.testing.assert_allclose(changed, embedding + pair[1].T @ pair[0], rtol=1e-5, atol=1e-5)
    assert "an output.weight of its own, 0.1 MB" in report.notes[0]
    assert not read_hparams(GGUFFile(tmp_path / "merged.gguf")).tied


def test_a_tied_model_stays_tied_otherwise(tmp_path):
    model, adapter = model_and_adapter(tmp_path, tied=True, targets=BLOCK_MATRICES)
    report = merge_model(tmp_path / "merged.gguf", model, [(adapter, 1.0)])
    assert "output.weight" not in GGUFFile(tmp_path / "merged.gguf").tensors and not report.notes


def test_the_same_bytes_for_any_number_of_threads_and_chunks(tmp_path, monkeypatch):
    model, adapter = model_and_adapter(tmp_path, type="Q4_K", **OF_256)
    merge_model(tmp_path / "1.gguf", model, [(adapter, 1.0)], n_threads=1)
    monkeypatch.setattr(lorafast.commands.merge, "CHUNK", 5 * 256)
    merge_model(tmp_path / "3.gguf", model, [(adapter, 1.0)], n_threads=3)
    one, three = ((GGUFFile(tmp_path / f"{n}.gguf")) for n in (1, 3))
    for name, tensor in one.tensors.items():        # the product B·A of other chunks may differ in its last bit
        assert np.mean(tensor.data == three.tensors[name].data) > 0.999


def test_the_report_says_when_an_adapter_is_lost(tmp_path):
    model, _ = model_and_adapter(tmp_path, type="Q4_0")
    for size, survives in ((1e-4, False), (0.5, True)):
        _, adapter = model_and_adapter(tmp_path, type="Q4_0", size=size)
        report = merge_model(tmp_path / "merged.gguf", model, [(adapter, 1.0)])
        assert (report.total.survived > 0.9) is survives
        lines = report_lines(report)
        warned = any(line.startswith("warning: only") and "--type q8_0 or --type f16" in line for line in lines)
        assert warned is not survives
        assert any(line.startswith("q4_0           16") for line in lines)


def test_change_measures():
    change = Change(tensors=1, base=4.0, wanted=1.0, error=0.25, along=0.5)
    change += Change(tensors=1, base=12.0, wanted=3.0, error=0.75, along=2.5)
    assert (change.tensors, change.size, change.survived, change.nmse) == (2, 0.5, 0.75, 0.25)
    assert (Change().size, Change().survived, Change().nmse) == (0, 1, 0)


def test_what_does_not_fit_is_refused(tmp_path):
    model, adapter = model_and_adapter(tmp_path)
    other = GGUFFile(make_tiny(tmp_path / "other.gguf", n_ff=192, n_layer=2))
    with pytest.raises(LoraFastError, match="fits a tensor of shape"):
        merge_model(tmp_path / "merged.gguf", other, [(adapter, 1.0)])
    small = GGUFFile(make_tiny(tmp_path / "small.gguf", n_layer=1))
    with pytest.raises(LoraFastError, match=r"blk.1.attn_q.weight, which .*small.gguf lacks"):
        merge_model(tmp_path / "merged.gguf", small, [(adapter, 1.0)])
    with pytest.raises(UsageError, match="would overwrite the base model"):
        merge_model(model.path, model, [(adapter, 1.0)])
    adapter.pairs["blk.0.attn_q.weight"][0][0, 0] = 1e9
    with pytest.raises(LoraFastError, match=r"blk.0.attn_q.weight' would hold values that are not finite"):
        merge_model(tmp_path / "merged.gguf", model, [(adapter, 1.0)], type=GGMLType.F16)
    adapter.pairs["blk.0.attn_q.weight"][0][0, 0] = np.nan
    with pytest.raises(LoraFastError, match=r"pair for blk.0.attn_q.weight holds values that are not finite"):
        merge_model(tmp_path / "merged.gguf", model, [(adapter, 1.0)])
    assert not (tmp_path / "merged.gguf").exists() and not list(tmp_path.glob(".*"))


def test_a_pair_for_a_tensor_of_three_dimensions_is_refused(tmp_path):
    model, adapter = model_and_adapter(tmp_path)
    tensors = [TensorToWrite(name, each.type, (2, 32, 64) if name == "blk.0.attn_q.weight" else each.shape, each.data)
               for name, each in model.tensors.items()]
    write_gguf(tmp_path / "three.gguf", [(key, model.value_types[key], value) for key, value in model.metadata.items()],
               tensors)
    with pytest.raises(LoraFastError, match=r"'blk.0.attn_q.weight' has shape \(2, 32, 64\)"):
        merge_model(tmp_path / "merged.gguf", GGUFFile(tmp_path / "three.gguf"), [(adapter, 1.0)])


def test_a_merged_model_carries_a_checksum(tmp_path):
    model, adapter = model_and_adapter(tmp_path)
    merge_model(tmp_path / "merged.gguf", model, [(adapter, 1.0)])
    merged = GGUFFile(tmp_path / "merged.gguf")
    merged.refuse_damage()
    merge_model(tmp_path / "again.gguf", merged, [(adapter, 1.0)])
    GGUFFile(tmp_path / "again.gguf").refuse_damage()
    data = bytearray((tmp_path / "merged.gguf").read_bytes())
    data[merged.tensors["blk.1.ffn_up.weight"].offset] ^= 1
    (tmp_path / "merged.gguf").write_bytes(data)
    with pytest.raises(FormatError, match="is damaged"):
        list(inspect_file(str(tmp_path / "merged.gguf")))


def test_the_command(tmp_path):
    model, adapter = model_and_adapter(tmp_path, targets=BLOCK_MATRICES)
    write_adapter(FileForm.PEFT, tmp_path / "peft", adapter, BaseModel.from_gguf(model))
    lines = []
    options = parse(MergeOptions, ["-m", str(model.path), "--lora", f"{tmp_path / 'peft'}:0.5", "-o",
                                   str(tmp_path / "merged.gguf"), "--type", "F32"])
    assert run_merge(options, lines.append) == 0
    got = GGUFFile(tmp_path / "merged.gguf").tensors["blk.1.attn_k.weight"].to_float32()
    np.testing.assert_allclose(got, expected(model, [(adapter, 0.5)], "blk.1.attn_k.weight"), rtol=1e-4, atol=1e-5)
    assert lines[-1] == f"wrote {tmp_path / 'merged.gguf'}, {(tmp_path / 'merged.gguf').stat().st_size / 2**20:.1f} MB"


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_llama_cpp_runs_the_merged_model(tmp_path, tied):
    """On a tied model with a pair for token_embd, which no GGUF adapter can carry: the merged model can."""
    pytest.importorskip("llama_cpp")
    targets = (*BLOCK_MATRICES, "token_embd") if tied else BLOCK_MATRICES
    model, adapter = model_and_adapter(tmp_path, type="F32", tied=tied, targets=targets, size=0.1)
    merge_model(tmp_path / "merged.gguf", model, [(adapter, 1.0)])
    tokens = [1, 300, 17, 263, 5, 101]
    merged = llama_cpp_logits(tmp_path / "merged.gguf", None, tokens, tmp_path)
    if tied:
        from lorafast.network.decoder import Decoder
        from lorafast.network.network import Network
        hparams = read_hparams(model)
        pairs = adapter.to_adapter(hparams.tensor_shapes())
        network = Network(model, hparams, 16)
        wanted = Decoder(network, pairs, 16, 1).append(np.array(tokens, np.int32))
        merged = merged[-1]
    else:
        write_adapter(FileForm.GGUF, tmp_path / "adapter.gguf", adapter, BaseModel.from_gguf(model))
        wanted = llama_cpp_logits(model.path, tmp_path / "adapter.gguf", tokens, tmp_path)
    # llama.cpp keeps K and V in float16: two ways to the same values differ by about 1e-3 of the logits' size.
    assert np.mean((merged - wanted) ** 2) / np.var(wanted) < 1e-4
