"""Logits of llama.cpp, from a process of its own."""
from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np


def llama_cpp_logits(folder: Path, model: Path, tokens: np.ndarray, adapter: Path | None = None, *, scale: float = 1.0,
                     losses: bool = False, n_threads: int = 2) -> np.ndarray:
    """Logits float32 (n_sequences, n, n_vocab) for tokens int32 (n_sequences, n) or (n,), or with `losses` those of the
    tokens after each, float64 (n_sequences, n - 1). `folder` takes the files by which the process is told and answers.
    """
    np.save(folder / "tokens.npy", np.atleast_2d(tokens).astype(np.int32))
    command = [sys.executable, __file__, model, folder / "tokens.npy", folder / "out.npy", "--threads", n_threads]
    command += ["--adapter", adapter, "--scale", scale] if adapter else []
    command += ["--losses"] if losses else []
    subprocess.run([str(part) for part in command], check=True, stderr=subprocess.DEVNULL)
    return np.load(folder / "out.npy")


def main(model: str, tokens: str, out: str, adapter: str | None, scale: float, losses: bool, threads: int) -> None:
    import llama_cpp

    sequences = np.load(tokens)
    n = sequences.shape[1]
    llama_cpp.llama_backend_init()
    loaded = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
    assert loaded
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = n
    params.n_threads = params.n_threads_batch = threads
    params.type_k = params.type_v = 0                               # float32: the comparison is of the products
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama_cpp.llama_init_from_model(loaded, params)
    assert context
    if adapter:
        pairs = llama_cpp.llama_adapter_lora_init(loaded, adapter.encode())
        assert pairs
        adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(pairs)
        assert llama_cpp.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(scale)) == 0
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(loaded))
    batch = llama_cpp.llama_batch_init(n, 0, 1)
    results = []
    for sequence in sequences:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        batch.n_tokens = n
        for i, token in enumerate(sequence.tolist()):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, 1
        assert llama_cpp.llama_decode(context, batch) == 0
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (n, n_vocab)).copy()
        if losses:
            logits = logits[:-1].astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            logits = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(n - 1), sequence[1:]]
        results.append(logits)
    np.save(out, np.array(results))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("model", "tokens", "out"):
        parser.add_argument(name)
    parser.add_argument("--adapter")
    parser.add_argument("--scale", type=float, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--losses", action="store_true")
    main(**vars(parser.parse_args()))
