"""Models whose blocks are not all alike: what holds for every way to run them. (That they compute the right function
is shown in tests/architectures.)"""
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hybrid_models import HYBRIDS, V, make_hybrid

from lorafast.data.batches import Batch
from lorafast.gguf.reader import open_model
from lorafast.gguf.roles import ROLES
from lorafast.network.decoder import Decoder
from lorafast.network.hparams import read_hparams
from lorafast.network.lora import Adapter, Gradients, specs_for
from lorafast.network.model_files import ModelFiles
from lorafast.network.network import Network
from lorafast.network.prefix_cache import PrefixCache
from lorafast.network.residency import Residency, least_capacity
from lorafast.network.trainer import Strategy, Trainer, weight_order
from lorafast.network.weights import MAPPED

LENGTHS = (5, 1, 70, 12)        # one beyond a delta net's chunk and every window
SLOPE_LIMIT = 1e-2              # of a slope by differences in float32; measured 3e-3


@pytest.fixture(scope="module", params=HYBRIDS)
def model(request, tmp_path_factory):
    """An open file."""
    return open_model(make_hybrid(tmp_path_factory.mktemp(request.param) / "model.gguf", request.param))


class Case:
    """A network with an adapter on everything, and a batch of sequences of all lengths."""

    def __init__(self, model, *, dora: bool = False, targets=None, smooth: bool = False) -> None:
        """smooth: all experts see each token, for a choice has no slope."""
        self.hp, rng = read_hparams(model), np.random.default_rng(0)
        if smooth:
            self.hp = replace(self.hp, blocks=tuple(
                replace(block, experts=block.experts and replace(block.experts, n_used=block.experts.E))
                for block in self.hp.blocks))
        ranks = dict.fromkeys(ROLES, 3) | {name: 1 for name, role in ROLES.items() if role.kind == "norm"}
        self.adapter = Adapter(specs_for(self.hp.tensor_shapes(), ranks, targets, dora=dora), alpha=6, r=3)
        self.adapter.params[:] = rng.standard_normal(self.adapter.n_params) * 0.1
        for m in self.adapter.magnitudes.values():
            m[:] = rng.uniform(0.5, 1.5, len(m))
        self.network = Network(model, self.hp, max(LENGTHS))
        self.network.refresh(self.adapter)
        n, rng = sum(LENGTHS), np.random.default_rng(1)
        self.batch = Batch(rng.integers(3, V, n).astype(np.int32), rng.integers(-1, V, n).astype(np.int32),
                           np.cumsum([0, *LENGTHS], dtype=np.int32), len(LENGTHS), False)

    def run(self, strategy: Strategy | None = None, n_threads: int = 1, weights=MAPPED, batch: Batch | None = None,
            max_tokens: int = 0) -> tuple[float, np.ndarray]:
        """Loss, and the gradients of all parameters."""
        batch, gradients = batch or self.batch, Gradients(self.adapter)
        trainer = Trainer(self.network, self.adapter, max_tokens or len(batch.tokens),
                          strategy or Strategy(len(self.network.blocks)), n_threads, weights=weights)
        return trainer.loss_and_gradients(batch, 1 / sum(LENGTHS), gradients), gradients.flat.copy()


@pytest.mark.parametrize("strategy", [Strategy(1), Strategy(2, keeps_cheap=False), Strategy(1, input_every=2)],
                         ids=str)
def test_strategies_and_threads_change_nothing(model, strategy):
    case = Case(model, dora=strategy.n_kept == 2)
    loss, gradients = case.run()
    assert gradients.any() and np.isfinite(gradients).all()
    for other_loss, other in (case.run(strategy, n_threads=2), case.run(strategy, n_threads=3)):
        assert other_loss == loss
        np.testing.assert_array_equal(other, gradients)


def test_weights_that_stream_change_nothing(model):
    case = Case(model)
    loss, gradients = case.run(Strategy(1))
    files = ModelFiles(model)
    trainer = Trainer(case.network, case.adapter, sum(LENGTHS), Strategy(1), 1)
    order = weight_order(case.network, trainer.buffers)
    residency = Residency(files, order, least_capacity(order))
    try:
        streamed_loss, streamed = case.run(Strategy(1), weights=residency)
    finally:
        residency.close()
        files.close()
    assert streamed_loss == loss
    np.testing.assert_array_equal(streamed, gradients)


