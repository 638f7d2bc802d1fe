"""Adapted tensors, their order, the flat store, the original's initialisation."""
import numpy as np
import pytest
from golden_files import unpack

from lorafast.adapters.checkpoint import read_checkpoint
from lorafast.errors import UsageError
from lorafast.gguf.roles import BLOCK_MATRICES
from lorafast.network.lora import Adapter, Gradients, Moments, default_ranks, specs_for


def llama_shapes(n_embd, n_ff, n_layer, n_vocab, n_embd_gqa=None, tied=False):
    """Shapes of a llama model's tensors, in an order that is not the adapter's."""
    kv = n_embd_gqa or n_embd
    shapes = {}
    for layer in reversed(range(n_layer)):
        shapes |= {f"blk.{layer}.{role}.weight": shape for role, shape in {
            "ffn_up": (n_ff, n_embd), "ffn_down": (n_embd, n_ff), "ffn_gate": (n_ff, n_embd), "ffn_norm": (n_embd,),
            "attn_output": (n_embd, n_embd), "attn_v": (kv, n_embd), "attn_k": (kv, n_embd), "attn_q": (n_embd, n_embd),
            "attn_norm": (n_embd,)}.items()}
    shapes |= {"output_norm.weight": (n_embd,), "token_embd.weight": (n_vocab, n_embd), "rope_freqs.weight": (8,)}
    return shapes if tied else shapes | {"output.weight": (n_vocab, n_embd)}


def test_full_set_in_the_originals_order():
    specs = specs_for(llama_shapes(8, 24, 2, 40), default_ranks(4))
    layer = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_down", "ffn_up"]
    assert [spec.name.removesuffix(".weight") for spec in specs] == [
        "token_embd", "output_norm", "output", *(f"blk.{i}.{role}" for i in range(2) for role in layer)]
    by_name = {spec.name: spec for spec in specs}
    down, norm, embedding = (by_name[f"{name}.weight"] for name in ("blk.1.ffn_down", "blk.0.attn_norm", "token_embd"))
    assert (down.kind, down.n_in, down.n_out, down.rank) == ("linear", 24, 8, 4)
    assert (norm.kind, norm.n_in, norm.n_out, norm.rank) == ("norm", 8, 1, 1)
    assert (embedding.kind, embedding.n_in, embedding.n_out, embedding.rank) == ("embedding", 8, 40, 4)


def test_parameter_count_of_the_7b_run():
    specs = specs_for(llama_shapes(4096, 11008, 32, 32000), default_ranks(4))
    assert len(specs) == 291 and Adapter(specs, 4, 4).n_params == 10_549_313


def test_a_tied_model_has_no_output_pair():
    shapes = llama_shapes(8, 24, 1, 40, tied=True)
    assert "output.weight" not in {spec.name for spec in specs_for(shapes, default_ranks(4))}
    with pytest.raises(UsageError, match="tied"):
        specs_for(shapes, default_ranks(4), ["output"])


@pytest.mark.parametrize("targets, expected", [
    (["attn_q"], ["blk.0.attn_q", "blk.1.attn_q"]),
    (["blk.1.ffn_*"], ["blk.1.ffn_norm", "blk.1.ffn_gate", "blk.1.ffn_down", "blk.1.ffn_up"]),
    (["output"], ["output"]),
    (["blk.?.attn_v", "blk.0.attn_v.weight"], ["blk.0.attn_v", "blk.1.attn_v"]),
])
def test_targets(targets, expected):
    specs = specs_for(llama_shapes(8, 24, 2, 40), default_ranks(4), targets)
    assert [spec.name.removesuffix(".weight") for spec in specs] == expected


def test_rank_0_leaves_a_role_out_and_targets_that_fit_nothing_are_refused():
    shapes = llama_shapes(8, 24, 2, 40)
    ranks = default_ranks(4) | {"attn_k": 0}
    assert "blk.0.attn_k.weight" not in {spec.name for spec in specs_for(shapes, ranks)}
    with pytest.raises(UsageError, match="every rank is 0"):
        specs_for(shapes, ranks, ["attn_k"])
    with pytest.raises(UsageError, match=r"'attn_w' fits no tensor.*attn_q"):
        specs_for(shapes, ranks, ["attn_q", "attn_w"])
    with pytest.raises(UsageError, match="-1"):
        specs_for(shapes, ranks | {"attn_q": -1})


