"""Each loss of preference training, and its gradients, against TRL's own functions on the same tokens."""
from __future__ import annotations

from collections import defaultdict
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("trl")

from architectures.dense import ROWS  # noqa: E402
from architectures.small_models import ALPHA, RANK, SmallModel  # noqa: E402

from lorafast.adapters import BaseModel, read_adapter  # noqa: E402
from lorafast.data.batches import Batch, evaluation_batches  # noqa: E402
from lorafast.data.preferences import preferences_of  # noqa: E402
from lorafast.data.samples import Sequences, plain  # noqa: E402
from lorafast.gguf.reader import open_model  # noqa: E402
from lorafast.network.hparams import read_hparams  # noqa: E402
from lorafast.network.lora import Gradients  # noqa: E402
from lorafast.network.network import Network  # noqa: E402
from lorafast.network.trainer import Strategy, Trainer  # noqa: E402
from lorafast.options.finetune import FinetuneConfig  # noqa: E402
from lorafast.training.methods import method_of  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

LOSS_LIMIT = 1e-5
"""Most |got - wanted| / |wanted| of a loss. Measured: 3.4e-7."""

GRADIENT_LIMIT = 1e-4
"""Most |got - wanted| / |wanted| of the gradient of an A or B. Measured: 1.7e-6."""

SIZES = ((5, 1, 30), (2, 17, 3), (9, 6, 6))
"""Tokens of prompts, better and worse answers."""

CASES = {"dpo": {}, "dpo smoothed": {"label_smoothing": 0.2}, "dpo with sft": {"sft_weight": 0.3}, "ipo": {},
         "orpo": {}, "simpo": {}, "simpo smoothed": {"label_smoothing": 0.1, "gamma": 0.5, "beta": 1.0}, "cpo": {},
         "cpo smoothed": {"label_smoothing": 0.1, "sft_weight": 0.5}, "kto": {}}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> SmallModel:
    torch.set_num_threads(1)
    return SmallModel(ROWS["llama"], tmp_path_factory.mktemp("llama"))


def samples_of(method: str, seed: int = 0) -> list[tuple[np.ndarray, ...]]:
    """Prompt, better and worse answer as tokens."""
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(3, 387, n).astype(np.int32) for n in sizes) for sizes in SIZES]


def batch_of(method: str, samples: list[tuple[np.ndarray, ...]], reference: np.ndarray) -> Batch:
    """The batch that a run would make of them."""
    rows = [np.concatenate([~prompt, answer]) for prompt, *answers in samples for answer in answers]
    size = np.array([len(row) for row in rows], np.int64)
    label = np.tile([1, -1], len(samples)).astype(np.int8)
    sequences = Sequences(np.concatenate(rows), np.cumsum(size) - size, size, "x", line=np.zeros_like(size),
                          source=np.zeros_like(size))
    preferences = preferences_of(sequences, label, method, ctx=64)
    batch, = evaluation_batches(preferences, 10**6, bos_id=1, n_vocab=387)
    batch.reference[:] = reference[:len(batch.reference)]
    return batch


def ours(small: SmallModel, method: str, options: dict[str, float], batch: Batch) -> tuple[float, dict[str, Any]]:
    gguf = open_model(small.path_without_adapter)
    hparams = read_hparams(gguf)
    adapter = read_adapter(small.adapter, BaseModel.from_gguf(gguf)).to_adapter(hparams.tensor_shapes())
    network = Network(gguf, hparams, 64, "float32")
    network.refresh(adapter)
    trainer, gradients = Trainer(network, adapter, len(batch.tokens), Strategy(9), 1), Gradients(adapter)
    config = FinetuneConfig(model_base="x", method=method, **options)
    objective, passes = method_of(config).begin([batch], trainer)
    loss = sum(trainer.minimise(part, objective, gradients) for part in passes) / objective.n
    return loss, gradients.pairs


# ---------------------------------------------------------------------------------------------------------- TRL's side


