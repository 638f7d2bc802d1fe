"""A model is known by what it computes with, not by its file's name."""
from pathlib import Path

import numpy as np
from make_models import make_tiny

from lorafast.gguf.fingerprint import fingerprint
from lorafast.gguf.reader import open_model
from lorafast.gguf.writer import TensorToWrite, write_gguf


def changed_copy(path: Path, out: Path, *, values: dict[str, object] | None = None, tensor: str = "") -> Path:
    """The model with other values under some keys, and another number in the middle of a tensor."""
    model = open_model(path)
    metadata = [(key, kind if element is None else (kind, element), (values or {}).get(key, model.metadata[key]))
                for key, (kind, element) in model.value_types.items()]
    tensors = []
    for name, each in model.tensors.items():
        data = np.array(each.data)
        if name == tensor:
            data.reshape(-1)[data.size // 2] ^= 1
        tensors.append(TensorToWrite(name, each.type, each.shape, data))
    write_gguf(out, metadata, tensors)
    return out


def test_what_changes_it(tmp_path):
    path = make_tiny(tmp_path / "tiny.gguf")

    def of(path: Path) -> str:
        return fingerprint(open_model(path))

    same = [changed_copy(path, tmp_path / "copy.gguf"),
            changed_copy(path, tmp_path / "named.gguf", values={"general.name": "another"})]
    others = [changed_copy(path, tmp_path / f"{name}.gguf", tensor=name)
              for name in ("blk.1.attn_q.weight", "output_norm.weight")]
    others.append(changed_copy(path, tmp_path / "base.gguf", values={"llama.rope.freq_base": 20000.0}))
    assert {of(each) for each in same} == {of(path)}
    assert len({of(path), *map(of, others)}) == 1 + len(others)
