"""Models for the benches: geometries of real ones with random weights, made once and kept in bench/models/.

    python bench/models.py 160m 1b 7b [--type Q8_0]

Speed does not depend on what the weights are, so each matrix is drawn from a pool of random rows of its width.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from geometry import GEOMETRIES

from lorafast.gguf.types import TRAINABLE, GGMLType
from lorafast.gguf.writer import TensorToWrite, write_gguf

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))
from make_models import F32, STRING, U32, random_blocks, spm_vocabulary  # noqa: E402

MODELS = ROOT / "bench" / "models"
POOL_ROWS = 512
CHUNK_ROWS = 2048


def make_model(name: str, type: str = "Q8_0", folder: Path = MODELS) -> Path:
    """The path of the model, which is written where it is missing."""
    path = folder / f"{name}-{type.lower()}.gguf"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"writing {path}", file=sys.stderr)
    geometry, rng, ggml_type = GEOMETRIES[name], np.random.default_rng(0), GGMLType[type]
    pools: dict[int, np.ndarray] = {}

    def matrix(tensor: str, N: int, K: int) -> TensorToWrite:
        if K not in pools:
            pools[K] = random_blocks(rng, ggml_type, POOL_ROWS, K, K**-0.5)

        def chunks() -> Iterator[np.ndarray]:
            for begin in range(0, N, CHUNK_ROWS):
                yield pools[K][rng.integers(0, POOL_ROWS, min(CHUNK_ROWS, N - begin))]

        return TensorToWrite(tensor, ggml_type, (N, K), chunks)

    def norm(tensor: str) -> TensorToWrite:
        return TensorToWrite(tensor, GGMLType.F32, (geometry.n_embd,), np.ones(geometry.n_embd, np.float32))

    tensors = [matrix("token_embd.weight", geometry.n_vocab, geometry.n_embd)]
    tensors += [matrix(*item) for item in geometry.matrices]
    for layer in range(geometry.n_layer):
        tensors += [norm(f"blk.{layer}.attn_norm.weight"), norm(f"blk.{layer}.ffn_norm.weight")]
    tensors += [norm("output_norm.weight")]
    write_gguf(path, [
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
        ("general.file_type", U32, ggml_type.weights.file_type),
        *spm_vocabulary(geometry.n_vocab),
    ], tensors)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=GEOMETRIES)
    parser.add_argument("--type", default="Q8_0", choices=[type.name for type in TRAINABLE])
    args = parser.parse_args()
    for name in args.names:
        print(make_model(name, args.type))


if __name__ == "__main__":
    main()
