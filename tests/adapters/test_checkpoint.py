"""Checkpoints: the original's bytes, the order of the moments, exact resuming, and what is refused in which words."""
import re
from dataclasses import replace

import numpy as np
import pytest
from golden_files import unpack
from make_models import make_tiny

from lorafast.adapters import AdapterFile, BaseModel, write_adapter
from lorafast.adapters.checkpoint import Geometry, TrainState, read_checkpoint, write_checkpoint
from lorafast.adapters.moments import ORDERS
from lorafast.data.batches import SamplerState
from lorafast.errors import FormatError, LoraFastError
from lorafast.gguf.file_form import FileForm
from lorafast.gguf.reader import GGUFFile
from lorafast.gguf.roles import BLOCK_MATRICES
from lorafast.gguf.types import GGUFValueType
from lorafast.gguf.writer import TensorToWrite, write_gguf
from lorafast.network.lora import Adapter, Moments, default_ranks, specs_for
from lorafast.rng import MT19937
from tests.network.test_lora import llama_shapes

TINYMHA = llama_shapes(64, 160, 2, 32000)
SMALL = llama_shapes(8, 24, 2, 40)
STRING = GGUFValueType.STRING
SMALL_GEOMETRY = Geometry(16, 8, 24, 2, 2, 2, 4, 1e-5, 10000.0, 1.0)


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    return {n: unpack(f"tinymha-seed1-{n}.gguf", folder) for n in (10, 20)}


def load(path, shapes=TINYMHA, past=0):
    """The checkpoint, and an adapter and state resumed from it."""
    checkpoint = read_checkpoint(path)
    adapter = Adapter(specs_for(shapes, checkpoint.ranks), 4, 4)
    checkpoint.load_adapter(adapter, checkpoint.geometry)
    moments = Moments(adapter)
    return checkpoint, adapter, moments, checkpoint.load_training_state(adapter, moments, past)


def small_adapter(seed=0, targets=None, shapes=SMALL, dora=False):
    """Every parameter random."""
    adapter = Adapter(specs_for(shapes, default_ranks(3), targets, dora=dora), 3, 3)
    rng = np.random.default_rng(seed)
    adapter.params[:] = rng.standard_normal(adapter.n_params)
    return adapter


def moments_of(adapter):
    """Some that follow from the parameters, second ones positive."""
    moments = Moments(adapter)
    moments.m[:], moments.v[:] = adapter.params[::-1], np.abs(adapter.params)
    return moments


def rewrite(source, target, metadata=(), types=(), drop=()):
    """A copy of a GGUF file with changed metadata and types of it (by key), without the checksum and what `drop`
    names."""
    drop = [*drop, "lorafast.crc32"]
    file = GGUFFile(source)
    values, value_types = file.metadata | dict(metadata), file.value_types | dict(types)
    write_gguf(target, [(key, value_types[key], value) for key, value in values.items() if key not in drop],
               [TensorToWrite(t.name, t.type, t.shape, t.data) for t in file.tensors.values() if t.name not in drop])


@pytest.mark.parametrize("iteration", [10, 20])
def test_the_originals_checkpoint_is_written_back_byte_for_byte(golden, tmp_path, iteration):
    checkpoint, adapter, moments, state = load(golden[iteration])
    assert state.iteration == iteration and state.tokens == iteration * 256
    assert state.sampler.next_sample == state.sampler.samples_used == iteration * 4
    assert state.sampler.samples_hash == 2383937669184073739 and state.sampler.sample_count == 28849
    assert state.sampler.rng_state == MT19937(1).state_text()
    assert checkpoint.alpha is None and not checkpoint.extras
    write_checkpoint(tmp_path / "again.gguf", checkpoint.geometry, adapter, moments, state)
    assert (tmp_path / "again.gguf").read_bytes() == golden[iteration].read_bytes()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("targets, shapes, dora", [
    (None, SMALL, False), (BLOCK_MATRICES, SMALL, False), (["blk.1.*"], SMALL, False),
    (None, llama_shapes(8, 24, 2, 40, n_embd_gqa=4, tied=True), False),
    ((*BLOCK_MATRICES, "token_embd", "output"), SMALL, True)])
