"""ggla adapters: the original's bytes, what comes back, and what is refused."""
import struct

import numpy as np
import pytest
from golden_files import unpack

from lorafast.adapters import AdapterFile, read_adapter
from lorafast.adapters.checkpoint import read_checkpoint
from lorafast.adapters.ggla import read_ggla, write_ggla
from lorafast.errors import FormatError, LoraFastError
from lorafast.network.lora import Adapter, default_ranks, specs_for
from tests.network.test_lora import llama_shapes


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return unpack("tinymha-seed1-10.bin", tmp_path_factory.mktemp("golden"))


def small_adapter(ranks=None, alpha=3, r=3):
    adapter = Adapter(specs_for(llama_shapes(8, 24, 2, 40), ranks or default_ranks(3)), alpha, r)
    adapter.params[:] = np.random.default_rng(0).standard_normal(adapter.n_params)
    return adapter


def test_the_originals_file_is_written_back_byte_for_byte(golden, tmp_path):
    adapter = read_ggla(golden)
    assert (adapter.alpha, adapter.r) == (4, 4)
    adapter.pairs = dict(reversed(adapter.pairs.items()))      # the order is the format's, not the dictionary's
    write_ggla(tmp_path / "again.bin", adapter)
    assert (tmp_path / "again.bin").read_bytes() == golden.read_bytes()


def test_magnitudes_are_refused(tmp_path):
    adapter = Adapter(specs_for(llama_shapes(8, 24, 2, 40), default_ranks(3), dora=True), 3, 3)
    with pytest.raises(LoraFastError, match=r"a ggla adapter cannot carry DoRA's magnitudes.*PEFT .*lorafast merge"):
        write_ggla(tmp_path / "a.bin", AdapterFile.of(adapter))
    assert not list(tmp_path.iterdir())


def test_the_originals_file_equals_its_checkpoint(golden, tmp_path):
    checkpoint = read_checkpoint(unpack("tinymha-seed1-10.gguf", tmp_path))
    adapter = read_adapter(golden)
    assert list(adapter.pairs) == list(checkpoint.pairs) and len(adapter.pairs) == 21
    for name, (a, b) in adapter.pairs.items():
        np.testing.assert_array_equal(a, checkpoint.pairs[name][0])
        np.testing.assert_array_equal(b, checkpoint.pairs[name][1])


def test_a_checkpoint_exports_to_the_originals_file(golden, tmp_path):
    write_ggla(tmp_path / "exported.bin", read_adapter(unpack("tinymha-seed1-10.gguf", tmp_path)))
    assert (tmp_path / "exported.bin").read_bytes() == golden.read_bytes()


def test_ranks_of_every_kind_come_back(tmp_path):
    adapter = small_adapter(default_ranks(3) | {"attn_norm": 2, "attn_v": 1, "output": 5}, alpha=7)
    write_ggla(tmp_path / "a.bin", AdapterFile.of(adapter))
    again = read_ggla(tmp_path / "a.bin").to_adapter(llama_shapes(8, 24, 2, 40))
    assert again.specs == adapter.specs and (again.alpha, again.r) == (7, 3)
    np.testing.assert_array_equal(again.params, adapter.params)


def test_size_of_the_7b_runs_adapter(tmp_path):
    adapter = Adapter(specs_for(llama_shapes(4096, 11008, 32, 32000), default_ranks(4)), 4, 4)
    write_ggla(tmp_path / "7b.bin", AdapterFile.of(adapter))
    assert (tmp_path / "7b.bin").stat().st_size == 42_234_240


def test_half_precision_is_read(tmp_path):
    a, b = np.float16([[1, 2, 3], [0.5, 0.25, -1]]), np.float16([[4, -5], [6, 7]])   # A (r, K), B (r, N)
    data = struct.pack("<4I", 0x67676C61, 1, 2, 2)
    for name, values in ((b"blk.0.attn_q.weight.loraA", a.T), (b"blk.0.attn_q.weight.loraB", b.T)):
        data += struct.pack("<5I", 2, len(name), 1, 2, len(values)) + name
        data += bytes(-len(data) % 32) + values.tobytes()
    (tmp_path / "f16.bin").write_bytes(data)
    pair = read_ggla(tmp_path / "f16.bin").pairs["blk.0.attn_q.weight"]
    np.testing.assert_array_equal(pair[0], a)
    np.testing.assert_array_equal(pair[1], b)


def test_alpha_must_be_whole(tmp_path):
    with pytest.raises(LoraFastError, match=r"whole numbers as alpha, not 1.5"):
        write_ggla(tmp_path / "a.bin", AdapterFile.of(small_adapter(alpha=1.5)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("position, value, message", [
    (4, 2, "ggla version 2"),
    (8, 0, "rank in the header is 0"),
    (16, 3, r"3 dimensions .*byte 16"),
    (24, 2, r"of type 2 .*byte 16"),
    (20, 64, r"a name of 64 bytes \(byte 16\)"),
    (28, 2**30, r"token_embd.weight.loraA' \(byte 16\) reaches to byte"),
    (28, 5, r"loraA, 3 in its loraB|byte"),
])
def test_a_broken_file_is_refused(tmp_path, position, value, message):
    path = tmp_path / "a.bin"
    write_ggla(path, AdapterFile.of(small_adapter()))
    data = bytearray(path.read_bytes())
    data[position:position + 4] = struct.pack("<I", value)
    path.write_bytes(data)
    with pytest.raises(FormatError, match=message) as caught:
        read_ggla(path)
    assert "a.bin" in str(caught.value) and "\n" not in str(caught.value)


def test_truncated_files_are_refused_unless_cut_between_pairs(tmp_path):
    path = tmp_path / "a.bin"
    write_ggla(path, AdapterFile.of(small_adapter()))
    whole = path.read_bytes()
    pairs = list(read_ggla(path).pairs)
    for size in range(0, len(whole), 101):
        path.write_bytes(whole[:size])
        try:
            found = list(read_ggla(path).pairs)
        except LoraFastError:
            continue
        assert found == pairs[:len(found)] and whole[size:].startswith(struct.pack("<I", 2))   # a header comes next


def test_unknown_tensors_are_refused(tmp_path):
    path = tmp_path / "a.bin"
    write_ggla(path, AdapterFile.of(small_adapter()))
    path.write_bytes(path.read_bytes().replace(b"blk.1.ffn_up.weight.loraB", b"blk.1.ffn_uq.weight.loraB"))
    with pytest.raises(FormatError, match=r"'blk.1.ffn_uq.weight.loraB'"):
        read_ggla(path)
