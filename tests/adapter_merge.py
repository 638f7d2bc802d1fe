"""Tells what an adapter means without any code that applies adapters: merges it into a model's float32 weights."""
import numpy as np

from lorafast.gguf.reader import GGUFFile
from lorafast.gguf.types import GGMLType
from lorafast.gguf.writer import TensorToWrite, write_gguf


def with_magnitudes(v, m, name):
    """The matrix with the directions of v's rows (of the embedding, its columns) and the lengths m."""
    axis = int(name != "token_embd.weight")
    return v * np.expand_dims(m / np.linalg.norm(v, axis=axis), axis)


def merge(model_path, adapter, merged_path):
    """Writes V = W + s·Bᵀ·A for every pair, with DoRA its rows (the embedding's columns) brought to their magnitudes,
    all tensors in F32. On a tied model the embedding's pair acts on the input only: the merged model gets an
    output.weight of its own, the unchanged embedding.
    """
    model = GGUFFile(model_path)
    weights = {name: tensor.to_float32() for name, tensor in model.tensors.items()}
    weights.setdefault("output.weight", weights["token_embd.weight"])
    for name, (a, b) in adapter.pairs.items():
        v = weights[name] + adapter.scale * (b.T.astype(np.float64) @ a)
        if name in adapter.magnitudes:
            v = with_magnitudes(v, adapter.magnitudes[name], name)
        weights[name] = v.astype(np.float32)
    metadata = [(key, model.value_types[key], 0 if key == "general.file_type" else value)
                for key, value in model.metadata.items()]
    write_gguf(merged_path, metadata, [TensorToWrite(name, GGMLType.F32, w.shape, w) for name, w in weights.items()])
    return merged_path
