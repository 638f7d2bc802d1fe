"""Loss and gradients of the whole network against a plain float64 one, and generation against training's forward
pass."""

from functools import cached_property
from itertools import pairwise

import numpy as np
import pytest
from make_models import make_tiny, split_model
from plain_model import base_weights, plain_loss

from lorafast.data.batches import Batch
from lorafast.gguf.reader import open_model
from lorafast.gguf.roles import ROLES
from lorafast.kernels.build_info import available_isas
from lorafast.network.block import Block
from lorafast.network.buffers import Scratch
from lorafast.network.decoder import Decoder
from lorafast.network.feed_forward import FeedForward
from lorafast.network.hparams import read_hparams
from lorafast.network.lora import Adapter, Gradients, specs_for
from lorafast.network.network import Network
from lorafast.network.passes import Pass, Rows
from lorafast.network.trainer import Strategy, Trainer

LOSS_LIMIT = 1e-5           # relative difference; measured 3e-6 (int16 products), 4e-8 (float32)
GRADIENT_LIMIT = 1e-3       # of each pair's gradient, relative norm of the difference; measured 1e-4 (int16 products)
NORM_B_LIMIT = 1e-1         # the same of a norm's B, one number in which a sum of either sign cancels; measured 3e-2

MODELS = {
    "gqa": dict(),
    "mha": dict(n_head_kv=4),
    "tied": dict(tied=True, embd_std=0.1),     # a larger one makes losses that are capped, as the original's
    "key_length": dict(key_length=24),
    "rope": dict(rope_freqs=True, rope_scale_linear=4.0),
    "f16": dict(type="F16"),
    "q4_K": dict(type="Q4_K", n_embd=256, n_ff=256),
    "experts": dict(experts=4),
    "mixed": dict(type="Q8_0", types={"blk.0.attn_v.weight": "F16", "blk.1.ffn_down.weight": "Q5_1",
                                      "output.weight": "BF16"}),
}


def batch_of(tokens: np.ndarray, targets: np.ndarray) -> Batch:
    rows, ctx = tokens.shape
    return Batch(tokens.ravel(), targets.ravel(), np.arange(0, tokens.size + 1, ctx, dtype=np.int32), rows, False)


def pass_of(adapter: Adapter, **options) -> Pass:
    """Over no tokens."""
    none = np.zeros(0, np.int32)
    return Pass(none, Rows(none, np.zeros(1, np.int32)), adapter, Scratch(0), 2, **options)


class Case:
    """A tiny model with a random adapter on everything, and a batch with targets that do not count."""

    def __init__(self, path, rows: int = 3, ctx: int = 13, targets=None, dora: bool = False, n_parts: int = 1,
                 **model) -> None:
        path = make_tiny(path, **model)
        self.gguf = open_model(split_model(path, n_parts) if n_parts > 1 else path)
        self.hp = read_hparams(self.gguf)
        ranks = dict.fromkeys(ROLES, 3) | {"attn_norm": 1, "ffn_norm": 2, "output_norm": 1}
        specs = specs_for(self.hp.tensor_shapes(), ranks, targets, dora=dora)
        self.adapter = Adapter(specs, alpha=6, r=3)
        self.gradients = Gradients(self.adapter)
        rng = np.random.default_rng(5)
        self.adapter.params[:] = 0.05 * rng.standard_normal(self.adapter.n_params)
        for name, m in self.adapter.magnitudes.items():
            norms = np.linalg.norm(self.gguf.tensors[name].to_float32(), axis=int(name != "token_embd.weight"))
            m[:] = rng.uniform(0.8, 1.2, m.size) * norms
        rng = np.random.default_rng(6)
        self.network = Network(self.gguf, self.hp, ctx)
        self.network.refresh(self.adapter)
        self.tokens = rng.integers(0, self.hp.n_vocab, (rows, ctx)).astype(np.int32)
        self.targets = rng.integers(0, self.hp.n_vocab, (rows, ctx)).astype(np.int32)
        self.targets[-1, 2:6] = self.targets[0, 0] = -1

    def train(self, *, checkpointing: bool = False, n_threads: int = 2, **options) -> float:
        """Loss; gradients of the mean are added to `gradients`."""
        strategy = Strategy(n_kept=1 if checkpointing else self.hp.n_layer, **options)
        trainer = Trainer(self.network, self.adapter, self.tokens.size, strategy, n_threads)
        n = int((self.targets >= 0).sum())
        return trainer.loss_and_gradients(batch_of(self.tokens, self.targets), 1 / n, self.gradients) / n

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """The base's, for `exact`."""
        return base_weights(self.gguf)

    def exact(self, pairs: dict) -> float:
        return plain_loss(self.weights, pairs, self.adapter.scale, self.hp, self.tokens, self.targets)

    def pass_(self) -> Pass:
        return pass_of(self.adapter)

    def pairs(self) -> dict:
        return {name: [part.astype(np.float64) for part in pair] for name, pair in self.adapter.pairs.items()}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("isa", available_isas())
