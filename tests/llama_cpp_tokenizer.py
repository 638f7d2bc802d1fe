"""llama.cpp as the judge of token ids: it tokenises with a vocabulary written to a GGUF, in a process of its own."""
from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ARCHITECTURE = {
    "llama.context_length": 512, "llama.embedding_length": 64, "llama.feed_forward_length": 160, "llama.block_count": 1,
    "llama.attention.head_count": 4, "llama.rope.dimension_count": 16, "llama.attention.layer_norm_rms_epsilon": 1e-5,
}


def llama_cpp_ids(
    metadata: Mapping[str, Any], texts: Sequence[bytes], ways: Sequence[tuple[bool, bool]],
) -> list[list[int]]:
    """The ids of each text in each way (add_special, parse_special): all texts in the first way, then in the next."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        _write(path, {"general.architecture": "llama", **ARCHITECTURE, **metadata})
        job = json.dumps([str(path), [text.decode("latin-1") for text in texts], list(ways)])
        run = subprocess.run([sys.executable, __file__], input=job, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def _write(path: Path, metadata: Mapping[str, Any]) -> None:
    from lorafast.gguf.strings import Strings
    from lorafast.gguf.types import GGUFValueType as T
    from lorafast.gguf.writer import write_gguf

    kinds = {bool: T.BOOL, int: T.UINT32, float: T.FLOAT32, str: T.STRING}
    entries = []
    for key, value in metadata.items():
        if not isinstance(value, (list, Strings)):
            entries.append((key, kinds[type(value)], value))
        elif isinstance(value[0], str):
            entries.append((key, (T.ARRAY, T.STRING), value))
        elif isinstance(value[0], float):
            entries.append((key, (T.ARRAY, T.FLOAT32), np.array(value, dtype=np.float32)))
        else:
            entries.append((key, (T.ARRAY, T.INT32), np.array(value, dtype=np.int32)))
    write_gguf(path, entries, [])


def _main() -> None:
    import ctypes

    import llama_cpp

    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    path, texts, ways = json.load(sys.stdin)
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(path.encode(), params)
    if not model:
        sys.exit("llama.cpp does not load the vocabulary")
    vocab = llama_cpp.llama_model_get_vocab(model)
    ids = (ctypes.c_int32 * 100_000)()
    out = []
    for add_special, parse_special in ways:
        for text in texts:
            data = text.encode("latin-1")
            n = llama_cpp.llama_tokenize(vocab, data, len(data), ids, len(ids), add_special, parse_special)
            out.append(ids[:n])
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    _main()