def test_everything_comes_back(tmp_path, order, targets, shapes, dora):
    adapter = small_adapter(targets=targets, shapes=shapes, dora=dora)
    sampler = SamplerState(2**63 + 5, MT19937(3).state_text(), 100, 12, 3, 312)
    state = TrainState(7, 448, sampler, np.float32([3, 2, 1]), 1.5, 2.5, 4, order)
    extras = {"loss_before": 2.25, "shuffled": True, "note": "text", "best": -3, "list": ["a", "b"],
              "window": np.float64([1, 2, 3])}
    write_checkpoint(tmp_path / "c.gguf", SMALL_GEOMETRY, adapter, moments_of(adapter), state, extras)
    checkpoint = read_checkpoint(tmp_path / "c.gguf")
    again = Adapter(adapter.specs, 3, 3)
    checkpoint.load_adapter(again, SMALL_GEOMETRY)
    moments, stored = Moments(again), moments_of(adapter)
    state_again = checkpoint.load_training_state(again, moments, 3)
    for got, wanted in ((again.params, adapter.params), (moments.m, stored.m), (moments.v, stored.v)):
        np.testing.assert_array_equal(got, wanted)
    np.testing.assert_array_equal(state_again.past_losses, state.past_losses)
    assert {**vars(state_again), "past_losses": None} == {**vars(state), "past_losses": None}
    assert (checkpoint.alpha, checkpoint.r, checkpoint.moments_evidence) == (3, 3, "recorded in the file")
    np.testing.assert_array_equal(checkpoint.extras.pop("window"), extras.pop("window"))
    assert checkpoint.extras == extras


def test_own_keys_follow_the_originals(tmp_path):
    adapter, state = small_adapter(), TrainState()
    write_checkpoint(tmp_path / "plain.gguf", SMALL_GEOMETRY, adapter, moments_of(adapter), state)
    write_checkpoint(tmp_path / "own.gguf", SMALL_GEOMETRY, adapter, moments_of(adapter), state, {})
    plain, own = GGUFFile(tmp_path / "plain.gguf"), GGUFFile(tmp_path / "own.gguf")
    assert len(plain.metadata) == 43
    assert list(own.metadata)[43:] == ["lorafast.alpha", "lorafast.r", "lorafast.moments_order", "lorafast.crc32"]
    assert list(own.metadata)[:43] == list(plain.metadata)


def test_magnitudes_add_a_key_and_a_tensor_each(tmp_path):
    adapter = small_adapter(targets=["attn_q"], dora=True)
    write_checkpoint(tmp_path / "c.gguf", SMALL_GEOMETRY, adapter, moments_of(adapter), TrainState(), {})
    file = GGUFFile(tmp_path / "c.gguf")
    assert list(file.metadata)[-5:-1] == ["lorafast.alpha", "lorafast.r", "lorafast.moments_order", "lorafast.dora"]
    assert list(file.tensors)[:3] == [f"blk.0.attn_q.weight.lora_{part}" for part in ("a", "b", "magnitude")]
    m = file.tensors["optimizer.adam.first_moments"].to_float32()
    np.testing.assert_array_equal(m[-16:], moments_of(adapter).m[-16:])
    rewrite(tmp_path / "c.gguf", tmp_path / "a.gguf", drop=["blk.1.attn_q.weight.lora_magnitude"])
    rewrite(tmp_path / "c.gguf", tmp_path / "b.gguf", drop=["lorafast.dora"])
    assert "lacks tensor 'blk.1.attn_q.weight.lora_magnitude'" in refusal(read_checkpoint, tmp_path / "a.gguf")
    assert "lora_magnitude', and lorafast.dora is False" in refusal(read_checkpoint, tmp_path / "b.gguf")