def test_loss_and_gradients(tmp_path, monkeypatch, name, isa):
    monkeypatch.setenv("LORAFAST_ISA", isa)
    case = Case(tmp_path / "model.gguf", **MODELS[name])
    assert case.train() == pytest.approx(case.exact(case.pairs()), rel=LOSS_LIMIT)
    # Along the gradient of each part, the loss must change by its squared norm.
    for pair, gradients in case.gradients.pairs.items():
        for part in (0, 1):
            direction = gradients[part].astype(np.float64)
            norm = np.linalg.norm(direction)
            assert norm > 0, pair
            step = 1e-4 / norm
            values = []
            for sign in (1, -1):
                moved = case.pairs()
                moved[pair][part] = moved[pair][part] + sign * step * direction
                values.append(case.exact(moved))
            slope = (values[0] - values[1]) / (2 * step)
            limit = NORM_B_LIMIT if part and "norm" in pair else GRADIENT_LIMIT
            assert abs(slope / norm**2 - 1) < limit, (pair, "AB"[part])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_gradients_against_torch(tmp_path, name):
    torch = pytest.importorskip("torch")
    case = Case(tmp_path / "model.gguf", **MODELS[name])
    case.train()
    weights = {n: torch.tensor(w) for n, w in base_weights(case.gguf).items()}
    pairs = {n: [torch.tensor(part, requires_grad=True) for part in pair] for n, pair in case.pairs().items()}
    plain_loss(weights, pairs, case.adapter.scale, case.hp, case.tokens, case.targets, torch).backward()
    for pair, exact in pairs.items():
        limits = GRADIENT_LIMIT, NORM_B_LIMIT if "norm" in pair else GRADIENT_LIMIT
        for got, part, limit in zip(case.gradients.pairs[pair], exact, limits):
            wanted = part.grad.numpy()
            assert np.linalg.norm(got - wanted) < limit * np.linalg.norm(wanted), pair


@pytest.mark.parametrize("experts", [0, 4])
def test_checkpointing_and_threads_change_nothing(tmp_path, experts):
    case = Case(tmp_path / "model.gguf", experts=experts)
    loss, gradients = case.train(), case.gradients.flat.copy()
    for options in (dict(checkpointing=True), dict(n_threads=1), dict(n_threads=3), dict(head_tokens=5, n_threads=1)):
        case.gradients.flat.fill(0)
        # Fewer tokens at a time may go through another product kernel, which rounds differently.
        assert case.train(**options) == pytest.approx(loss, rel=1e-6 if "head_tokens" in options else 1e-12), options
        if "head_tokens" not in options:
            np.testing.assert_array_equal(case.gradients.flat, gradients, str(options))
        np.testing.assert_allclose(case.gradients.flat, gradients, atol=1e-5, err_msg=str(options))


@pytest.mark.parametrize("options", [{}, {"dora": True}], ids=str)
def test_rows_without_a_target_are_left_out_of_the_last_feed_forward(tmp_path, monkeypatch, options):
    case = Case(tmp_path / "model.gguf", **options)
    case.targets[:2, 3:] = -1
    rows = []
    forward = FeedForward.forward
    monkeypatch.setattr(FeedForward, "forward", lambda self, out, *rest: rows.append(len(out)) or
                        forward(self, out, *rest))
    loss, gradients = case.train(), case.gradients.flat.copy()
    assert rows[-1] == int((case.targets >= 0).sum()) < rows[0] == case.tokens.size

    monkeypatch.setattr(Block, "can_omit_rows", False)
    case.gradients.clear()
    assert case.train() == loss
    np.testing.assert_array_equal(case.gradients.flat, gradients)
    assert rows[-1] == case.tokens.size


@pytest.mark.parametrize("targets", [["blk.1.attn_q"], ["blk.1.ffn_down"], ["blk.1.attn_norm"], ["output"],
                                     ["output_norm"], ["token_embd"], ["blk.0.attn_output", "blk.1.ffn_up"]], ids=str)
