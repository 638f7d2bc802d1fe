"""Pairs of answers whose prompt is computed once: the losses are those of whole rows to the bit, the gradients but for
rounding, in every kind of attention; and what is no attention takes whole rows."""
from pathlib import Path

import numpy as np
import pytest
from hybrid_models import make_hybrid
from make_models import make_tiny

from lorafast.data.batches import Batch, SequenceSampler, evaluation_batches
from lorafast.data.preferences import Preferences, preferences_of
from lorafast.data.samples import Sequences
from lorafast.gguf.reader import open_model
from lorafast.gguf.roles import ROLES
from lorafast.network.hparams import read_hparams
from lorafast.network.lora import Adapter, Gradients, specs_for
from lorafast.network.network import Network
from lorafast.network.objective import TokenSum
from lorafast.network.trainer import Strategy, Trainer

V, CTX = 96, 96
PAIRS = [(40, 5, 30), (1, 3, 2), (70, 20, 1), (2, 9, 9)]
"""Tokens of the prompt and of both answers: prompts longer than every window, and one that leaves nothing to share."""

LIMITS = {"float32": 1e-6, "int16": 2e-4}
"""Of the gradients' difference, its norm over theirs; measured 3.1e-7 and 4.5e-5. In int16 a row of gradients is
rounded by its largest value, here once, there one time for each answer."""

ONE_ROW = 3e-5
"""Of the loss of a row that has but one token of its own: attention takes a single query by another path. Measured
8e-8, and 1.0e-5 in int16, where the last bit of a value may change how it is rounded."""


def some_pairs(method: str = "dpo") -> Preferences:
    rng, stored = np.random.default_rng(0), []
    for prompt, *answers in PAIRS:
        begin = ~rng.integers(3, V, prompt, dtype=np.int32)
        stored += [np.concatenate([begin, rng.integers(3, V, n, dtype=np.int32)]) for n in answers]
    size = np.array([len(row) for row in stored])
    rows = Sequences(np.concatenate(stored), np.cumsum(size) - size, size, "pairs", [], np.arange(len(size)),
                     np.zeros(len(size), np.int64), ("pairs",))
    return preferences_of(rows, np.tile([1, -1], len(PAIRS)).astype(np.int8), method, CTX)


def batch_of(samples: Preferences) -> Batch:
    return SequenceSampler(samples, CTX, seed=1, n_vocab=V).next_batch(len(samples))


class Case:
    def __init__(self, path: Path, precision: str) -> None:
        model = open_model(path)
        self.hp, rng = read_hparams(model), np.random.default_rng(0)
        ranks = dict.fromkeys(ROLES, 3) | {name: 1 for name, role in ROLES.items() if role.kind == "norm"}
        self.adapter = Adapter(specs_for(self.hp.tensor_shapes(), ranks, None), 6, 3)
        self.adapter.params[:] = rng.standard_normal(self.adapter.n_params) * 0.1
        self.network = Network(model, self.hp, CTX, precision)
        self.network.refresh(self.adapter)

    def run(self, batch: Batch, strategy: Strategy, max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """The losses of the targets that count, and gradients of their sum."""
        trainer, gradients = Trainer(self.network, self.adapter, max_tokens, strategy, 2), Gradients(self.adapter)
        losses = trainer.losses(batch)
        trainer.minimise(batch, TokenSum(1 / len(losses)), gradients)
        return losses, gradients.flat


@pytest.fixture(scope="module", params=["llama", "gemma4"])
def model(request, tmp_path_factory) -> Path:
    """gemma4: with windows, and blocks that attend to the keys of others."""
    path = tmp_path_factory.mktemp(request.param) / "model.gguf"
    return make_tiny(path) if request.param == "llama" else make_hybrid(path, request.param)


@pytest.mark.parametrize("precision", LIMITS)
def test_losses_and_gradients_are_those_of_whole_rows(model, precision):
    case, samples = Case(model, precision), some_pairs()
    whole, shared = batch_of(samples.with_whole_rows()), batch_of(samples)
    assert shared.shared is not None and whole.shared is None
    assert np.array_equal(shared.whole_begin, whole.begin)
    assert len(whole.tokens) - len(shared.tokens) == sum(max(0, prompt - 1) for prompt, *_ in PAIRS)
    n_blocks, longest = len(case.network.blocks), 2 * CTX
    several = np.repeat(np.diff(shared.begin) > 1, np.diff(whole.begin))[whole.targets >= 0]
    losses, gradients = case.run(whole, Strategy(n_blocks), len(whole.tokens))
    for strategy, max_tokens in ((Strategy(n_blocks), len(whole.tokens)), (Strategy(1), longest),
                                 (Strategy(2, keeps_cheap=False), longest)):
        found, d_found = case.run(shared, strategy, max_tokens)
        np.testing.assert_array_equal(found[several], losses[several])
        np.testing.assert_allclose(found, losses, rtol=ONE_ROW)
        assert np.linalg.norm(d_found - gradients) < LIMITS[precision] * np.linalg.norm(gradients)


def test_what_a_pair_has_in_common():
    samples = some_pairs()
    assert samples.in_common.tolist() == [39, 0, 69, 1], "the last token of the prompt is followed by two others"
    assert [row.shared for row in samples.rows(2)] == [0, 69]
    judged = preferences_of(samples, np.ones(len(samples), np.int8), "kto", CTX)
    assert not judged.in_common.any(), "its rows are computed one after the other"
    sizes = [len(batch.tokens) for batch in evaluation_batches(samples, 2 * CTX, bos_id=None, n_vocab=V)]
    assert sum(sizes) == len(batch_of(samples).tokens)
    assert batch_of(some_pairs("orpo")).n_counted > batch_of(samples).n_counted, "the prompt of the better row counts"


@pytest.mark.parametrize("name", ["lfm2", "qwen35"])
def test_blocks_with_a_state_take_whole_rows(tmp_path, name):
    case = Case(make_hybrid(tmp_path / "model.gguf", name), "int16")
    assert case.network.key_widths is None
