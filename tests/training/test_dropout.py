"""Dropout of inputs: what a pair sees, what it learns, and what that follows from."""
import numpy as np
import pytest

from lorafast.network.lora import Adapter, Gradients, default_ranks, specs_for
from lorafast.training.dropout import Dropout

SHAPES = {"token_embd.weight": (40, 500), "blk.0.attn_norm.weight": (500,), "blk.0.attn_q.weight": (30, 500),
          "blk.0.ffn_down.weight": (500, 700)}


@pytest.fixture
def adapter() -> Adapter:
    adapter = Adapter(specs_for(SHAPES, default_ranks(3)), 3, 3)
    adapter.params[:] = np.random.default_rng(0).standard_normal(adapter.n_params)
    return adapter


def test_inputs_are_dropped_and_the_others_scaled(adapter):
    before = adapter.params.copy()
    dropout = Dropout(adapter, 0.25, seed=5)
    dropout.draw(3)
    seen = dropout.thinned
    assert np.array_equal(adapter.params, before)
    for name in ("blk.0.attn_q.weight", "blk.0.ffn_down.weight"):
        dropped = (seen.A(name) == 0).all(axis=0)
        assert 0.18 < dropped.mean() < 0.32
        np.testing.assert_allclose(seen.A(name)[:, ~dropped], adapter.A(name)[:, ~dropped] / 0.75, rtol=1e-6)
        assert np.array_equal(seen.B(name), adapter.B(name))
    for name in ("token_embd.weight", "blk.0.attn_norm.weight"):
        assert all(map(np.array_equal, seen.pairs[name], adapter.pairs[name]))
    dropout.restore()
    assert np.array_equal(seen.params, before)


def test_gradient_is_that_of_the_mask(adapter):
    """L = <G, A · mask>, so dA = G · mask."""
    dropout = Dropout(adapter, 0.5, seed=5)
    dropout.draw(0)
    gradients = Gradients(adapter)
    gradients.flat.fill(1)
    dropout.backward(gradients)
    for name in ("blk.0.attn_q.weight", "blk.0.ffn_down.weight"):
        mask = dropout.thinned.A(name) / adapter.A(name)
        np.testing.assert_allclose(gradients.dA(name), mask, rtol=1e-6)
        assert set(np.unique(gradients.dA(name))) == {0, 2} and (gradients.dB(name) == 1).all()


def test_masks_follow_from_seed_and_iteration_alone(adapter):
    def mask(seed: int, *iterations: int) -> np.ndarray:
        dropout = Dropout(adapter, 0.5, seed)
        for iteration in iterations:
            dropout.draw(iteration)
        return dropout.thinned.A("blk.0.ffn_down.weight") == 0

    assert np.array_equal(mask(1, 7), mask(1, 2, 3, 7))
    assert not np.array_equal(mask(1, 7), mask(1, 8)) and not np.array_equal(mask(1, 7), mask(2, 7))
