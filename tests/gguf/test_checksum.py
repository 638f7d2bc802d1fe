"""A flipped bit anywhere in a file that lorafast wrote is noticed; a file of another program is read as ever."""
import numpy as np
import pytest

from lorafast.adapters import AdapterFile, BaseModel, read_adapter, write_adapter
from lorafast.adapters.checkpoint import Geometry, TrainState, read_checkpoint, write_checkpoint
from lorafast.errors import FormatError, LoraFastError
from lorafast.gguf.checksum import KEY
from lorafast.gguf.file_form import FileForm
from lorafast.gguf.reader import GGUFFile
from lorafast.gguf.writer import write_gguf
from lorafast.network.lora import Adapter, Moments, specs_for

NAME = "blk.0.ffn_down.weight"
BASE = BaseModel("llama", 1, 2, 2, tied=False)


def adapter():
    made = Adapter(specs_for({NAME: (8, 16)}, {"ffn_down": 2}), 2.0, 2)
    made.params[:] = np.random.default_rng(1).standard_normal(len(made.params), np.float32)
    return made


def checkpoint(path, extras):
    trained = adapter()
    write_checkpoint(path, Geometry(4, 8, 16, 2, 2, 1, 4, 1e-5, 1e4, 1.0), trained, Moments(trained), TrainState(),
                     extras)
    return path


def flipped(path, byte, bit):
    data = bytearray(path.read_bytes())
    data[byte] ^= 1 << bit
    path.with_suffix(".flipped" + path.suffix).write_bytes(data)
    return path.with_suffix(".flipped" + path.suffix)


@pytest.mark.parametrize("form", ["checkpoint", "adapter"])
def test_each_flipped_bit_of_a_gguf_file_is_noticed(tmp_path, form):
    path = tmp_path / "a.gguf"
    if form == "checkpoint":
        checkpoint(path, {})
    else:
        write_adapter(FileForm.GGUF, path, AdapterFile.of(adapter()), BASE)
    read = read_checkpoint if form == "checkpoint" else read_adapter
    read(path)
    key = path.read_bytes().index(KEY.encode())
    for byte in range(0, path.stat().st_size, 7):
        if key <= byte < key + len(KEY):
            continue                # without its own name there is no checksum
        with pytest.raises(LoraFastError, match=r"a\.flipped\.gguf"):
            read(flipped(path, byte, byte % 8))


def test_each_flipped_bit_of_peft_weights_is_noticed(tmp_path):
    folder = tmp_path / "a"
    write_adapter(FileForm.PEFT, folder, AdapterFile.of(adapter()), BASE)
    read_adapter(folder)
    weights = folder / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for byte in range(len(whole) - 400, len(whole)):
        weights.write_bytes(whole[:byte] + bytes([whole[byte] ^ 4]) + whole[byte + 1:])
        with pytest.raises(FormatError, match=r"adapter_model\.safetensors: (is damaged|its header)"):
            read_adapter(folder)


def test_a_changed_peft_config_is_said(tmp_path):
    folder = tmp_path / "a"
    write_adapter(FileForm.PEFT, folder, AdapterFile.of(adapter()), BASE)
    assert not read_adapter(folder).warnings
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 2', '"lora_alpha": 3'))
    warning, = read_adapter(folder).warnings
    assert "adapter_config.json" in warning and "changed" in warning


def test_the_originals_checkpoints_have_none(tmp_path):
    path = checkpoint(tmp_path / "a.gguf", None)
    assert KEY not in GGUFFile(path).metadata
    read_checkpoint(path)


def test_the_checksum_is_no_number_of_the_checkpoint(tmp_path):
    assert read_checkpoint(checkpoint(tmp_path / "a.gguf", {"version": "1"})).extras == {"version": "1"}


def test_into_a_device_goes_no_checksum():
    write_gguf("/dev/stderr", [], [], summed=True)
