"""The golden vectors for those who port (tests/golden/make_vectors.py): the kernels give what they say."""
from __future__ import annotations

import importlib
import json
import pkgutil
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from make_models import make_tiny
from numerics import nmse

import lorafast.kernels
from lorafast.data.batches import Batch
from lorafast.gguf.quants import dequantize
from lorafast.gguf.reader import open_model
from lorafast.gguf.types import GGMLType
from lorafast.kernels.embedding import dequantize_rows
from lorafast.kernels.linear import ExpertWeights, Weight
from lorafast.network.hparams import read_hparams
from lorafast.network.lora import Adapter, Gradients, default_ranks, specs_for
from lorafast.network.network import Network
from lorafast.network.trainer import Strategy, Trainer
from lorafast.training.optim import Adam, Group

FOLDER = Path(__file__).parent / "golden"
INDEX = json.loads(FOLDER.joinpath("vectors.json").read_text())
BYTES = FOLDER.joinpath("vectors.bin").read_bytes()
OP_LIMIT, LINEAR_LIMIT = 1e-12, 2e-8      # NMSE, as in kernels/test_contracts.py
PRODUCTS = ("linear", "experts")
STEP_LIMIT = 1e-5                         # of loss, norm and each gradient, relative; measured 1e-6


def array(entry: dict) -> np.ndarray:
    n = int(np.prod(entry["shape"]))
    dtype = np.dtype(entry["dtype"]).newbyteorder("<")
    return np.frombuffer(BYTES, dtype, n, entry["offset"]).reshape(entry["shape"]).astype(dtype.newbyteorder("="))


def decoded(value):
    if isinstance(value, list):
        items = [decoded(item) for item in value]
        return tuple(items) if len(items) == 2 and all(isinstance(item, np.ndarray) for item in items) else items
    if isinstance(value, dict):
        return weight(value) if "blocks" in value else array(value)
    return value


def weight(entry: dict) -> Weight | ExpertWeights:
    blocks = array(entry["blocks"])
    if "E" in entry:
        return ExpertWeights(blocks.reshape(entry["E"], -1, blocks.shape[1]), entry["type"], entry["K"])
    return Weight(blocks, entry["type"], entry["K"])


def arrays(value) -> list[np.ndarray]:
    return [value] if isinstance(value, np.ndarray) else [part for item in value for part in arrays(item)]


def public_ops() -> dict[str, Callable]:
    names = {module.name for module in pkgutil.iter_modules(lorafast.kernels.__path__)} - {"build_info", "pages"}
    modules = [importlib.import_module(f"lorafast.kernels.{name}") for name in sorted(names)]
    return {name: value for module in modules for name, value in vars(module).items()
            if type(value).__name__ == "cython_function_or_method"
            and not name.startswith("_") and not name.endswith("_scratch_bytes")}


OPS = public_ops()


@pytest.mark.parametrize("entry", INDEX["ops"], ids=lambda entry: entry["op"])
def test_op(entry):
    arguments = {name: decoded(value) for name, value in entry["arguments"].items()}
    if entry["op"].startswith(PRODUCTS):
        lists = ("ys", "dys", "weights", "biases")
        arguments = {name: list(value) if name in lists else value for name, value in arguments.items()}
    returned = OPS[entry["op"]](**arguments, n_threads=2)
    written = [part for name in entry["overwrites"] + entry["adds_to"] + entry["changes"]
               for part in arrays(arguments[name])]
    got = written if returned is None else [np.array(returned), *written]
    limit = LINEAR_LIMIT if entry["op"].startswith(PRODUCTS) else OP_LIMIT
    for value, expected in zip(got, entry["results"], strict=True):
        assert nmse(value, array(expected)) < limit


@pytest.mark.parametrize("entry", INDEX["types"], ids=lambda entry: entry["name"])
def test_type(entry):
    blocks, values = array(entry["blocks"]), array(entry["values"])
    np.testing.assert_array_equal(dequantize(blocks, GGMLType(entry["type"])), values)
    unpacked = np.empty_like(values)
    dequantize_rows(unpacked, blocks, entry["type"], 1)
    np.testing.assert_array_equal(unpacked, values)


def test_step(tmp_path):
    step = INDEX["step"]
    gguf = open_model(make_tiny(tmp_path / "tiny.gguf", n_embd=32, n_ff=48, n_vocab=260, type="F32"))
    for name, weight in step["weights"].items():
        np.testing.assert_array_equal(gguf.tensors[name].to_float32(), array(weight))
    hp = read_hparams(gguf)
    adapter = Adapter(specs_for(hp.tensor_shapes(), default_ranks(2), None), alpha=4, r=2)
    assert adapter.scale == step["scale"] and adapter.pairs.keys() == step["adapter"].keys()
    for name, pair in adapter.pairs.items():
        pair[0][:], pair[1][:] = array(step["adapter"][name]["A"]), array(step["adapter"][name]["B"])
    tokens, targets = array(step["tokens"]), array(step["targets"])
    network, gradients = Network(gguf, hp, tokens.shape[1]), Gradients(adapter)
    network.refresh(adapter)
    begin = np.arange(0, tokens.size + 1, tokens.shape[1], dtype=np.int32)
    n = int((targets >= 0).sum())
    trainer = Trainer(network, adapter, tokens.size, Strategy(n_kept=hp.n_layer), 2)
    batch = Batch(tokens.ravel(), targets.ravel(), begin, len(tokens), False)
    assert trainer.loss_and_gradients(batch, 1 / n, gradients) / n == pytest.approx(step["loss"], rel=STEP_LIMIT)
    for name, pair in gradients.pairs.items():
        for letter, gradient in zip("AB", pair, strict=True):
            expected = array(step["adapter"][name][f"d{letter}"])
            assert np.linalg.norm(gradient - expected) < STEP_LIMIT * np.linalg.norm(expected), (name, letter)

    adam = step["adam"]
    optimiser = Adam(adam["alpha"], adam["beta1"], adam["beta2"], adam["decay"], adam["clip"])
    m, v = np.zeros((2, adapter.n_params), np.float32)
    norm = optimiser.step(adapter.params, m, v, gradients.flat, groups=[Group(0, adapter.n_params, decays=True)],
                          iteration=adam["iteration"], schedule=1.0, n_threads=1)
    assert norm == pytest.approx(step["norm"], rel=STEP_LIMIT)
    for name, pair in adapter.pairs.items():
        for letter, part in zip("AB", pair, strict=True):
            np.testing.assert_allclose(part, array(step["adapter"][name][f"{letter}_after"]), atol=1e-6)


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler, cc")
def test_example_port(tmp_path):
    source = FOLDER.parents[1] / "examples" / "port" / "port.c"
    assert len(source.read_text().splitlines()) < 300
    subprocess.run(["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", tmp_path / "port", source, "-lm"], check=True)
    run = subprocess.run([tmp_path / "port", FOLDER], capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.count("ok ") == 12, run.stdout + run.stderr


def test_every_op_and_type_is_there():
    assert {entry["op"] for entry in INDEX["ops"]} == OPS.keys()
    assert {entry["type"] for entry in INDEX["types"]} == {int(type) for type in GGMLType if type.is_trainable}


def test_size():
    assert len(BYTES) + FOLDER.joinpath("vectors.json").stat().st_size <= 2_500_000