def test_a_prefix_cache_changes_nothing(model, tmp_path):
    """The blocks above are given what else they need beside their input."""
    case = Case(model, targets=["blk.1.*", "blk.2.*"])
    trainer = Trainer(case.network, case.adapter, sum(LENGTHS), Strategy(4), 1)
    trainer.prefix = PrefixCache(str(tmp_path), "0" * 64, np.array(LENGTHS), case.hp.n_embd, lowest=1)
    batch = replace(case.batch, rows=np.arange(len(LENGTHS)))
    results = []
    for _ in range(2):
        gradients = Gradients(case.adapter)
        results.append((trainer.loss_and_gradients(batch, 1 / sum(LENGTHS), gradients), gradients.flat))
    trainer.prefix.close()
    for loss, gradients in results:
        assert loss == case.run()[0]
        np.testing.assert_array_equal(gradients, case.run()[1])
    assert case.hp.keys_below(1) is None
    shares_keys = any(block.keys_from is not None for block in case.hp.blocks)
    assert case.hp.keys_below(3) == (2 if shares_keys else None), "so that a cache is refused there"


def test_sequences_do_not_see_each_other(model):
    """Packed, a sequence gives what it gives alone; working on some at a time gives the same as on all."""
    case = Case(model)
    loss, gradients = case.run()
    parts = [case.run(batch=Batch(case.batch.tokens[a:b], case.batch.targets[a:b], np.array([0, b - a], np.int32), 1,
                                  False)) for a, b in pairwise(case.batch.begin)]
    assert sum(part for part, _ in parts) == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(sum(part for _, part in parts), gradients, atol=1e-4 * np.abs(gradients).max())
    some_loss, some = case.run(max_tokens=max(LENGTHS))
    assert some_loss == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(some, gradients, atol=1e-4 * np.abs(gradients).max())


@pytest.mark.parametrize("dora", [False, True])
def test_gradients_are_the_slope(model, dora):
    """Of the loss along the gradient itself; with DoRA along that of the magnitudes, as the norms beside them count as
    constants."""
    case = Case(model, dora=dora, smooth=True)
    _, gradients = case.run()
    if dora:
        gradients[:case.adapter.n_params - case.adapter.n_magnitudes] = 0
    length = np.linalg.norm(gradients)
    start, losses = case.adapter.params.copy(), []
    for step in (3e-4, -3e-4):
        case.adapter.params[:] = start + step * gradients / length
        case.network.refresh(case.adapter)
        losses.append(case.run()[0] / sum(LENGTHS))
    assert (losses[0] - losses[1]) / 6e-4 == pytest.approx(length, rel=SLOPE_LIMIT)


@pytest.mark.parametrize("target", ["blk.1.*", "blk.2.ffn_down*", "blk.0.attn_norm", "blk.3.attn_norm"])
def test_a_part_of_the_tensors_gets_the_gradient_of_the_whole(model, target):
    """What lies below the lowest adapted tensor is skipped, which must not show in the rest."""
    whole, part = Case(model), Case(model, targets=[target])
    whole.adapter.params.fill(0)
    for name in part.adapter.pairs:
        whole.adapter.A(name)[:], whole.adapter.B(name)[:] = part.adapter.A(name), part.adapter.B(name)
    found = []
    for case in (whole, part):
        case.network.refresh(case.adapter)
        gradients = Gradients(case.adapter)
        Trainer(case.network, case.adapter, sum(LENGTHS), Strategy(4), 1).loss_and_gradients(case.batch, 1.0, gradients)
        found.append(gradients.pairs)
    for name, gradients in found[1].items():
        for got, wanted in zip(gradients, found[0][name], strict=True):
            np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-5 * np.abs(wanted).max(), err_msg=name)


def test_generation_follows_the_forward_pass(model):
    case = Case(model)
    tokens = case.batch.tokens[:max(LENGTHS)]
    whole = Decoder(case.network, case.adapter, len(tokens), 1, chunk=len(tokens))
    expected = np.concatenate([whole.logits(x) for x in whole.outputs(tokens)])
    pieces = Decoder(case.network, case.adapter, len(tokens), 2, chunk=13)
    at = 0
    for n in (3, 1, 1, 20, 2):
        at += n
        np.testing.assert_allclose(pieces.append(tokens[at - n:at]), expected[at - 1], rtol=1e-4, atol=1e-4)
    kept = pieces.rewind(4)                                 # 0 where a state has moved on: all is read again
    assert kept in (0, 4)
    np.testing.assert_allclose(pieces.append(tokens[kept:9]), expected[8], rtol=1e-4, atol=1e-4)
