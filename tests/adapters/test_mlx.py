"""mlx-lm's adapters: names, orientation, scale, the order of q's and k's rows, and what is refused."""
import json

import numpy as np
import pytest

from lorafast.adapters import BaseModel, read_adapter
from lorafast.adapters.peft import write_peft
from lorafast.errors import FormatError, LoraFastError
from lorafast.gguf.safetensors import read_safetensors, write_safetensors
from tests.adapters.test_gguf import MATRICES, assert_same_effect, random_adapter
from tests.network.test_lora import llama_shapes

BASE = BaseModel("llama", 2, 4, 2, tied=False)
SHAPES = llama_shapes(16, 24, 2, 40, n_embd_gqa=8)


def write_mlx(folder, adapter, *, dora=False, **config):
    """The adapter as mlx-lm would save it, by way of PEFT's tensors, whose rows have the same order."""
    write_peft(folder, adapter, BASE)
    tensors = {}
    for key, values in read_safetensors(folder / "adapter_model.safetensors").items():
        module, _, part = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")
        name, turned = {"lora_A": ("lora_a", True), "lora_B": ("lora_b", True), "lora_embedding_A": ("lora_a", True),
                        "lora_embedding_B": ("lora_b", True), "lora_magnitude_vector": ("m", False)}[part]
        tensors[f"{module}.{name}"] = values.T if turned else values
    (folder / "adapter_model.safetensors").unlink()
    write_safetensors(folder / "adapters.safetensors", tensors)
    (folder / "adapter_config.json").write_text(json.dumps({
        "fine_tune_type": "dora" if dora else "lora", "num_layers": 2, "iters": 100,
        "lora_parameters": {"rank": 3, "scale": 2.0, "dropout": 0.0}, **config}))


@pytest.mark.parametrize("dora", [False, True])
def test_the_effect_is_the_same(tmp_path, dora):
    adapter = random_adapter(SHAPES, targets=[*MATRICES, "token_embd"], dora=dora)        # alpha 6, r 3
    write_mlx(tmp_path / "mlx", adapter, dora=dora)
    for path in (tmp_path / "mlx", tmp_path / "mlx" / "adapters.safetensors"):
        again = read_adapter(path, BASE)
        assert again.pairs.keys() == adapter.pairs.keys() and (again.alpha, again.r) == (6, 3)
        assert_same_effect(adapter, again)
        assert again.magnitudes.keys() == adapter.magnitudes.keys()
        for name, m in adapter.magnitudes.items():
            np.testing.assert_array_equal(again.magnitudes[name], m)


@pytest.mark.parametrize("change, message", [
    ({"fine_tune_type": "full"}, "is not an adapter but a changed model"),
    ({"lora_parameters": {"rank": 3}}, "scale is None"),
    ({"fine_tune_type": "dora"}, "dora has lora_a, lora_b, m"),
])
def test_what_does_not_fit_is_refused(tmp_path, change, message):
    write_mlx(tmp_path / "mlx", random_adapter(SHAPES, targets=["attn_v"]), **change)
    with pytest.raises(FormatError, match=message):
        read_adapter(tmp_path / "mlx", BASE)


def test_unknown_tensors_are_refused_and_q_needs_the_base(tmp_path):
    folder = tmp_path / "mlx"
    write_mlx(folder, random_adapter(SHAPES, targets=["attn_q"]))
    with pytest.raises(LoraFastError, match="name the base model"):
        read_adapter(folder)
    tensors = {name: np.array(values) for name, values in read_safetensors(folder / "adapters.safetensors").items()}
    write_safetensors(folder / "adapters.safetensors", tensors | {"model.norm.weight": np.ones(16, np.float32)})
    with pytest.raises(FormatError, match=r"'model.norm.weight' of shape .* does not belong to an adapter"):
        read_adapter(folder, BASE)


def test_a_bare_file_is_named(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", {"x": np.ones((2, 2), np.float32)})
    with pytest.raises(FormatError, match="is a safetensors file by itself"):
        read_adapter(tmp_path / "x.safetensors", BASE)