def test_views_cover_the_store_once_with_the_norms_b_at_the_end():
    adapter = Adapter(specs_for(llama_shapes(8, 24, 2, 40, n_embd_gqa=4), default_ranks(3)), 6, 3)
    gradients, moments = Gradients(adapter), Moments(adapter)
    for store in (adapter.params, gradients.flat, moments.m, moments.v):
        assert store.shape == (adapter.n_params,) and store.dtype == np.float32 and not store.any()
        assert store.ctypes.data % 64 == 0
    for value, (a, b) in enumerate(adapter.pairs.values()):
        a += 2 * value + 1
        b += 2 * value + 2
    assert adapter.params.all()                                    # every element is seen ...
    sizes = {1 + i: part.size for i, part in enumerate(part for pair in adapter.pairs.values() for part in pair)}
    assert {int(v): int(n) for v, n in zip(*np.unique(adapter.params, return_counts=True))} == sizes  # ... by one view
    norms = [i for i, spec in enumerate(adapter.specs) if spec.kind == "norm"]
    assert adapter.params[-len(norms):].tolist() == [2 * i + 2 for i in norms]
    gradients.dB("blk.1.attn_k.weight")[2, 3] = 5
    assert gradients.dB("blk.1.attn_k.weight").shape == (3, 4) and gradients.flat.sum() == 5
    assert adapter.scale == 2


def test_which_parameters_decay():
    specs = specs_for(llama_shapes(8, 24, 2, 40), default_ranks(4) | {"output_norm": 3})
    adapter = Adapter(specs, 4, 4)
    assert adapter.n_decayed(1) == adapter.n_params
    assert adapter.n_decayed(2) == adapter.n_params - 3 - 4        # B of output_norm, of two norms in two layers
    assert adapter.n_decayed(3) == 0


def test_magnitudes_stand_at_the_end_and_never_decay():
    shapes = llama_shapes(8, 24, 2, 40, n_embd_gqa=4)
    adapter = Adapter(specs_for(shapes, default_ranks(3), dora=True), 6, 3)
    plain = Adapter(specs_for(shapes, default_ranks(3)), 6, 3)
    assert {name: len(m) for name, m in adapter.magnitudes.items()} == {
        name: shape[name == "token_embd.weight"] for name, shape in shapes.items() if len(shape) == 2}
    assert adapter.n_params - plain.n_params == adapter.n_magnitudes == sum(map(len, adapter.magnitudes.values()))
    for value, m in enumerate(adapter.magnitudes.values(), 1):
        m += value
    assert not adapter.params[:plain.n_params].any() and (np.diff(adapter.params[plain.n_params:]) >= 0).all()
    gradients = Gradients(adapter)
    gradients.magnitudes["blk.1.attn_k.weight"][3] = 5
    assert gradients.flat.sum() == 5
    adapter.initialise(1), plain.initialise(1)
    np.testing.assert_array_equal(adapter.params[:plain.n_params], plain.params)      # the pairs lie as ever
    assert [adapter.n_decayed(n) for n in (0, 1, 2, 3)] == [plain.n_decayed(n) for n in (0, 1, 2, 3)]


def test_initialisation_is_the_originals(tmp_path):
    """After 10 steps no A of the original's run can be further from its start than the sum of the learning rates."""
    checkpoint = read_checkpoint(unpack("tinymha-seed1-10.gguf", tmp_path))
    adapter = Adapter(specs_for(llama_shapes(64, 160, 2, 32000), default_ranks(4)), 4, 4)
    adapter.initialise(1)
    learning_rates = 1e-3 * (0 + .2 + .4 + .6 + .8 + 5)            # warm-up of 5 steps, then close to 1
    decay = 1e-4 * 7
    for spec in adapter.specs:
        a = adapter.A(spec.name)
        assert not adapter.B(spec.name).any()
        assert np.abs(a).max() == np.float32(1 / np.sqrt(np.float32(spec.rank + spec.n_in)))   # clamped, not resampled
        assert np.abs(a - checkpoint.pairs[spec.name][0]).max() < learning_rates + decay * np.abs(a).max()


def test_initialisation_of_a_subset_follows_the_same_order():
    specs = specs_for(llama_shapes(8, 24, 2, 40), default_ranks(4), BLOCK_MATRICES)
    first, again, other = (Adapter(specs, 4, 4) for _ in range(3))
    first.initialise(7), again.initialise(7), other.initialise(8)
    assert (first.params == again.params).all() and not (first.params == other.params).all()
    # The first draws of seed 42 that C++ gives, for the first A: rank fastest.
    first.initialise(42)
    z = np.float32([1, -0.516964138, 0.86963594, 0.721332669, 1, 1, -0.187124684, -1])
    np.testing.assert_allclose(first.A("blk.0.attn_q.weight").T.ravel()[:8], z / np.sqrt(12), rtol=1e-6)