class FusedHead:
    """What DPOTrainer and KTOTrainer ask of a model since the head computes log-probabilities."""

    training = True

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def __call__(self, *, input_ids: Any, attention_mask: Any, labels: Any, **options: bool) -> Any:
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1]
        counted = labels[:, 1:] != -100
        log_p = torch.log_softmax(logits, -1).gather(-1, input_ids[:, 1:, None])[..., 0]
        zeros = torch.zeros_like(log_p)
        return SimpleNamespace(log_probs=log_p * counted, entropy=zeros, mean_logits=zeros, is_top1=counted & False)


def padded(rows: list[np.ndarray], value: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor(np.array([np.pad(row, (0, longest - len(row)), constant_values=value) for row in rows]),
                        dtype=torch.long)


def inputs_of(prompts: list[np.ndarray], answers: list[np.ndarray], prefix: str = "") -> dict[str, torch.Tensor]:
    rows = [np.concatenate(pair) for pair in zip(prompts, answers)]
    return {f"{prefix}input_ids": padded(rows, 0),
            f"{prefix}attention_mask": padded([np.ones(len(row), int) for row in rows], 0),
            f"{prefix}completion_mask": padded([np.arange(len(row)) >= len(prompt)
                                                for row, prompt in zip(rows, prompts)], 0)}


ACCELERATOR = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)


def stub(model: Any, **values: Any) -> SimpleNamespace:
    """Stands in for a trainer: what the loss functions read of it."""
    return SimpleNamespace(model=model, accelerator=ACCELERATOR, aux_loss_enabled=False, is_encoder_decoder=False,
                           precompute_ref_logps=True, _metrics={"train": defaultdict(list)}, _total_train_tokens=0,
                           _tp_size=1, **values)


def dpo_loss(model: Any, method: str, values: dict[str, float], samples: list, reference: torch.Tensor) -> Any:
    from trl import DPOTrainer

    epsilon, sft_weight = values.get("label_smoothing", 0.0), values["sft_weight"]
    # Label smoothing as in DPO's first release is left in aot's loss, which is DPO's where a batch has one pair.
    kind = "ipo" if method == "ipo" else "aot" if epsilon else "sigmoid"
    self = stub(FusedHead(model), beta=values["beta"], label_smoothing=epsilon, f_divergence_type="reverse_kl",
                loss_types=[kind, "sft"], loss_weights=[1.0, sft_weight], ld_alpha=None, use_weighting=False)

    def loss_of(samples: list, reference: torch.Tensor) -> Any:
        prompts, better, worse = zip(*samples)
        inputs = inputs_of([*prompts, *prompts], [*better, *worse])
        inputs |= {"ref_chosen_logps": reference[::2], "ref_rejected_logps": reference[1::2]}
        return DPOTrainer._compute_loss(self, self.model, inputs, False)

    if kind == "aot":
        return sum(loss_of([sample], reference[2 * i:2 * i + 2]) for i, sample in enumerate(samples)) / len(samples)
    return loss_of(samples, reference)


def without_reference_loss(model: Any, method: str, values: dict[str, float], samples: list) -> Any:
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    trainer = ORPOTrainer if method == "orpo" else CPOTrainer
    self = stub(model, beta=values["beta"], label_smoothing=values.get("label_smoothing", 0.0), padding_value=0,
                pad_token_id=0, loss_type="simpo" if method == "simpo" else "sigmoid", alpha=0.0,
                simpo_gamma=values.get("gamma", 0.0), cpo_alpha=values["sft_weight"],
                concatenated_inputs=trainer.concatenated_inputs, get_batch_logps=trainer.get_batch_logps)
    for name in ("concatenated_forward", "cpo_loss", "odds_ratio_loss"):
        if hasattr(trainer, name):
            setattr(self, name, MethodType(getattr(trainer, name), self))
    batch = {}
    for i, side in enumerate(("chosen", "rejected"), 1):
        inputs = inputs_of([sample[0] for sample in samples], [sample[i] for sample in samples])
        answers = inputs.pop("completion_mask").bool()
        batch |= {f"{side}_{name}": value for name, value in inputs.items()}
        batch[f"{side}_labels"] = inputs["input_ids"].masked_fill(~answers, -100)
    return trainer.get_batch_loss_metrics(self, model, batch)[0]