def test_ranks_that_differ_within_a_role(tmp_path):
    specs = [replace(spec, rank=1 + i % 3) for i, spec in enumerate(specs_for(SMALL, default_ranks(3), ("attn",)))]
    adapter = Adapter([spec for spec in specs if spec.name != "blk.0.attn_k.weight"], 3, 3)
    adapter.params[:] = np.random.default_rng(0).standard_normal(adapter.n_params)
    path = tmp_path / "c.gguf"
    write_checkpoint(path, SMALL_GEOMETRY, adapter, moments_of(adapter), TrainState(), {})
    checkpoint = read_checkpoint(path)
    assert [(name, len(a)) for name, (a, _) in checkpoint.pairs.items()] == [(s.name, s.rank) for s in adapter.specs]
    assert "ranks" not in checkpoint.extras
    again = Adapter(adapter.specs, 3, 3)
    checkpoint.load_adapter(again, SMALL_GEOMETRY)
    assert np.array_equal(again.params, adapter.params)
    ranks = GGUFFile(path).metadata["lorafast.ranks"]
    for wrong, message in ((ranks[:-1], "one whole number for each of 7 pairs"), (ranks[::-1], "rank . by its key")):
        rewrite(path, tmp_path / "changed.gguf", {"lorafast.ranks": wrong.copy()})
        with pytest.raises(FormatError, match=message):
            read_checkpoint(tmp_path / "changed.gguf")


def test_dora_and_lora_do_not_go_on_from_each_other(tmp_path):
    for dora, message in ((True, "was trained with DoRA, this run is without; pass --dora"),
                          (False, "was trained without DoRA, this run is with; leave out --dora")):
        one, other = (small_adapter(targets=["attn_q"], dora=flag) for flag in (dora, not dora))
        write_checkpoint(tmp_path / "c.gguf", SMALL_GEOMETRY, one, moments_of(one), TrainState(), {})
        assert message in refusal(read_checkpoint(tmp_path / "c.gguf").load_adapter, other, SMALL_GEOMETRY)


