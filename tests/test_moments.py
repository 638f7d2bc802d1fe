@pytest.mark.parametrize("order", MOMENTS_ORDERS)
@pytest.mark.parametrize("iteration", [10, 20])
def test_moments_order_is_recognised_and_kept(golden, tmp_path, iteration, order):
    checkpoint, adapter, state = load(golden[iteration])
    assert state.moments_order == RIGHT_TO_LEFT and "recognised" in checkpoint.moments_evidence
    state.moments_order = order
    write_checkpoint(tmp_path / "reordered.gguf", checkpoint.geometry, adapter, state)
    again, adapter_again, state_again = load(tmp_path / "reordered.gguf")
    assert state_again.moments_order == order
    np.testing.assert_array_equal(adapter_again.m, adapter.m)
    np.testing.assert_array_equal(adapter_again.v, adapter.v)
    other, = set(MOMENTS_ORDERS) - {order}
    assert moments_agreement(again.pairs, again.m, again.v, order) > 0.8
    assert moments_agreement(again.pairs, again.m, again.v, other) < 0.1


def adam_steps(adapter, steps, rows_seen, rng, zero_first=True):
    """Crude Adam on random gradients with a direction, rows of token_embd beyond `rows_seen` without any."""
    drift = rng.standard_normal(adapter.n_params).astype(np.float32)
    for step in range(1, steps + 1):
        adapter.grads[:] = drift + rng.standard_normal(adapter.n_params)
        for name, (a, b) in adapter.pairs.items():
            if name == "token_embd.weight":
                adapter.dB(name)[:, rows_seen:] = 0
            if not b.any():
                adapter.dA(name)[:] = 0
        adapter.m[:] = 0.9 * adapter.m + 0.1 * adapter.grads
        adapter.v[:] = 0.999 * adapter.v + 0.001 * adapter.grads**2
        if step > 1 or not zero_first:
            adapter.params -= 1e-3 * adapter.m / (np.sqrt(adapter.v) + 1e-8)


@pytest.mark.parametrize("order", MOMENTS_ORDERS)
@pytest.mark.parametrize("steps, rows_seen, targets", [
    (1, 20, None),              # before the first step with a learning rate: every B is still zero
    (2, 20, None),
    (30, 20, None),
    (30, 40, None),             # every token has occurred
    (5, 40, BLOCK_MATRICES),    # and no token embedding at all
])
def test_moments_order_is_recognised_in_other_states(tmp_path, order, steps, rows_seen, targets):
    adapter = Adapter(specs_for(SMALL, default_ranks(3), targets), 3, 3, training=True)
    adapter.initialise(1)
    adam_steps(adapter, steps, rows_seen, np.random.default_rng(5))
    write_checkpoint(tmp_path / "c.gguf", SMALL_GEOMETRY, adapter, TrainState(iteration=steps, moments_order=order))
    assert read_checkpoint(tmp_path / "c.gguf").state.moments_order == order


def test_moments_orders_are_the_originals():
    names = ["token_embd.weight", "output_norm.weight", "output.weight", "blk.0.attn_norm.weight", "blk.0.attn_q.weight",
             "blk.0.ffn_up.weight", "blk.1.attn_norm.weight", "blk.1.attn_q.weight", "blk.1.ffn_up.weight"]
    short = {name: name.removesuffix(".weight").removeprefix("blk.") for name in names}

    def sequence(order):
        return " ".join(f"{short[name]}.{part}" for name, part in parameter_order(names, order))

    assert sequence(LEFT_TO_RIGHT) == (
        "output.A output.B output_norm.A output_norm.B 1.attn_norm.A 1.attn_norm.B 0.attn_norm.A 0.attn_norm.B "
        "token_embd.A token_embd.B 0.attn_q.A 0.attn_q.B 0.ffn_up.A 0.ffn_up.B 1.attn_q.A 1.attn_q.B 1.ffn_up.A 1.ffn_up.B")
    assert sequence(RIGHT_TO_LEFT) == (
        "token_embd.B token_embd.A 0.attn_norm.B 0.attn_norm.A 0.attn_q.B 0.attn_q.A 0.ffn_up.B 0.ffn_up.A "
        "1.attn_norm.B 1.attn_norm.A 1.attn_q.B 1.attn_q.A 1.ffn_up.B 1.ffn_up.A output_norm.B output_norm.A output.B output.A")


