"""DoRA in the network: gains, loss and gradients against a plain float64 network and PEFT, and what changes no bit."""
import numpy as np
import pytest
from make_models import make_tiny
from numerics import nmse
from plain_model import base_weights, norms_of_adapted, plain_loss
from transformers_logits import peft_gradients

import lorafast.network.dora
from lorafast.adapters import AdapterFile, BaseModel
from lorafast.adapters.peft import read_peft, write_peft
from lorafast.gguf.reader import open_model
from lorafast.gguf.roles import BLOCK_MATRICES
from lorafast.network.decoder import Decoder
from lorafast.network.dora import Gain, initialise
from lorafast.network.lora import Adapter, Gradients, specs_for
from lorafast.network.trainer import Strategy, Trainer
from lorafast.network.weights import MAPPED, MappedWeights
from lorafast.training.dropout import Dropout
from tests.network.test_network import GRADIENT_LIMIT, LOSS_LIMIT, MODELS, Case, batch_of, pass_of

GAIN_LIMIT = 1e-12          # NMSE; measured 3e-15 in F32
PEFT_LIMIT = 1e-9           # NMSE of gradients; measured 4e-12 with AVX2
MATRICES = (*BLOCK_MATRICES, "output", "token_embd")


def dora_case(path, targets=None, **options) -> Case:
    """Every matrix that the model has, or `targets`; no norms, which have no direction."""
    matrices = [name for name in MATRICES if name != "output" or not options.get("tied")]
    return Case(path, targets=targets or matrices, dora=True, **options)


@pytest.mark.parametrize("type", ["F32", "Q8_0", "Q5_1"])
@pytest.mark.parametrize("values", [1 << 18, 1000])
def test_gains(tmp_path, monkeypatch, type, values):
    """m / ‖V‖ of rows, and of the embedding's columns, computed all at once or in parts."""
    monkeypatch.setattr(lorafast.network.dora, "VALUES", values)
    case = dora_case(tmp_path / "model.gguf", type=type)
    norms = norms_of_adapted(base_weights(case.gguf), case.pairs(), case.adapter.scale, case.adapter.magnitudes)
    assert len(norms) == 2 * 7 + 2
    for name, gain in case.network.dora_gains().items():
        got = gain.of(name, case.pass_())
        assert nmse(got, case.adapter.magnitudes[name] / norms[name]) < GAIN_LIMIT, name
        assert gain.of(name, case.pass_()) is got, "computed once"


def test_a_row_of_zeros_stays_one(tmp_path):
    gguf = open_model(make_tiny(tmp_path / "model.gguf", type="F32"))
    tensor = gguf.tensors["output.weight"]
    adapter = Adapter(specs_for({"output.weight": tensor.shape}, {"output": 2}, dora=True), 2, 2)
    rows = tensor.data.copy()
    rows[5] = 0

    class Rows(MappedWeights):
        def slice(self, tensor, begin, end):
            return rows[begin:end]

    gain = Gain(tensor)
    initialise(adapter, {"output.weight": gain}, Rows(), 1, lambda: None)
    expected = np.ones(len(rows))
    expected[5] = 0
    np.testing.assert_array_equal(gain.of("output.weight", pass_of(adapter, weights=Rows())), expected)