def refusal(action, *args, **kwargs):
    with pytest.raises(LoraFastError) as caught:
        action(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_another_run_is_refused(golden, tmp_path):
    path = golden[10]
    checkpoint = read_checkpoint(path)
    geometry = checkpoint.geometry

    def load_with(shapes=TINYMHA, r=4, geometry=geometry, targets=None, past=0, ranks=None):
        adapter = Adapter(specs_for(shapes, ranks or default_ranks(r), targets), r, r)
        checkpoint.load_adapter(adapter, geometry)
        checkpoint.load_training_state(adapter, Moments(adapter), past)

    other = Geometry(**(vars(geometry) | {"n_ff": 192}))
    assert re.search(r"tinymha-seed1-10.gguf.*n_ff is 160, the base model's 192.*--model-base",
                     refusal(load_with, geometry=other))
    message = refusal(load_with, ranks=default_ranks(4) | {"attn_q": 8})
    assert re.search(r"training.lora.rank.attn_q is 4, this run has 8; pass --rank-wq 4", message)
    assert re.search(r"rank.token_embd is 4, this run has 0", refusal(load_with, targets=BLOCK_MATRICES))
    shapes = {name: shape for name, shape in TINYMHA.items() if name != "blk.1.attn_v.weight"}
    assert re.search(r"a pair for blk.1.attn_v.weight.*--targets", refusal(load_with, shapes=shapes))
    assert re.search(r"convergence_past_count is 0, this run has --opt-past 5; pass --opt-past 0",
                     refusal(load_with, past=5))
    shapes = TINYMHA | {"output.weight": (32001, 64)}
    assert re.search(r"output.weight.lora_b has shape \(32000, 4\).*\(32001, 4\)", refusal(load_with, shapes=shapes))


def test_another_scale_is_refused(tmp_path):
    write_checkpoint(tmp_path / "c.gguf", SMALL_GEOMETRY, small_adapter(), moments_of(small_adapter()), TrainState(),
                     {})
    checkpoint = read_checkpoint(tmp_path / "c.gguf")
    adapter = Adapter(specs_for(SMALL, checkpoint.ranks), 6, 3)
    assert "--lora-r 3 --lora-alpha 3" in refusal(checkpoint.load_adapter, adapter, SMALL_GEOMETRY)
    write_checkpoint(tmp_path / "original.gguf", SMALL_GEOMETRY, small_adapter(), moments_of(small_adapter()),
                     TrainState())
    checkpoint = read_checkpoint(tmp_path / "original.gguf")
    assert re.search("scale 1.*6 / 3; pass --lora-alpha 3", refusal(checkpoint.load_adapter, adapter, SMALL_GEOMETRY))


@pytest.mark.parametrize("store", ["params", "m", "v"])
def test_values_that_are_not_finite_are_refused(tmp_path, store):
    adapter = small_adapter()
    moments = moments_of(adapter)
    {"params": adapter.params, "m": moments.m, "v": moments.v}[store][11] = np.nan
    write_checkpoint(tmp_path / "c.gguf", SMALL_GEOMETRY, adapter, moments, TrainState(), {})
    assert "not finite" in refusal(load, tmp_path / "c.gguf", SMALL)


@pytest.mark.parametrize("change, message", [
    ({"metadata": {"training.type": "train_model"}}, "training.type is 'train_model'"),
    ({"metadata": {"general.file_type": 1}}, "general.file_type is 1"),
    ({"metadata": {"training.file_version": 2}}, "training.file_version is 2"),
    ({"metadata": {"optimizer.file_version": 1}}, "optimizer.file_version is 1"),
    ({"metadata": {"optimizer.type": "lbfgs"}}, "optimiser 'lbfgs', but only 'adam' is supported"),
    ({"metadata": {"optimizer.parameter_count": 5}}, "optimizer.parameter_count is 5"),
    ({"metadata": {"training.lora.rank.attn_k": 2}}, "'blk.0.attn_k.weight.lora_a' has shape .* rank 2 by its key"),
    ({"drop": ["training.lora.rank.ffn_up"]}, "lacks the key training.lora.rank.ffn_up"),
    ({"drop": ["optimizer.adam.best_loss"]}, "lacks the key optimizer.adam.best_loss"),
    ({"drop": ["blk.1.ffn_up.weight.lora_b"]}, "lacks tensor 'blk.1.ffn_up.weight.lora_b'"),
    ({"drop": ["output.weight.lora_a", "output.weight.lora_b"]}, "rank.output is 3, but there is no such tensor"),
    ({"metadata": {"training.sample_count": "many"}, "types": {"training.sample_count": STRING}},
     "training.sample_count is 'many', but should be of type int"),
    ({"metadata": {"lorafast.moments_order": np.array([0, 0], np.uint32)},
      "types": {"lorafast.moments_order": (GGUFValueType.ARRAY, GGUFValueType.UINT32)}},
     "lorafast.moments_order is array"),
    ({"drop": ["optimizer.adam.second_moments"]}, "lacks tensor 'optimizer.adam.second_moments'"),
])
def test_a_broken_checkpoint_is_refused(tmp_path, change, message):
    write_checkpoint(tmp_path / "c.gguf", SMALL_GEOMETRY, small_adapter(), moments_of(small_adapter()),
                     TrainState(sampler=SamplerState()))
    rewrite(tmp_path / "c.gguf", tmp_path / "changed.gguf", **change)
    with pytest.raises(FormatError, match=message) as caught:
        read_checkpoint(tmp_path / "changed.gguf")
    assert "changed.gguf" in str(caught.value)


def test_a_truncated_checkpoint_is_refused(tmp_path):
    path = tmp_path / "c.gguf"
    write_checkpoint(path, SMALL_GEOMETRY, small_adapter(), moments_of(small_adapter()), TrainState())
    whole = path.read_bytes()
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 64):
        path.write_bytes(whole[:size])
        assert "c.gguf" in refusal(read_checkpoint, path)


