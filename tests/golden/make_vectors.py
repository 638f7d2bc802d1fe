"""Writes vectors.bin and vectors.json: golden vectors for those who port lorafast, in any language.

    python tests/golden/make_vectors.py        needs PyTorch, for the gradients of the training step

vectors.bin holds arrays, little-endian, in C order. vectors.json says where: an array is
{"dtype": "float32", "shape": [3, 7], "offset": 128}, its offset in bytes. It has three parts.

    ops     each op of lorafast.kernels: its arguments by name (arrays, numbers, null; the weights of linear as blocks
            and a type, those of experts one behind the other), which arrays it overwrites, adds to or changes, and what
            they hold afterwards. n_threads is left out.
    types   each weight type: two rows of blocks as they lie in a file, and their values.
    step    a training step of a tiny model from top to bottom: its tensors and hyper-parameters, tokens and targets
            (-1: not counted), the adapter, the mean loss, the gradients and their norm, the adapter after one step of
            Adam.

Results of ops come from the NumPy twins, and loss and gradients from tests/plain_model.py by PyTorch's autograd:
float64 in either case, rounded to float32 at the end. tests/test_golden_vectors.py compares the kernels with them.
"""
from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "kernels"), str(TESTS.parent)]

from make_models import make_tiny, random_blocks  # noqa: E402
from plain_model import base_weights, plain_loss  # noqa: E402
from test_contracts import OPS, KnownExperts, KnownWeight, Op, as_float64, results  # noqa: E402

from lorafast.gguf.quants import dequantize  # noqa: E402
from lorafast.gguf.reader import open_model  # noqa: E402
from lorafast.gguf.types import GGMLType  # noqa: E402
from lorafast.network.hparams import read_hparams  # noqa: E402
from lorafast.network.lora import Adapter, default_ranks, specs_for  # noqa: E402
from lorafast.reference.adam import adam_step  # noqa: E402

ROWS = 3
ALPHA, BETA1, BETA2, EPS, DECAY, CLIP = 0.01, 0.9, 0.999, 1e-8, 0.1, 1.0


class Binary:
    """The bytes of vectors.bin."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0

    def add(self, array: np.ndarray) -> dict[str, Any]:
        """Where the array lies, for the index. Arrays begin at multiples of 8."""
        array = np.ascontiguousarray(array)
        entry = {"dtype": str(array.dtype), "shape": list(array.shape), "offset": self.size}
        data = array.astype(array.dtype.newbyteorder("<")).tobytes()
        data += bytes(-len(data) % 8)
        self.parts.append(data)
        self.size += len(data)
        return entry

    def encode(self, value: Any) -> Any:
        """An argument of an op, as JSON says it."""
        if isinstance(value, np.ndarray):
            return self.add(value)
        if isinstance(value, (list, tuple)):
            return [self.encode(item) for item in value]
        if isinstance(value, KnownWeight):
            return {"type": value.type, "K": value.K, "blocks": self.add(value.blocks)}
        if isinstance(value, KnownExperts):
            return {"type": value.type, "K": value.K, "E": value.E, "blocks": self.add(value.blocks)}
        return value


def op_entry(op: Op, binary: Binary) -> dict[str, Any]:
    width = op.widths[min(1, len(op.widths) - 1)]
    arguments = op.make(np.random.default_rng(0), ROWS, width)
    entry = {"op": op.name, "arguments": {name: binary.encode(value) for name, value in arguments.items()},
             "overwrites": op.out, "adds_to": op.accumulated, "changes": op.changed}
    exact = {name: as_float64(value) for name, value in arguments.items()}
    after = results(op, exact, op.twin(**exact, n_threads=1))
    return entry | {"results": [binary.add(np.asarray(value, np.float32)) for value in after]}


def type_entry(type: GGMLType, binary: Binary) -> dict[str, Any]:
    blocks = random_blocks(np.random.default_rng(int(type)), type, 2, type.block_size)
    return {"type": int(type), "name": type.name, "blocks": binary.add(blocks),
            "values": binary.add(dequantize(blocks, type))}


def step_entry(binary: Binary) -> dict[str, Any]:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        gguf = open_model(make_tiny(Path(folder) / "tiny.gguf", n_embd=32, n_ff=48, n_vocab=260, type="F32"))
        hp, weights = read_hparams(gguf), base_weights(gguf)
    adapter = Adapter(specs_for(hp.tensor_shapes(), default_ranks(2), None), alpha=4, r=2)
    rng = np.random.default_rng(0)
    adapter.params[:] = 0.1 * rng.standard_normal(adapter.n_params)
    tokens, targets = rng.integers(0, hp.n_vocab, (2, 2, 9)).astype(np.int32)
    targets[0, :2] = -1

    pairs = {name: [torch.tensor(part, dtype=torch.float64, requires_grad=True) for part in pair]
             for name, pair in adapter.pairs.items()}
    loss = plain_loss({name: torch.tensor(value) for name, value in weights.items()}, pairs, adapter.scale, hp,
                      tokens, targets, xp=torch)
    loss.backward()
    gradients = {name: [part.grad.numpy() for part in pair] for name, pair in pairs.items()}
    norm = float(np.sqrt(sum(np.sum(part**2) for pair in gradients.values() for part in pair)))
    entries = {}
    for name, pair in adapter.pairs.items():
        entry = entries[name] = {}
        for letter, part, gradient in zip("AB", pair, gradients[name], strict=True):
            after = part.astype(np.float64)
            adam_step(after, np.zeros_like(after), np.zeros_like(after), gradient, min(1.0, CLIP / norm), BETA1, BETA2,
                      ALPHA / (1 - BETA1), 1 / (1 - BETA2), EPS, DECAY * ALPHA, 1)
            entry |= {letter: binary.add(part), f"d{letter}": binary.add(gradient.astype(np.float32)),
                      f"{letter}_after": binary.add(after.astype(np.float32))}
    return {
        "hparams": {"n_layer": hp.n_layer, "n_embd": hp.n_embd, "n_head": hp.n_head, "n_head_kv": hp.n_head_kv,
                    "n_rot": hp.n_rot, "n_vocab": hp.n_vocab, "norm_rms_eps": hp.norm_rms_eps,
                    "rope_freq_base": hp.rope_freq_base, "rope_pairs": "(2j, 2j + 1)"},
        "weights": {name: binary.add(value.astype(np.float32)) for name, value in weights.items()},
        "tokens": binary.add(tokens), "targets": binary.add(targets),
        "scale": adapter.scale, "adapter": entries, "loss": loss.item(), "norm": norm,
        "adam": {"alpha": ALPHA, "beta1": BETA1, "beta2": BETA2, "eps": EPS, "decay": DECAY, "clip": CLIP,
                 "iteration": 1},
    }


def main() -> None:
    binary = Binary()
    index = {
        "ops": [op_entry(op, binary) for op in OPS],
        "types": [type_entry(type, binary) for type in GGMLType if type.is_trainable],
        "step": step_entry(binary),
    }
    folder = Path(__file__).parent
    folder.joinpath("vectors.bin").write_bytes(b"".join(binary.parts))
    folder.joinpath("vectors.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()
