"""The order of the moments in a checkpoint: the original's two, and how a reader tells them apart."""
import numpy as np
import pytest
from golden_files import unpack

from lorafast.adapters.checkpoint import read_checkpoint
from lorafast.adapters.moments import (
    LEFT_TO_RIGHT,
    ORDERS,
    RIGHT_TO_LEFT,
    agreement,
    chunks,
    parameter_order,
    pieces,
    recognise,
)
from lorafast.gguf.roles import BLOCK_MATRICES
from lorafast.network.lora import Adapter, Gradients, Moments, default_ranks, specs_for
from tests.network.test_lora import llama_shapes

SMALL = llama_shapes(8, 24, 2, 40)


def flat(moments, order):
    return np.concatenate([chunk.ravel() for chunk in chunks(moments, order)])


def sequence(names, order):
    return " ".join(f"{name.removesuffix('.weight').removeprefix('blk.')}.{part}"
                    for name, part in parameter_order(names, order))


def test_the_two_orders_are_the_originals():
    names = [spec.name for spec in specs_for(llama_shapes(8, 24, 1, 40), default_ranks(4))]
    assert sequence(names, LEFT_TO_RIGHT) == (
        "output.A output.B output_norm.A output_norm.B 0.ffn_down.A 0.ffn_down.B 0.ffn_gate.A 0.ffn_gate.B "
        "0.ffn_norm.A 0.ffn_norm.B 0.attn_output.A 0.attn_output.B 0.attn_norm.A 0.attn_norm.B "
        "token_embd.A token_embd.B 0.attn_v.A 0.attn_v.B 0.attn_k.A 0.attn_k.B 0.attn_q.A 0.attn_q.B "
        "0.ffn_up.A 0.ffn_up.B")
    assert sequence(names, RIGHT_TO_LEFT) == (
        "token_embd.B token_embd.A 0.attn_norm.B 0.attn_norm.A 0.attn_q.B 0.attn_q.A 0.attn_k.B 0.attn_k.A "
        "0.attn_v.B 0.attn_v.A 0.attn_output.B 0.attn_output.A 0.ffn_norm.B 0.ffn_norm.A 0.ffn_up.B 0.ffn_up.A "
        "0.ffn_gate.B 0.ffn_gate.A 0.ffn_down.B 0.ffn_down.A output_norm.B output_norm.A output.B output.A")


def test_layers_run_down_and_then_up_or_only_up():
    names = [f"blk.{layer}.{role}.weight" for layer in (0, 1, 10) for role in ("attn_q", "ffn_down")]
    assert sequence(names, LEFT_TO_RIGHT) == (
        "10.ffn_down.A 10.ffn_down.B 1.ffn_down.A 1.ffn_down.B 0.ffn_down.A 0.ffn_down.B "
        "0.attn_q.A 0.attn_q.B 1.attn_q.A 1.attn_q.B 10.attn_q.A 10.attn_q.B")
    assert sequence(names, RIGHT_TO_LEFT).startswith("0.attn_q.B 0.attn_q.A 0.ffn_down.B 0.ffn_down.A 1.attn_q.B")


@pytest.mark.parametrize("order", ORDERS)
def test_pieces_undo_chunks(order):
    adapter = Adapter(specs_for(SMALL, default_ranks(3)), 3, 3)
    adapter.params[:] = np.arange(adapter.n_params)
    stored = flat(adapter.pairs, order)
    assert sorted(stored) == list(range(adapter.n_params))
    for name, part, values in pieces(stored, adapter.pairs, order):
        np.testing.assert_array_equal(values, adapter.pairs[name]["AB".index(part)])


@pytest.mark.parametrize("iteration", [10, 20])
def test_the_originals_order_is_recognised(tmp_path, iteration):
    checkpoint = read_checkpoint(unpack(f"tinymha-seed1-{iteration}.gguf", tmp_path))
    pairs, m, v = checkpoint.pairs, checkpoint.m, checkpoint.v
    assert checkpoint.state.moments_order == RIGHT_TO_LEFT      # what the original printed in that run
    assert agreement(pairs, m, v, RIGHT_TO_LEFT) > 0.8          # 0.99 after 10 iterations, 0.87 after 20
    assert agreement(pairs, m, v, LEFT_TO_RIGHT) < 0.1          # 0.02 and 0.03
    m, v = ({name: [None, None] for name in pairs} for _ in "mv")
    for moments, stored in ((m, checkpoint.m), (v, checkpoint.v)):
        for name, part, values in pieces(stored, pairs, RIGHT_TO_LEFT):
            moments[name]["AB".index(part)] = values
    order, evidence = recognise(pairs, flat(m, LEFT_TO_RIGHT), flat(v, LEFT_TO_RIGHT))
    assert order == LEFT_TO_RIGHT and "recognised" in evidence


def adam_steps(adapter, n_steps, tokens_seen):
    """Adam on random gradients with a trend. The first step has learning rate 0, as in a warm-up; token_embd has no
    gradient for the tokens from `tokens_seen` on, and A has none as long as its B is zero.
    """
    rng = np.random.default_rng(5)
    trend = rng.standard_normal(adapter.n_params)
    gradients, moments = Gradients(adapter), Moments(adapter)
    for step in range(n_steps):
        gradients.flat[:] = trend + rng.standard_normal(adapter.n_params)
        for name, (_, b) in adapter.pairs.items():
            if name == "token_embd.weight":
                gradients.dB(name)[:, tokens_seen:] = 0
            if not b.any():
                gradients.dA(name)[:] = 0
        moments.m[:] = 0.9 * moments.m + 0.1 * gradients.flat
        moments.v[:] = 0.999 * moments.v + 0.001 * gradients.flat**2
        if step > 0:
            adapter.params -= 1e-3 * moments.m / (np.sqrt(moments.v) + 1e-8)
    return moments


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n_steps, tokens_seen, targets", [
    (1, 20, None),              # every B is still zero
    (2, 20, None),
    (30, 20, None),
    (30, 40, None),             # every token has occurred
    (5, 40, BLOCK_MATRICES),    # no token embedding at all
])
def test_the_order_is_recognised_in_other_states(order, n_steps, tokens_seen, targets):
    adapter = Adapter(specs_for(SMALL, default_ranks(3), targets), 3, 3)
    adapter.initialise(1)
    moments = adam_steps(adapter, n_steps, tokens_seen)
    m, v = (flat(adapter.views(store), order) for store in (moments.m, moments.v))
    assert recognise(adapter.pairs, m, v)[0] == order


def test_before_the_first_step_the_order_does_not_matter():
    adapter = Adapter(specs_for(SMALL, default_ranks(3)), 3, 3)
    adapter.initialise(1)
    zeros = np.zeros(adapter.n_params, np.float32)
    assert recognise(adapter.pairs, zeros, zeros)[0] == RIGHT_TO_LEFT