def test_other_files_are_named_for_what_they_are(tmp_path):
    base = BaseModel("llama", 2, 2, 2, tied=False)
    adapter = AdapterFile.of(small_adapter(targets=BLOCK_MATRICES))
    for form, name in ((FileForm.GGLA, "a.bin"), (FileForm.GGUF, "a.gguf"), (FileForm.PEFT, "folder")):
        write_adapter(form, tmp_path / name, adapter, base)
    make_tiny(tmp_path / "model.gguf")
    for name, what in (("a.bin", "a ggla adapter, not a checkpoint"), ("a.gguf", "a GGUF adapter, not"),
                       ("folder", "a PEFT adapter, not"), ("model.gguf", "a base model, not.*--model-base")):
        assert re.search(what, refusal(read_checkpoint, tmp_path / name))
    (tmp_path / "text.gguf").write_bytes(b"To be, or not to be")
    assert "begins with b'To b'" in refusal(read_checkpoint, tmp_path / "text.gguf")
    assert "No such file" in refusal(read_checkpoint, tmp_path / "missing.gguf")


def test_version_0_has_no_epochs_and_no_position(tmp_path):
    adapter = small_adapter()
    state = TrainState(5, 320, SamplerState(1, "x", 2, 3, 4, 20))
    write_checkpoint(tmp_path / "c.gguf", SMALL_GEOMETRY, adapter, moments_of(adapter), state)
    shuffle = [f"training.shuffle.{key}" for key in ("samples_hash", "rng_state", "sample_count", "next_sample")]
    rewrite(tmp_path / "c.gguf", tmp_path / "old.gguf", {"training.file_version": 0},
            drop=["training.epoch_count", *shuffle])
    state = read_checkpoint(tmp_path / "old.gguf").state
    assert (state.iteration, state.tokens, state.sampler) == (5, 320, SamplerState(samples_used=20))


def test_without_training_state_only_the_adapter_loads(tmp_path):
    adapter = small_adapter()
    write_checkpoint(tmp_path / "c.gguf", SMALL_GEOMETRY, adapter, moments_of(adapter), TrainState())
    file = GGUFFile(tmp_path / "c.gguf")
    state = [key for key in file.metadata if key.startswith(("training.", "optimizer.")) and "rank" not in key]
    moments = ["optimizer.adam.first_moments", "optimizer.adam.second_moments"]
    rewrite(tmp_path / "c.gguf", tmp_path / "bare.gguf", drop=[*state, *moments])
    checkpoint = read_checkpoint(tmp_path / "bare.gguf")
    again = Adapter(adapter.specs, 3, 3)
    checkpoint.load_adapter(again, SMALL_GEOMETRY)
    np.testing.assert_array_equal(again.params, adapter.params)
    assert "--only-write-lora" in refusal(checkpoint.load_training_state, again, Moments(again), 0)


@pytest.mark.slow
def test_size_of_the_7b_runs_checkpoint(tmp_path):
    adapter = Adapter(specs_for(llama_shapes(4096, 11008, 32, 32000), default_ranks(4)), 4, 4)
    geometry = Geometry(64, 4096, 11008, 32, 32, 32, 128, 1e-5, 10000.0, 1.0)
    rng_state = MT19937(1720093158).state_text()
    state = TrainState(30, 7680, SamplerState(2383937669184055177, rng_state, 27520, 120, 0, 120))
    write_checkpoint(tmp_path / "7b.gguf", geometry, adapter, moments_of(adapter), state)
    assert (tmp_path / "7b.gguf").stat().st_size == 126_641_472
