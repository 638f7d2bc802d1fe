"""Makes tiny llama models for tests: random weights of any trainable type, a made-up vocabulary.

    model = make_tiny(tmp_path / "tiny.gguf", type="Q4_K", n_embd=256, n_ff=256)
"""
from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from quant_blocks import set_iq1_m_scale

from lorafast.gguf.quants import LAYOUTS, QUANTIZERS, dequantize, quantize
from lorafast.gguf.reader import GGUFFile
from lorafast.gguf.types import GGMLType, GGUFValueType
from lorafast.gguf.writer import TensorToWrite, write_gguf

U32, F32, BOOL, STRING = GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.BOOL, GGUFValueType.STRING
STRINGS = (GGUFValueType.ARRAY, GGUFValueType.STRING)
FLOATS = (GGUFValueType.ARRAY, GGUFValueType.FLOAT32)
INTS = (GGUFValueType.ARRAY, GGUFValueType.INT32)
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6

PIECES = "the and of to in that is my love thou thy with not for sweet all".split()

def make_tiny(path: str | os.PathLike, *, n_embd: int = 64, n_head: int = 4, n_head_kv: int = 2, n_ff: int = 160,
              n_layer: int = 2, n_vocab: int = 384, type: str = "Q8_0", tied: bool = False, seed: int = 0,
              key_length: int | None = None, rope_freqs: bool = False, vocab: str = "SPM", pre: str = "gpt-2",
              n_ctx: int = 128, embd_std: float = 0.5, norm_rms_eps: float = 1e-5, rope_freq_base: float = 10000.0,
              rope_scale_linear: float | None = None, architecture: str = "llama", types: dict[str, str] | None = None,
              metadata: list[tuple[str, Any, Any]] | None = None, experts: int = 0) -> Path:
    """Writes a llama model with random weights to `path` and returns it.

    type        of every matrix (rows are whole blocks: K-quants and IQ4_XS need multiples of 256 for n_embd and n_ff)
    types       types of single tensors by name, `{"blk.0.attn_v.weight": "Q6_K"}`
    tied        no output.weight
    key_length  head size, where it is not n_embd / n_head
    rope_freqs  with a rope_freqs.weight, as Llama 3.1 has
    vocab       "SPM" (Llama-like, with byte tokens) or "BPE" (gpt-2-like, with `pre` as its pre-tokenizer)
    n_vocab     at least 260
    embd_std    standard deviation of the token embedding
    metadata    more keys, (key, value type, value); one with the name of a key here replaces it
    experts     as many, of which two see a token, in the place of each feed-forward network
    """
    rng = np.random.default_rng(seed)
    head_size = key_length or n_embd // n_head
    types = types or {}
    tensors: list[TensorToWrite] = []

    def matrix(name: str, rows: int, columns: int, std: float) -> None:
        ggml_type = GGMLType[types.get(name, type)]
        data = random_blocks(rng, ggml_type, rows, columns, std)
        tensors.append(TensorToWrite(name, ggml_type, (rows, columns), data))

    def stacked(name: str, rows: int, columns: int) -> None:
        ggml_type = GGMLType[types.get(name, type)]
        data = random_blocks(rng, ggml_type, experts * rows, columns, columns**-0.5)
        tensors.append(TensorToWrite(name, ggml_type, (experts, rows, columns), data))

    def norm(name: str) -> None:
        gain = rng.uniform(0.5, 1.5, n_embd).astype(np.float32)
        tensors.append(TensorToWrite(name, GGMLType.F32, (n_embd,), gain))

    matrix("token_embd.weight", n_vocab, n_embd, embd_std)
    if rope_freqs:
        factors = np.linspace(1, 8, head_size // 2, dtype=np.float32)
        tensors.append(TensorToWrite("rope_freqs.weight", GGMLType.F32, (head_size // 2,), factors))
    for layer in range(n_layer):
        blk = f"blk.{layer}."
        norm(blk + "attn_norm.weight")
        matrix(blk + "attn_q.weight", n_head * head_size, n_embd, n_embd**-0.5)
        matrix(blk + "attn_k.weight", n_head_kv * head_size, n_embd, n_embd**-0.5)
        matrix(blk + "attn_v.weight", n_head_kv * head_size, n_embd, n_embd**-0.5)
        matrix(blk + "attn_output.weight", n_embd, n_head * head_size, (n_head * head_size)**-0.5)
        norm(blk + "ffn_norm.weight")
        for name, rows, columns in (("gate", n_ff, n_embd), ("up", n_ff, n_embd), ("down", n_embd, n_ff)):
            if experts:
                stacked(f"{blk}ffn_{name}_exps.weight", rows, columns)
            else:
                matrix(f"{blk}ffn_{name}.weight", rows, columns, columns**-0.5)
        if experts:
            router = random_blocks(rng, GGMLType.F32, experts, n_embd, n_embd**-0.5)
            tensors.append(TensorToWrite(blk + "ffn_gate_inp.weight", GGMLType.F32, (experts, n_embd), router))
    norm("output_norm.weight")
    if not tied:
        matrix("output.weight", n_vocab, n_embd, n_embd**-0.5)

    def key(name: str) -> str:
        return f"{architecture}.{name}"

    values: list[tuple[str, Any, Any]] = [
        ("general.architecture", STRING, architecture),
        ("general.name", STRING, f"tiny {type}"),
        (key("vocab_size"), U32, n_vocab),
        (key("context_length"), U32, n_ctx),
        (key("embedding_length"), U32, n_embd),
        (key("block_count"), U32, n_layer),
        (key("feed_forward_length"), U32, n_ff),
        (key("rope.dimension_count"), U32, head_size),
        (key("attention.head_count"), U32, n_head),
        (key("attention.head_count_kv"), U32, n_head_kv),
        (key("attention.layer_norm_rms_epsilon"), F32, norm_rms_eps),
        (key("rope.freq_base"), F32, rope_freq_base),
        ("general.file_type", U32, GGMLType[type].weights.file_type),
    ]
    if experts:
        values += [(key("expert_count"), U32, experts), (key("expert_used_count"), U32, 2)]
    if key_length is not None:
        values += [(key("attention.key_length"), U32, key_length), (key("attention.value_length"), U32, key_length)]
    if rope_scale_linear is not None:
        values += [(key("rope.scaling.type"), STRING, "linear"), (key("rope.scaling.factor"), F32, rope_scale_linear)]
    values += spm_vocabulary(n_vocab) if vocab == "SPM" else bpe_vocabulary(n_vocab, pre)
    values.append(("general.quantization_version", U32, 2))
    replaced = {name: (name, value_type, value) for name, value_type, value in metadata or []}
    values = [replaced.pop(item[0], item) for item in values] + list(replaced.values())
    write_gguf(path, values, tensors)
    return Path(path)


def split_model(path: Path, n_parts: int) -> Path:
    """Divides a model as llama.cpp's gguf-split --no-tensor-first-split does, beside it; returns the first part."""
    model = GGUFFile(path)
    metadata = [(key, types if types[1] is not None else types[0], model.metadata[key])
                for key, types in model.value_types.items()]
    tensors = [TensorToWrite(tensor.name, tensor.type, tensor.shape, tensor.data) for tensor in model.tensors.values()]
    share = -(-len(tensors) // (n_parts - 1))
    for number in range(n_parts):
        split = [("split.no", GGUFValueType.UINT16, number), ("split.count", GGUFValueType.UINT16, n_parts),
                 ("split.tensors.count", GGUFValueType.INT32, len(tensors))]
        first = (number - 1) * share
        write_gguf(path.with_name(f"{path.stem}-{number + 1:05}-of-{n_parts:05}.gguf"),
                   [*(metadata if number == 0 else []), *split], tensors[first:first + share] if number else [])
    return path.with_name(f"{path.stem}-00001-of-{n_parts:05}.gguf")


def random_blocks(rng: np.random.Generator, type: GGMLType, rows: int, columns: int, std: float = 1.0) -> np.ndarray:
    """Random weights as stored, uint8 (rows, bytes per row), of about `std`; a scale of its own for each block."""
    if type in QUANTIZERS:
        block_scales = rng.uniform(0.5, 1.5, (rows, -(-columns // 32)))
        x = rng.standard_normal((rows, columns)) * np.repeat(block_scales, 32, axis=1)[:, :columns] * std
        return quantize(x.astype(np.float32), type)
    # Random bits are valid quants and sub-scales in all other formats; only the float16 scales must be sane.
    blocks = rng.integers(0, 256, (rows * columns // type.block_size, type.type_size), dtype=np.uint8)
    typical, offset = typical_size(type)
    d = (std / typical * rng.uniform(0.5, 1.5, len(blocks))).astype(np.float16)
    set_scales(blocks, type, d, d * np.float16(offset))
    return blocks.reshape(rows, -1)


def set_scales(blocks: np.ndarray, type: GGMLType, d: np.ndarray, dmin: np.ndarray) -> None:
    """Writes the float16 scales d and, where the type has one, dmin (blocks,) into blocks, uint8 (blocks, bytes)."""
    fields = blocks.view(LAYOUTS[type])[:, 0]
    if type is GGMLType.IQ1_M:
        set_iq1_m_scale(fields, d)
    else:
        fields["d"] = d
    if "dmin" in fields.dtype.names:
        fields["dmin"] = dmin


@cache
def typical_size(type: GGMLType) -> tuple[float, float]:
    """The standard deviation of the values in blocks of random bits with d = 1, and the dmin for a mean of zero."""
    blocks = np.random.default_rng(0).integers(0, 256, (256, type.type_size), dtype=np.uint8)
    one, zero = np.ones(256, np.float16), np.zeros(256, np.float16)
    set_scales(blocks, type, one, zero)
    levels = dequantize(blocks, type)
    set_scales(blocks, type, zero, one)
    minima = dequantize(blocks, type)
    offset = -levels.mean() / minima.mean() if minima.any() else 0.0
    return float((levels + offset * minima).std()), float(offset)


def spm_vocabulary(n_vocab: int = 384) -> list[tuple[str, Any, Any]]:
    """SentencePiece metadata: <unk>, 2 controls, 256 bytes, what builds PIECES after a space, letters, fillers."""
    space = "\N{LOWER ONE EIGHTH BLOCK}"
    starts = [space + piece[:end] for piece in PIECES for end in range(1, len(piece) + 1)]
    normal = list(dict.fromkeys([*starts, space, *"etaoinshrdlucmfwygpbvkxqjz"]))       # each once, most probable first
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *normal]
    tokens += [f"[filler{i}]" for i in range(n_vocab - len(tokens))]
    n_special = 3 + 256
    return [
        ("tokenizer.ggml.model", STRING, "llama"),
        ("tokenizer.ggml.tokens", STRINGS, tokens[:n_vocab]),
        ("tokenizer.ggml.scores", FLOATS, [0.0] * n_special + [-float(rank) for rank in range(n_vocab - n_special)]),
        ("tokenizer.ggml.token_type", INTS,
         [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (n_vocab - n_special)),
        ("tokenizer.ggml.bos_token_id", U32, 1),
        ("tokenizer.ggml.eos_token_id", U32, 2),
        ("tokenizer.ggml.unknown_token_id", U32, 0),
    ]


def bpe_vocabulary(n_vocab: int = 384, pre: str = "gpt-2") -> list[tuple[str, Any, Any]]:
    """Byte-level BPE metadata: 256 bytes, merges that build PIECES after a space and without, fillers, 2 controls."""
    byte_to_char = gpt2_byte_characters()
    tokens = [byte_to_char[byte] for byte in range(256)]
    merges: list[str] = []
    for piece in [prefix + piece for prefix in (byte_to_char[32], "") for piece in PIECES]:
        for end in range(2, len(piece) + 1):
            if piece[:end] not in tokens and len(tokens) < n_vocab - 2:
                tokens.append(piece[:end])
                merges.append(f"{piece[:end - 1]} {piece[end - 1]}")
    tokens += [f"[filler{i}]" for i in range(n_vocab - 2 - len(tokens))] + ["<|begin|>", "<|end|>"]
    return [
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, pre),
        ("tokenizer.ggml.tokens", STRINGS, tokens),
        ("tokenizer.ggml.token_type", INTS, [NORMAL] * (n_vocab - 2) + [CONTROL] * 2),
        ("tokenizer.ggml.merges", STRINGS, merges),
        ("tokenizer.ggml.bos_token_id", U32, n_vocab - 2),
        ("tokenizer.ggml.eos_token_id", U32, n_vocab - 1),
    ]


def gpt2_byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: itself where printable in Latin-1, else a character from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{byte: chr(byte) for byte in printable}, **{byte: chr(256 + i) for i, byte in enumerate(others)}}