@pytest.mark.parametrize("name", ["gqa", "tied", "key_length", "q4_K"])
def test_loss_and_gradients(tmp_path, name):
    """Along the gradient of each part the loss changes by its squared norm, where the norms of V are held."""
    case = dora_case(tmp_path / "model.gguf", **MODELS[name])
    weights, scale = base_weights(case.gguf), case.adapter.scale
    magnitudes = {name: m.astype(np.float64) for name, m in case.adapter.magnitudes.items()}
    norms = norms_of_adapted(weights, case.pairs(), scale, magnitudes)

    def exact(pairs: dict, magnitudes: dict) -> float:
        return plain_loss(weights, pairs, scale, case.hp, case.tokens, case.targets, magnitudes=magnitudes, norms=norms)

    assert case.train() == pytest.approx(exact(case.pairs(), magnitudes), rel=LOSS_LIMIT)
    gradients = {(pair, part): gradient for pair in case.adapter.pairs
                 for part, gradient in enumerate((*case.gradients.pairs[pair], case.gradients.magnitudes[pair]))}
    assert len(gradients) == 3 * len(case.adapter.specs)
    for (pair, part), gradient in gradients.items():
        direction = gradient.astype(np.float64)
        norm = np.linalg.norm(direction)
        assert norm > 0, (pair, part)
        values = []
        for sign in (1, -1):
            moved, moved_magnitudes = case.pairs(), dict(magnitudes)
            step = sign * 1e-4 / norm * direction
            if part < 2:
                moved[pair][part] = moved[pair][part] + step
            else:
                moved_magnitudes[pair] = magnitudes[pair] + step
            values.append(exact(moved, moved_magnitudes))
        slope = (values[0] - values[1]) / 2e-4 * norm
        assert abs(slope / norm**2 - 1) < GRADIENT_LIMIT, (pair, "ABm"[part])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gqa", "mha"])
def test_gradients_are_pefts(tmp_path, name):
    pytest.importorskip("peft"), pytest.importorskip("transformers")
    case = dora_case(tmp_path / "model.gguf", type="F32", **MODELS[name])
    base = BaseModel.from_gguf(case.gguf)
    write_peft(tmp_path / "adapter", AdapterFile.of(case.adapter), base)
    folder = peft_gradients(tmp_path, tmp_path / "model.gguf", tmp_path / "adapter", case.tokens, case.targets)
    exact = read_peft(folder, base)
    assert exact.magnitudes.keys() == exact.pairs.keys() == case.adapter.pairs.keys()
    case.train()
    for name in exact.pairs:
        gradients = (*case.gradients.pairs[name], case.gradients.magnitudes[name])
        for got, wanted in zip(gradients, exact.parts(name)):
            assert nmse(got, wanted) < PEFT_LIMIT, name


def test_b_of_zeros_is_the_base_model(tmp_path):
    case, plain = dora_case(tmp_path / "model.gguf"), Case(tmp_path / "plain.gguf", targets=MATRICES)
    for adapter in (case.adapter, plain.adapter):
        adapter.initialise(1)
    initialise(case.adapter, case.network.dora_gains(), MAPPED, 2, lambda: None)
    case.network.refresh(case.adapter), plain.network.refresh(plain.adapter)
    assert case.train() == pytest.approx(plain.train(), rel=1e-7)
    assert all((gain.value == 1).all() for gain in case.network.dora_gains().values())
    for name in plain.adapter.pairs:            # and so are the gradients of the pairs
        np.testing.assert_allclose(case.gradients.dB(name), plain.gradients.dB(name), rtol=1e-3,
                                   atol=1e-5 * np.abs(plain.gradients.dB(name)).max())


def test_threads_and_checkpointing_change_nothing(tmp_path):
    case = dora_case(tmp_path / "model.gguf")
    loss, gradients = case.train(), case.gradients.flat.copy()
    for options in (dict(n_threads=1), dict(n_threads=3), dict(checkpointing=True)):
        case.gradients.flat.fill(0)
        case.network.refresh(case.adapter)
        assert case.train(**options) == loss
        np.testing.assert_array_equal(case.gradients.flat, gradients, str(options))


@pytest.mark.parametrize("targets", [["blk.1.attn_k"], ["blk.1.ffn_down"], ["blk.0.ffn_up"], ["output"], ["token_embd"],
                                     ["blk.0.ffn_gate", "blk.1.attn_output"]], ids=str)