def test_a_part_of_the_tensors_gets_the_gradient_of_the_whole(tmp_path, targets):
    """What lies below the lowest adapted tensor is skipped, which must not show in the rest."""
    part = Case(tmp_path / "part.gguf", targets=targets)
    whole = Case(tmp_path / "whole.gguf")
    whole.adapter.params.fill(0)
    for name in part.adapter.pairs:
        whole.adapter.A(name)[:], whole.adapter.B(name)[:] = part.adapter.A(name), part.adapter.B(name)
    whole.network.refresh(whole.adapter)
    part.train(), whole.train()
    for name, gradients in part.gradients.pairs.items():
        for got, wanted in zip(gradients, whole.gradients.pairs[name]):
            np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-5 * np.abs(wanted).max())


def test_sequences_do_not_see_each_other(tmp_path):
    """Packed rows of different lengths: the loss is that of each alone."""
    case = Case(tmp_path / "model.gguf", rows=1, ctx=20)
    tokens, targets = case.tokens[0], np.abs(case.targets[0])
    begin = np.array([0, 7, 8, 20], np.int32)
    trainer = Trainer(case.network, case.adapter, 20, Strategy(n_kept=case.hp.n_layer), 1)
    together = trainer.loss_and_gradients(Batch(tokens, targets, begin, 3, False), 1.0, case.gradients)
    gradients = case.gradients.flat.copy()
    case.gradients.flat.fill(0)
    alone = sum(trainer.loss_and_gradients(Batch(tokens[a:b], targets[a:b], np.array([0, b - a], np.int32), 1, False),
                                           1.0, case.gradients)
                for a, b in pairwise(begin))
    assert together == pytest.approx(alone, rel=1e-5)
    np.testing.assert_allclose(case.gradients.flat, gradients, rtol=1e-2, atol=1e-4 * np.abs(gradients).max())


def test_weights_multiply_losses(tmp_path):
    """However a batch is split into passes; and rows of weight 2 pull as much as rows that are there twice."""
    case = Case(tmp_path / "model.gguf", rows=1, ctx=20)
    tokens, targets = np.tile(case.tokens[0][:10], 3), np.tile(np.abs(case.targets[0][:10]), 3)
    tokens[20:], targets[20:] = case.tokens[0][10:], np.abs(case.targets[0][10:])
    begin, weights = np.array([0, 10, 20], np.int32), np.repeat(np.float32([2, 1]), 10)
    results = {}
    for name, batch, n in (("twice", Batch(tokens, targets, np.array([0, 10, 20, 30], np.int32), 3, False), 30),
                           ("weighted", Batch(tokens[10:], targets[10:], begin, 2, False, weights), 20),
                           ("parted", Batch(tokens[10:], targets[10:], begin, 2, False, weights), 10)):
        trainer = Trainer(case.network, case.adapter, n, Strategy(n_kept=case.hp.n_layer), 1)
        case.gradients.clear()
        results[name] = trainer.loss_and_gradients(batch, 0.5, case.gradients), case.gradients.flat.copy()
        assert trainer.loss(batch) == pytest.approx(results[name][0], rel=1e-6)
    for loss, gradients in results.values():
        assert loss == pytest.approx(results["twice"][0], rel=1e-5)
        np.testing.assert_allclose(gradients, results["twice"][1], rtol=1e-2, atol=1e-4 * np.abs(gradients).max())


@pytest.mark.parametrize("experts", [0, 4])
def test_generation_follows_the_forward_pass(tmp_path, experts):
    """Token by token through the cache, in chunks, or all at once: the same logits; and those that training's loss
    comes from."""
    case = Case(tmp_path / "model.gguf", experts=experts)
    tokens = case.tokens[0]

    def logits(*pieces: int, chunk: int = 64) -> np.ndarray:
        decoder = Decoder(case.network, case.adapter, len(tokens), n_threads=2, chunk=chunk)
        at = 0
        for n in pieces:
            result = decoder.append(tokens[at:at + n])
            at += n
        return result

    whole = logits(len(tokens))
    np.testing.assert_allclose(logits(*[1] * len(tokens)), whole, rtol=1e-3, atol=1e-3 * np.abs(whole).max())
    np.testing.assert_allclose(logits(5, len(tokens) - 5, chunk=3), whole, rtol=1e-3, atol=1e-3 * np.abs(whole).max())
    target = int(whole.argmax())
    case.tokens, case.targets = tokens[None], np.full((1, len(tokens)), -1, np.int32)
    case.targets[0, -1] = target
    expected = np.log(np.exp(whole - whole.max(), dtype=np.float64).sum()) - (whole[target] - whole.max())
    assert case.train() == pytest.approx(expected, rel=1e-3, abs=1e-4)
    with pytest.raises(ValueError, match="do not fit"):
        Decoder(case.network, case.adapter, 3, 1).append(tokens)
