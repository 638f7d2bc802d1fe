"""Makes tokenizer-ids.json.xz with llama-cpp-python: the ids of some texts for each case of tokenizer_cases.py.

    PYTHONPATH=.:tests python tests/golden/make_tokenizer_ids.py

The vocabularies beside it (vocab-*.json.xz) are the keys `tokenizer.ggml.*` of llama.cpp's ggml-vocab-gpt-2.gguf and
ggml-vocab-llama-spm.gguf, and vocab-*.vectors.json.xz their .inp and .out files.
"""
from __future__ import annotations

import json
import lzma

from llama_cpp_tokenizer import llama_cpp_ids
from tokenizer_cases import GOLDEN, cases, texts

some = texts(seed=1, n_texts=40, n_malformed=15)
golden = {
    "texts": [text.decode("latin-1") for text in some],      # bytes, one a character
    "ids": {name: llama_cpp_ids(case.metadata(), some, case.ways) for name, case in cases().items()},
}
data = json.dumps(golden, separators=(",", ":")).encode()
(GOLDEN / "tokenizer-ids.json.xz").write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
