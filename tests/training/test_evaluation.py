"""Loss on data that is not trained on, what counts as best, and how prompts go on."""
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import chat_templates
import numpy as np
import pytest
from make_models import bpe_vocabulary, make_tiny

from lorafast.data.batches import Batch
from lorafast.data.open import DataOptions, open_data
from lorafast.errors import LoraFastError
from lorafast.gguf.reader import open_model
from lorafast.network.hparams import read_hparams
from lorafast.network.lora import Adapter, Gradients, Moments, default_ranks, specs_for
from lorafast.network.network import Network
from lorafast.network.trainer import Strategy, Trainer
from lorafast.options.finetune import FinetuneConfig
from lorafast.tokenizer import load_tokenizer
from lorafast.training.evaluation import Best, continued, evaluated, prompt_tokens
from lorafast.training.learner import Learner
from lorafast.training.methods import MeanLoss


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def trainer(model_path) -> Trainer:
    gguf = open_model(model_path)
    hparams = read_hparams(gguf)
    adapter = Adapter(specs_for(hparams.tensor_shapes(), default_ranks(2)), 2, 2)
    adapter.params[:] = 0.1 * np.random.default_rng(0).standard_normal(adapter.n_params)
    network = Network(gguf, hparams, 32)
    network.refresh(adapter)
    return Trainer(network, adapter, 24, Strategy(n_kept=1, head_tokens=5), 1)


def batch(seed: int, *sizes: int) -> Batch:
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    targets = rng.integers(0, 380, n, dtype=np.int32)
    targets[rng.random(n) < 0.3] = -1
    return Batch(rng.integers(0, 380, n, dtype=np.int32), targets, np.cumsum([0, *sizes], dtype=np.int32), len(sizes),
                 False)


def test_mean_loss_is_that_of_training(trainer):
    batches = [batch(0, 9, 8), batch(1, 24), batch(2, 3)]
    wanted = [trainer.loss_and_gradients(each, 1.0, Gradients(trainer.adapter)) for each in batches]
    counted = [int((each.targets >= 0).sum()) for each in batches]
    all_of_them, first = evaluated(MeanLoss(), trainer, iter(batches)), evaluated(MeanLoss(), trainer, iter(batches), 1)
    assert all_of_them.loss == pytest.approx(sum(wanted) / sum(counted), rel=1e-6)
    assert first.loss == pytest.approx(wanted[0] / counted[0], rel=1e-6)
    assert (all_of_them.n_tokens, first.n_tokens, first.rewards) == (sum(counted), counted[0], None)


def test_a_batch_without_a_target_is_no_nan(trainer, model_path):
    empty = replace(batch(0, 4), targets=np.full(4, -1, np.int32))
    with pytest.raises(LoraFastError, match="no token that counts"):
        evaluated(MeanLoss(), trainer, [empty])
    config = FinetuneConfig(model_base=str(model_path), threads=1, lora_r=2)
    learner = Learner(config, trainer.network, trainer.adapter, Moments(trainer.adapter), trainer, None)
    assert learner.loss_and_gradients([empty], 0) == 0 and not learner.gradients.flat.any()
    assert learner.loss_and_gradients([empty, batch(1, 5)], 0) == learner.loss_and_gradients([batch(1, 5)], 0) > 0


def test_best():
    best = Best(patience=2)
    assert [best.take(loss, 10 * i) for i, loss in enumerate([3.0, 2.0, 2.5, 1.5, 1.5])] == [
        True, True, False, True, False]
    assert (best.loss, best.iteration, best.evaluations_since, best.evaluated) == (1.5, 30, 1, 40)
    assert best.stop_reason() is None
    assert Best.from_extras(2, best.extras()) == best and Best.from_extras(0, {}) == Best()
    best.take(math.nan, 50)
    assert best.stop_reason() == ("2 evaluations in a row were not better than that of iteration 30, 1.500000 "
                                  "(--patience)")
    best.patience = 0
    assert best.stop_reason() is None


def test_a_prompt_goes_on_the_same_way_each_time(trainer, model_path):
    tokenizer = load_tokenizer(open_model(model_path))
    texts = [continued(trainer.network, trainer.adapter, tokenizer, prompt_tokens(tokenizer, prompt), 6, 1)
             for prompt in ("the love", "the love", "")]
    assert texts[0] == texts[1] and texts[0] and texts[2]


def test_a_prompt_is_a_question_where_the_data_has_chats(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metadata = {key: value for key, _, value in bpe_vocabulary()} | {"tokenizer.chat_template": chat_templates.CHATML}
    tokenizer = load_tokenizer(SimpleNamespace(metadata=metadata))
    chat = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
    for contents, expected in ((chat, "<|im_start|>user\nthe love<|im_end|>\n<|im_start|>assistant\n"),
                               ('{"prompt": "q", "completion": "a"}\n', "<|im_start|>user\nthe love<|im_end|>\n"),
                               ('{"text": "the love of thee"}\n', "the love")):
        Path("a.jsonl").write_text(contents)
        for _ in range(2):                      # the second time from the cache
            data = open_data(DataOptions(["a.jsonl"], cache="cache"), tokenizer, metadata, 64)
            assert tokenizer.decode(prompt_tokens(tokenizer, "the love", data.template)).startswith(expected)
            assert (data.template is None) == (expected == "the love")
