"""--init-method eva: A holds the principal directions of each matrix's inputs, and a run with it goes on exactly."""
import json
from pathlib import Path

import numpy as np
import pytest
from make_models import make_tiny

from lorafast import cli
from lorafast.adapters.checkpoint import read_checkpoint
from lorafast.data.batches import Batch
from lorafast.gguf.reader import open_model
from lorafast.network.hparams import read_hparams
from lorafast.network.lora import Adapter, default_ranks, specs_for
from lorafast.network.network import Network
from lorafast.network.trainer import Strategy, Trainer
from lorafast.training import eva


def test_directions_are_those_of_all_inputs_together(tmp_path):
    gguf = open_model(make_tiny(tmp_path / "tiny.gguf"))
    hparams = read_hparams(gguf)
    adapter = Adapter(specs_for(hparams.tensor_shapes(), default_ranks(3), ("attn", "ffn")), 3, 3)
    adapter.initialise(1)
    network = Network(gguf, hparams, 32, "float32")
    trainer = Trainer(network, adapter, 64, Strategy(1), 1)
    rng, group = np.random.default_rng(0), network.blocks[1].groups[0]
    batches = []
    for _ in range(3):
        tokens = rng.integers(3, 380, 60, dtype=np.int32)
        batches.append(Batch(tokens, tokens, np.array([0, 30, 60], np.int32), 2, False))
    seen, forward = [], group.forward
    group.forward = lambda ys, h, x, *more, **named: seen.append(x.copy()) or forward(ys, h, x, *more, **named)
    eva.initialise(adapter, trainer, batches)
    _, values, vectors = np.linalg.svd(np.concatenate(seen), full_matrices=False)
    for linear in group.linears:
        a = adapter.A(linear.name)
        np.testing.assert_allclose(a @ a.T, np.eye(3), atol=1e-5)
        explained = np.linalg.norm(np.concatenate(seen) @ a.T)
        assert explained > 0.999 * np.linalg.norm(values[:3]), "though it was found batch by batch"
        assert np.abs(np.diag(a @ vectors[:3].T)).min() > 0.99
        assert not adapter.B(linear.name).any()
    assert "forward" not in vars(network.blocks[0].groups[0]), "the watchers are gone"


def test_a_run_goes_on_exactly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_tiny(Path("tiny.gguf"))
    Path("a.jsonl").write_text("".join(json.dumps({"text": f"the love of thy sweet {i}"}) + "\n" for i in range(9)))
    run = ["finetune", "--model-base", "tiny.gguf", "--train-data", "a.jsonl", "--ctx", "16", "--batch", "2",
           "--threads", "1", "--lora-r", "2", "--schedule", "constant", "-s", "1", "--init-method", "eva",
           "--eva-batches", "2"]
    assert cli.main([*run, "--run", "whole", "--adam-iter", "4"]) == 0
    assert cli.main([*run, "--run", "parts", "--adam-iter", "2"]) == 0
    assert cli.main(["finetune", "--run", "parts", "--resume", "--adam-iter", "4"]) == 0
    assert read_checkpoint("whole/checkpoint-LATEST.gguf").state.iteration == 4
    assert Path("whole/adapter.gguf").read_bytes() == Path("parts/adapter.gguf").read_bytes()
    assert cli.main([*run[:-4], "--run", "other", "--adam-iter", "4"]) == 0
    assert Path("whole/adapter.gguf").read_bytes() != Path("other/adapter.gguf").read_bytes()


@pytest.mark.parametrize("argument", [["--init-lora", "a.gguf", "--init-method", "eva"]])
def test_an_adapter_to_start_from_brings_its_own_values(argument, capsys):
    assert cli.main(["finetune", "--model-base", "x", *argument]) == 2
    assert "--init-method: --init-lora brings its own" in capsys.readouterr().err