def test_a_part_of_the_tensors_gets_the_gradient_of_the_whole(tmp_path, targets):
    """The others have a pair of zeros and the magnitudes of the base model."""
    part, whole = dora_case(tmp_path / "part.gguf", targets), dora_case(tmp_path / "whole.gguf")
    whole.adapter.params.fill(0)
    initialise(whole.adapter, whole.network.dora_gains(), MAPPED, 1, lambda: None)
    for name, m in part.adapter.magnitudes.items():
        whole.adapter.A(name)[:], whole.adapter.B(name)[:] = part.adapter.pairs[name]
        whole.adapter.magnitudes[name][:] = m
    whole.network.refresh(whole.adapter)
    part.train(), whole.train()
    for name in part.adapter.pairs:
        for got, wanted in zip((*part.gradients.pairs[name], part.gradients.magnitudes[name]),
                               (*whole.gradients.pairs[name], whole.gradients.magnitudes[name])):
            np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-5 * np.abs(wanted).max())


def test_beside_plain_pairs(tmp_path):
    """As where an adapter with magnitudes and one without are used together: v has a plain pair, up none."""
    case = Case(tmp_path / "model.gguf", targets=["blk.0.attn_q", "blk.0.attn_v", "blk.0.ffn_gate"], dora=True)
    specs = [spec if "attn_v" not in spec.name else specs_for({spec.name: (spec.n_out, spec.n_in)}, {"attn_v": 3})[0]
             for spec in case.adapter.specs]
    adapter = Adapter(specs, 6, 3)
    for name, pair in case.adapter.pairs.items():
        adapter.A(name)[:], adapter.B(name)[:] = pair
    for name, m in adapter.magnitudes.items():
        m[:] = case.adapter.magnitudes[name]
    case.adapter, case.gradients = adapter, Gradients(adapter)
    weights = base_weights(case.gguf)
    norms = norms_of_adapted(weights, case.pairs(), adapter.scale, adapter.magnitudes)
    assert len(norms) == 2
    wanted = plain_loss(weights, case.pairs(), adapter.scale, case.hp, case.tokens, case.targets,
                        magnitudes=adapter.magnitudes, norms=norms)
    case.network.refresh(adapter)
    assert case.train() == pytest.approx(wanted, rel=LOSS_LIMIT)
    assert all(np.any(case.gradients.dB(name)) for name in adapter.pairs)


def test_generation_is_trainings_forward_pass(tmp_path):
    case = dora_case(tmp_path / "model.gguf", rows=1, ctx=20, type="F32")
    decoder = Decoder(case.network, case.adapter, 20, 1, chunk=8)
    tokens = case.tokens[0]
    logits = np.concatenate([decoder.logits(x) for x in decoder.outputs(tokens)]).astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    counted = case.targets[0] >= 0
    loss = -log_p[np.flatnonzero(counted), case.targets[0][counted]].mean()
    assert loss == pytest.approx(case.train(), rel=1e-5)
    again = Decoder(case.network, case.adapter, 20, 1)
    again.append(tokens[:-1])
    np.testing.assert_allclose(again.append(tokens[-1:]), logits[-1], rtol=1e-4, atol=1e-4)


def test_dropout_sees_the_magnitudes(tmp_path):
    """The gradient is that of the thinned adapter, norms of V included; dropped inputs get none."""
    case = dora_case(tmp_path / "model.gguf", targets=["attn_v", "ffn_down"])
    dropout = Dropout(case.adapter, 0.3, seed=1)
    dropout.draw(2)
    case.network.refresh(case.adapter)
    trainer = Trainer(case.network, dropout.thinned, case.tokens.size, Strategy(2), 1)
    n = int((case.targets >= 0).sum())
    loss = trainer.loss_and_gradients(batch_of(case.tokens, case.targets), 1 / n, case.gradients) / n
    dropout.backward(case.gradients)
    thinned = {name: [part.astype(np.float64) for part in pair] for name, pair in dropout.thinned.pairs.items()}
    weights = base_weights(case.gguf)
    norms = norms_of_adapted(weights, thinned, case.adapter.scale, case.adapter.magnitudes)
    wanted = plain_loss(weights, thinned, case.adapter.scale, case.hp, case.tokens, case.targets,
                        magnitudes=case.adapter.magnitudes, norms=norms)
    assert loss == pytest.approx(wanted, rel=LOSS_LIMIT)
    for name, mask in dropout.masks.items():
        assert not case.gradients.dA(name)[:, mask == 0].any() and case.gradients.magnitudes[name].all()
