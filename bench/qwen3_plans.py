"""What `lorafast plan` says of Qwen 3 in four sizes: the table in docs/models.md.

The files have the geometry of the real ones, a vocabulary of as many words, and holes for weights: they take no disk.

    python bench/qwen3_plans.py FOLDER
"""
from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from lorafast.gguf.types import GGMLType, GGUFValueType
from lorafast.gguf.writer import TensorToWrite, header

SIZES = {"0.6B": (1024, 28, 16, 3072), "1.7B": (2048, 28, 16, 6144), "4B": (2560, 36, 32, 9728),
         "8B": (4096, 36, 32, 12288)}
"""n_embd, n_layer, n_head, n_ff; each has 8 heads of keys and values, and heads of 128."""

N_VOCAB, N_HEAD_KV, D = 151936, 8, 128
LIMITS = {"8 GB": "6G", "16 GB": "13G"}
"""Of a machine, what it leaves to a run."""

OPTIONS = ("--preset", "modern", "--ctx", "1024", "--batch", "2", "--grad-acc", "1")


def tensors(size: str) -> list[TensorToWrite]:
    """Without data. The types are those of Q4_K_M, in the mean."""
    C, n_layer, n_head, F = SIZES[size]
    Q4_K, Q6_K, F32 = GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.F32
    shapes = [("token_embd.weight", Q6_K, (N_VOCAB, C)), ("output_norm.weight", F32, (C,))]
    if size == "8B":
        shapes.append(("output.weight", Q6_K, (N_VOCAB, C)))
    for layer in range(n_layer):
        fine = Q6_K if layer % 2 else Q4_K
        shapes += [(f"blk.{layer}.{name}.weight", type, shape) for name, type, shape in (
            ("attn_norm", F32, (C,)), ("attn_q", Q4_K, (n_head * D, C)), ("attn_k", Q4_K, (N_HEAD_KV * D, C)),
            ("attn_v", fine, (N_HEAD_KV * D, C)), ("attn_output", Q4_K, (C, n_head * D)), ("attn_q_norm", F32, (D,)),
            ("attn_k_norm", F32, (D,)), ("ffn_norm", F32, (C,)), ("ffn_gate", Q4_K, (F, C)), ("ffn_up", Q4_K, (F, C)),
            ("ffn_down", fine, (C, F)))]
    return [TensorToWrite(name, type, shape, ()) for name, type, shape in shapes]


def words() -> tuple[list[str], list[str]]:
    """Tokens, and the merges that make them: all pairs of the bytes' characters, and pairs with a third."""
    characters = [chr(code) for code in (*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100),
                                         *range(0x100, 0x144))]
    merges = [f"{a} {b}" for a in characters for b in characters]
    merges += [f"{a}{b} {c}" for a in characters[:5] for b in characters for c in characters]
    merges = merges[:N_VOCAB - len(characters) - 1]
    return [*characters, *(text.replace(" ", "") for text in merges), "<|endoftext|>"], merges


def write_with_holes(path: Path, size: str) -> None:
    C, n_layer, n_head, F = SIZES[size]
    U32, F32, STRING, ARRAY = (GGUFValueType[name] for name in ("UINT32", "FLOAT32", "STRING", "ARRAY"))
    tokens, merges = words()
    metadata = [
        ("general.architecture", STRING, "qwen3"), ("general.file_type", U32, 15),
        ("qwen3.context_length", U32, 40960), ("qwen3.embedding_length", U32, C), ("qwen3.block_count", U32, n_layer),
        ("qwen3.feed_forward_length", U32, F), ("qwen3.attention.head_count", U32, n_head),
        ("qwen3.attention.head_count_kv", U32, N_HEAD_KV), ("qwen3.attention.key_length", U32, D),
        ("qwen3.attention.value_length", U32, D), ("qwen3.attention.layer_norm_rms_epsilon", F32, 1e-6),
        ("qwen3.rope.freq_base", F32, 1e6), ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, "qwen2"), ("tokenizer.ggml.tokens", (ARRAY, STRING), tokens),
        ("tokenizer.ggml.token_type", (ARRAY, GGUFValueType.INT32), np.array([1] * (len(tokens) - 1) + [3], np.int32)),
        ("tokenizer.ggml.merges", (ARRAY, STRING), merges),
        ("tokenizer.ggml.eos_token_id", U32, len(tokens) - 1),
    ]
    matrices = tensors(size)
    before = header(metadata, matrices)
    path.write_bytes(before)
    os.truncate(path, sum(-(-nbytes // 32) * 32 for nbytes in (len(before), *(tensor.nbytes for tensor in matrices))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    text = folder / "book.txt"
    text.write_text("It is a truth universally acknowledged, that a text is as good as another. " * 2000)
    print("| model | file | machine | memory | of it weights | a step | tokens/s |\n|---|---|---|---|---|---|---|")
    for size in SIZES:
        path = folder / f"qwen3-{size}.gguf"
        write_with_holes(path, size)
        for machine, limit in LIMITS.items():
            plan = subprocess.run([sys.executable, "-m", "lorafast", "plan", "--model-base", path, "--train-data", text,
                                   *OPTIONS, "--mem-limit", limit], capture_output=True, text=True, check=True).stdout

            def found(pattern: str, plan: str = plan) -> str:
                return re.search(pattern, plan, re.MULTILINE)[1]

            print(f"| {size} | {path.stat().st_size / 1e9:.2f} GB | {machine} | {found(r'in all +(.* MB)')} | "
                  f"{found(r'weights in memory +(.*? MB)')} | {found(r'^  (.*) a step,')} | "
                  f"{found(r'a step, (.*) tokens/s')} |", flush=True)
            print(plan, file=sys.stderr)


if __name__ == "__main__":
    main()
