"""Models for the benches: geometries of real ones with random weights, made once and kept in bench/models/.

    python bench/models.py 160m 1b 7b 30b-a3b [--type Q8_0]

Speed does not depend on what the weights are, so each matrix is drawn from a pool of random rows of its width.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from geometry import GEOMETRIES
from released import RELEASES, qwen3_30b_a3b

from lorafast.gguf.types import TRAINABLE, GGMLType
from lorafast.gguf.writer import TensorToWrite, write_gguf

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))
from make_models import F32, STRING, U32, random_blocks, spm_vocabulary  # noqa: E402

MODELS = ROOT / "bench" / "models"
POOL_ROWS = 512
CHUNK_ROWS = 2048
RELEASED = {"30b-a3b": RELEASES["Qwen3-30B-A3B"], "30b-a3b-4": qwen3_30b_a3b(n_layer=4)}
"""Models with experts: Qwen3-30B-A3B, and its lowest four blocks."""


def make_model(name: str, type: str = "", folder: Path = MODELS) -> Path:
    """The path of the model, which is written where it is missing. type: of its matrices; "": the usual one."""
    released = RELEASED.get(name)
    ggml_type = GGMLType[type or ("Q4_K" if released else "Q8_0")]
    path = folder / f"{name}-{ggml_type.label.lower()}.gguf"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"writing {path}", file=sys.stderr)
    metadata = released.metadata() if released else metadata_of(name, ggml_type)
    tensors = released.tensors(ggml_type) if released else tensors_of(name, ggml_type)
    rng, pools = np.random.default_rng(0), Pools()
    write_gguf(path, metadata, [pools.filled(tensor, rng) for tensor in tensors])
    return path


class Pools:
    """Random rows by type and width."""

    def __init__(self) -> None:
        self.rows: dict[tuple[GGMLType, int], np.ndarray] = {}

    def filled(self, tensor: TensorToWrite, rng: np.random.Generator) -> TensorToWrite:
        """The same tensor with values: norms are ones."""
        *N, K = tensor.shape
        if not N:
            return replace(tensor, data=np.ones(K, np.float32))
        if tensor.type is GGMLType.F32:         # few, and they should differ
            return replace(tensor, data=rng.standard_normal(tensor.shape, np.float32) * K**-0.5)
        if (tensor.type, K) not in self.rows:
            self.rows[tensor.type, K] = random_blocks(rng, tensor.type, POOL_ROWS, K, K**-0.5)
        pool = self.rows[tensor.type, K]

        def chunks() -> Iterator[np.ndarray]:
            for begin in range(0, prod(N), CHUNK_ROWS):
                yield pool[rng.integers(0, POOL_ROWS, min(CHUNK_ROWS, prod(N) - begin))]

        return replace(tensor, data=chunks)


def tensors_of(name: str, type: GGMLType) -> list[TensorToWrite]:
    """Of a llama, without values."""
    geometry = GEOMETRIES[name]
    C, norms = geometry.n_embd, [f"blk.{layer}.{branch}_norm" for layer in range(geometry.n_layer)
                                 for branch in ("attn", "ffn")]
    matrices = [("token_embd.weight", geometry.n_vocab, C), *geometry.matrices]
    return [*(TensorToWrite(tensor, type, (N, K), ()) for tensor, N, K in matrices),
            *(TensorToWrite(f"{norm}.weight", GGMLType.F32, (C,), ()) for norm in (*norms, "output_norm"))]


def metadata_of(name: str, type: GGMLType) -> list[tuple[str, Any, Any]]:
    geometry = GEOMETRIES[name]
    return [
        ("general.architecture", STRING, "llama"),
        ("general.name", STRING, f"random weights, {name}"),
        ("llama.vocab_size", U32, geometry.n_vocab),
        ("llama.context_length", U32, 4096),
        ("llama.embedding_length", U32, geometry.n_embd),
        ("llama.block_count", U32, geometry.n_layer),
        ("llama.feed_forward_length", U32, geometry.n_ff),
        ("llama.rope.dimension_count", U32, geometry.n_embd // geometry.n_head),
        ("llama.attention.head_count", U32, geometry.n_head),
        ("llama.attention.head_count_kv", U32, geometry.n_head_kv),
        ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        ("general.file_type", U32, type.weights.file_type),
        *spm_vocabulary(geometry.n_vocab),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=[*GEOMETRIES, *RELEASED])
    parser.add_argument("--type", default="", choices=[type.name for type in TRAINABLE])
    args = parser.parse_args()
    for name in args.names:
        print(make_model(name, args.type))


if __name__ == "__main__":
    main()
