"""--init-method eva: A holds the principal directions of each matrix's inputs, and a run with it goes on exactly."""
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from make_models import make_tiny

from lorafast import cli
from lorafast.adapters import BaseModel, read_adapter
from lorafast.adapters.checkpoint import read_checkpoint
from lorafast.data.batches import Batch
from lorafast.gguf.reader import open_model
from lorafast.network.hparams import read_hparams
from lorafast.network.linear import Group
from lorafast.network.lora import Adapter, PairSpec, default_ranks, specs_for
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
    ranks = {spec.name: spec.rank for spec in adapter.specs}
    eva.initialise(adapter, eva.look(trainer, ranks, batches))
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


def test_ranks_go_where_directions_explain_most():
    specs = [PairSpec(name, "linear", 8, n_out, 2) for name, n_out in (("a", 8), ("b", 8), ("c", 4), ("d", 4))]
    specs.append(PairSpec("norm", "norm", 8, 1, 1))
    shares = {"a": [0.9, 0.05, 0.04], "bc": [0.6, 0.2, 0.1, 0.05, 0.05], "d": [0.04]}
    groups = [Group(*[SimpleNamespace(name=name, weight=None, tensor=SimpleNamespace(name=name)) for name in names])
              for names in shares]
    found = {group: SimpleNamespace(shares=of.copy) for group, of in zip(groups, shares.values())}
    assert eva.redistributed(specs, found, 2) == {"a": 2, "b": 3, "c": 3, "d": 0}, "eight in all; d explains least"
    assert eva.redistributed(specs, found, 1) == {"a": 2, "b": 2, "c": 2, "d": 1}, "there are no more directions"
    ranks = {spec.name: spec.rank for spec in eva.largest(specs, 2)}
    assert ranks == {"a": 4, "b": 4, "c": 1, "d": 1, "norm": 1}
    for rho in (1, 1.5, 2, 3):
        ranks = eva.redistributed(specs, found, rho)
        n_params = sum(ranks.get(spec.name, 1) * (spec.n_in + spec.n_out) for spec in specs)
        assert n_params <= sum(spec.n_params for spec in eva.largest(specs, rho))


REDISTRIBUTED = ["--init-method", "eva", "--eva-batches", "2", "--eva-rho", "2"]


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_tiny(Path("tiny.gguf"))
    Path("a.jsonl").write_text("".join(json.dumps({"text": f"the love of thy sweet {i}"}) + "\n" for i in range(9)))
    return ["finetune", "--model-base", "tiny.gguf", "--train-data", "a.jsonl", "--ctx", "16", "--batch", "2",
            "--threads", "1", "--lora-r", "4", "--schedule", "constant", "-s", "1"]


def test_a_run_with_redistributed_ranks(command, capsys):
    whole = [*command, *REDISTRIBUTED, "--lora-out", "whole.gguf", "--lora-out", "whole/", "--lora-out", "whole.bin"]
    assert cli.main([*whole, "--run", "whole-run", "--adam-iter", "4"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "56 in all matrices together" in said and "at most" in said
    checkpoint = read_checkpoint("whole-run/checkpoint-LATEST.gguf")
    ranks = {name: len(a) for name, (a, _) in checkpoint.pairs.items()}
    assert sum(ranks.values()) == 14 * 4 and len(set(ranks.values())) > 1 and max(ranks.values()) <= 8
    base = BaseModel.from_gguf(open_model("tiny.gguf"))
    for path in ("whole.gguf", "whole", "whole.bin"):
        adapter = read_adapter(path, base)
        assert {name: len(a) for name, (a, _) in adapter.pairs.items()} == ranks
        for name, (a, b) in adapter.pairs.items():
            wanted_a, wanted_b = checkpoint.pairs[name]
            np.testing.assert_allclose(adapter.scale * b.T @ a, wanted_b.T @ wanted_a, rtol=1e-5, atol=1e-9)
    limited = [*command, *REDISTRIBUTED, "--mem-limit", "60%"]
    assert cli.main([*limited, "--run", "parts", "--adam-iter", "2"]) == 0
    assert cli.main(["finetune", "--run", "parts", "--resume", "--adam-iter", "4"]) == 0
    assert Path("whole.gguf").read_bytes() == Path("parts/adapter.gguf").read_bytes()
    assert cli.main(["plan", *command[1:], *REDISTRIBUTED]) == 0
    assert "eva redistributes the ranks" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("argument, message", [
    (["--init-lora", "a.gguf", "--init-method", "eva"], "--init-method: --init-lora brings its own"),
    (["--eva-rho", "2"], "--eva-rho 2: ranks are redistributed by --init-method eva only"),
    (["--init-method", "eva", "--eva-rho", "0.5"], "--eva-rho")])
def test_options_that_contradict_each_other(argument, message, capsys):
    assert cli.main(["finetune", "--model-base", "x", *argument]) == 2
    assert message in capsys.readouterr().err