def kto_loss(model: Any, values: dict[str, float], samples: list, reference: torch.Tensor) -> Any:
    from trl import KTOTrainer

    prompts = [sample[0] for sample in samples for _ in range(2)]
    answers = [answer for sample in samples for answer in sample[1:]]
    inputs = inputs_of(prompts, answers) | inputs_of(prompts, [answers[-1], *answers[:-1]], "KL_")
    inputs |= {"label": torch.tensor([True, False] * len(samples)), "ref_logps": reference[::2],
               "ref_KL_logps": reference[1::2]}
    self = stub(FusedHead(model), beta=values["beta"], calculate_KL=True, loss_type="kto", desirable_weight=1.0,
                undesirable_weight=1.0)
    self._compute_kl_logps = MethodType(KTOTrainer._compute_kl_logps, self)
    return KTOTrainer._compute_loss(self, self.model, inputs, False)


def theirs(small: SmallModel, method: str, options: dict[str, float], samples: list,
           reference: np.ndarray) -> tuple[float, dict[str, Any]]:
    values = FinetuneConfig(model_base="x", method=method, **options).method_values()
    small.model.zero_grad()
    if method == "kto":
        loss = kto_loss(small.model, values, samples, torch.tensor(reference))
    elif method in ("dpo", "ipo"):
        loss = dpo_loss(small.model, method, values, samples, torch.tensor(reference))
    else:
        loss = without_reference_loss(small.model, method, values, samples)
    loss.backward()
    of_weights = small.tensors_of({name: value.grad for name, value in small.model.named_parameters()
                                   if value.grad is not None})
    scale = ALPHA / RANK
    return loss.item(), {name: (scale * b @ of_weights[name], scale * a @ of_weights[name].T)
                         for name, (a, b) in small.pairs.items()}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(small, case):
    method, options, samples = case.split()[0], CASES[case], samples_of(case)
    n_rows = 4 * len(samples) if method == "kto" else 2 * len(samples)
    reference = -6.0 * np.array([max(1, n) for n in np.resize([len(a) for s in samples for a in s[1:]], n_rows)])
    reference += np.random.default_rng(3).normal(0, 1, n_rows)
    wanted_loss, wanted = theirs(small, method, options, samples, reference)
    loss, got = ours(small, method, options, batch_of(method, samples, reference))
    assert loss == pytest.approx(wanted_loss, rel=LOSS_LIMIT)
    for name, pair in wanted.items():
        for kind, mine, other in zip(("dA", "dB"), got[name], pair, strict=True):
            assert np.linalg.norm(mine - other) / np.linalg.norm(other) < GRADIENT_LIMIT, (name, kind)


def test_rows_are_cut_as_by_trl():
    """Prompts that fill the context, and answers that reach over its end."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    rng, ctx = np.random.default_rng(5), 11
    examples = [{key: rng.integers(3, 387, n).tolist() for key, n in
                 zip(("prompt_ids", "chosen_ids", "rejected_ids"), sizes)}
                for sizes in ((4, 3, 20), (12, 2, 2), (11, 5, 1), (30, 4, 4), (2, 9, 10))]
    rows = [np.array([*(~np.array(example["prompt_ids"])), *example[side]], np.int32)
            for example in examples for side in ("chosen_ids", "rejected_ids")]
    size = np.array([len(row) for row in rows], np.int64)
    sequences = Sequences(np.concatenate(rows), np.cumsum(size) - size, size, "x", line=np.zeros_like(size),
                          source=np.zeros_like(size))
    ours = preferences_of(sequences, np.tile([1, -1], 5).astype(np.int8), "dpo", ctx)
    kept = [example for example in examples if len(example["prompt_ids"]) < ctx + 1]
    theirs = DataCollatorForPreference(pad_token_id=0, max_length=ctx + 1)(kept)
    assert len(ours) == len(kept) == 3 and "2 samples are left out" in " ".join(ours.warnings)
    mine = [ours.rows(i)[side].stored for side in (0, 1) for i in range(len(ours))]
    for row, ids, mask, answer in zip(mine, theirs["input_ids"], theirs["attention_mask"], theirs["completion_mask"]):
        assert plain(row).tolist() == ids[mask.bool()].tolist()
        assert (row >= 0).tolist() == answer[mask.bool()].bool().tolist()
