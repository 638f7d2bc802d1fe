"""Reading GGUF: what the gguf package reads, mapped and unchanged; split models; other kinds of file named."""
import os
import struct
import time

import numpy as np
import pytest
from make_models import make_tiny, random_blocks, split_model

from lorafast.errors import FormatError, LoraFastError
from lorafast.gguf.quants import dequantize
from lorafast.gguf.reader import GGUFFile, open_model
from lorafast.gguf.types import FILE_TYPE_NAMES, GGMLType, GGUFValueType
from lorafast.gguf.writer import TensorToWrite, write_gguf

V = GGUFValueType


def test_types_are_those_of_the_gguf_package():
    constants = pytest.importorskip("gguf.constants")
    for type in constants.GGMLQuantizationType:
        ours = GGMLType[type.name]
        assert ours == type.value
        if type.name != "Q8_1":      # a type of intermediate results, never in files; gguf-py has its size of 2023
            assert (ours.block_size, ours.type_size) == constants.GGML_QUANT_SIZES[type]
    for type in constants.GGUFValueType:
        assert GGUFValueType[type.name] == type.value
    assert {type.value for type in constants.LlamaFileType} - {1024} <= FILE_TYPE_NAMES.keys()


def test_labels():
    assert [type.label for type in (GGMLType.F32, GGMLType.Q8_0, GGMLType.Q4_K, GGMLType.IQ4_XS)] == [
        "f32", "q8_0", "q4_K", "iq4_xs"]
    assert [type.label for type in (V.UINT32, V.STRING, V.ARRAY, V.BOOL, V.FLOAT64)] == [
        "u32", "str", "arr", "bool", "f64"]


def test_agrees_with_the_gguf_package(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = make_tiny(tmp_path / "tiny.gguf", types={"output.weight": "F16"})
    ours, theirs = GGUFFile(path), gguf.GGUFReader(path)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, field in fields.items():
        np.testing.assert_equal(ours.metadata[key], field.contents())
        assert [type for type in ours.value_types[key] if type is not None] == [int(type) for type in field.types]
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.shape == tuple(int(n) for n in reversed(tensor.shape))
        np.testing.assert_array_equal(mine.data.reshape(-1), tensor.data.reshape(-1).view(np.uint8))


def test_data_is_a_read_only_view_of_the_mapping(tmp_path):
    tensors = GGUFFile(make_tiny(tmp_path / "tiny.gguf")).tensors
    matrix, gain = tensors["blk.0.attn_k.weight"], tensors["output_norm.weight"]
    assert matrix.shape == (32, 64) and matrix.data.shape == (32, 68)
    assert gain.shape == (64,) and gain.data.shape == (1, 256)
    assert not matrix.data.flags.writeable and not matrix.data.flags.owndata
    assert np.shares_memory(matrix.data, matrix.data)
    with pytest.raises(ValueError, match="read-only"):
        matrix.data[0, 0] = 1


def test_mapping_outlives_the_file_object(tmp_path):
    data = GGUFFile(make_tiny(tmp_path / "tiny.gguf")).tensors["output.weight"].data
    assert data.sum() > 0


def test_untrainable_tensors_are_listed_but_not_computed_with(tmp_path):
    write_gguf(tmp_path / "a", [], [
        TensorToWrite("experts", GGMLType.Q8_K, (4, 3, 512), np.zeros((12, 584), np.uint8)),
        TensorToWrite("ids", GGMLType.I64, (5,), np.arange(5))])
    tensors = GGUFFile(tmp_path / "a").tensors
    assert tensors["experts"].data.shape == (12, 584)
    np.testing.assert_array_equal(tensors["ids"].data.view(np.int64)[0], np.arange(5))
    with pytest.raises(FormatError, match="tensor 'experts' has type q8_K"):
        tensors["experts"].to_float32()


def test_leading_dimensions_do_not_matter(tmp_path):
    """Experts are 3-D, (E, N, K): rows of blocks as those of a matrix."""
    blocks = random_blocks(np.random.default_rng(0), GGMLType.IQ3_S, 12, 512)
    for shape in ((4, 3, 512), (2, 2, 3, 512)):
        write_gguf(tmp_path / "a", [], [TensorToWrite("experts", GGMLType.IQ3_S, shape, blocks)])
        tensor = GGUFFile(tmp_path / "a").tensors["experts"]
        np.testing.assert_array_equal(tensor.to_float32(), dequantize(blocks, GGMLType.IQ3_S).reshape(shape))


def test_data_at_odd_addresses(tmp_path):
    """In a file with an alignment of 1, tensors may begin at any byte."""
    values = np.arange(4, dtype=np.float32)
    write_gguf(tmp_path / "a", [("k", V.STRING, "x")], [
        TensorToWrite("byte", GGMLType.I8, (1,), np.zeros(1, np.uint8)),
        TensorToWrite("w", GGMLType.F32, (4,), values)], alignment=1)
    tensor = GGUFFile(tmp_path / "a").tensors["w"]
    assert tensor.offset % 4
    np.testing.assert_array_equal(tensor.to_float32(), values)


# ---- split models ----

def write_parts(folder, count=3, first=0, promised=None):
    for number in range(first, count):
        weight = np.full((2, 4), number, np.float32)
        split = [("split.no", V.UINT16, number), ("split.count", V.UINT16, count),
                 ("split.tensors.count", V.INT32, promised or count)]
        name = [("general.name", V.STRING, "m")] if number == 0 else []
        write_gguf(folder / f"m-{number + 1:05}-of-{count:05}.gguf", name + split,
                   [TensorToWrite(f"w{number}", GGMLType.F32, (2, 4), weight)])
    return folder / f"m-00001-of-{count:05}.gguf"


def test_split_model_is_merged(tmp_path):
    model = open_model(write_parts(tmp_path))
    assert model.metadata["general.name"] == "m"
    assert {name: tensor.to_float32()[0, 0] for name, tensor in model.tensors.items()} == {"w0": 0, "w1": 1, "w2": 2}
    assert model.nbytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert model.tensors["w2"].path.name == "m-00003-of-00003.gguf"


def test_whole_model_opens_as_it_is(tmp_path):
    path = make_tiny(tmp_path / "tiny.gguf")
    assert list(open_model(path).tensors) == list(GGUFFile(path).tensors)


def test_broken_splits_are_explained(tmp_path):
    first = write_parts(tmp_path)
    second = tmp_path / "m-00002-of-00003.gguf"
    with pytest.raises(FormatError, match=r"part of a model split into 3 files; name the first, "
                       r".*-00001-of-00003.gguf"):
        open_model(second)
    contents = second.read_bytes()
    second.write_bytes((tmp_path / "m-00003-of-00003.gguf").read_bytes())
    with pytest.raises(FormatError, match=r"m-00002-of-00003.gguf: is not part 2 of 3"):
        open_model(first)
    second.unlink()
    with pytest.raises(LoraFastError, match=r"cannot read .*m-00002-of-00003.gguf: No such file"):
        open_model(first)
    second.write_bytes(contents.replace(b"w1", b"w0"))
    with pytest.raises(FormatError, match=r"tensor 'w0' is also in m-00001-of-00003.gguf"):
        open_model(first)
    with pytest.raises(FormatError, match="3 parts hold 3 tensors, not the 4"):
        open_model(write_parts(tmp_path, promised=4))


def test_first_part_without_tensors(tmp_path):
    whole = make_tiny(tmp_path / "m.gguf")
    model = open_model(split_model(whole, 3))
    assert list(model.tensors) == list(GGUFFile(whole).tensors) and model.metadata["general.name"] == "tiny Q8_0"
    assert [path.name for path in model.mappings] == [f"m-{number:05}-of-00003.gguf" for number in (1, 2, 3)]


# ---- files that are something else ----

@pytest.mark.skipif(not os.path.exists("/sys/kernel/uevent_seqnum"), reason="wants a file system that maps nothing")
def test_a_file_that_cannot_be_mapped():
    with pytest.raises(LoraFastError, match=r"cannot map .* into memory: .*; its file system .sysfs. may not be able "
                       r"to: copy it"):
        GGUFFile("/sys/kernel/uevent_seqnum")


@pytest.mark.parametrize("contents, message", [
    (b"", "is empty, not a GGUF file"),
    (b"GG", "begins with b'GG' instead of b'GGUF'"),
    (b"\x89PNG\r\n\x1a\n", "not a GGUF file"),
    (b"alggxxxx", "a legacy LoRA adapter"),
    (b"tjggxxxx", "from before GGUF; convert"),
    (b"PK\x03\x04xxxx", "PyTorch"),
    (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
    (b"GGUF\x01\0\0\0", "GGUF version 1, but only 2 and 3"),
    (b"GGUF\x04\0\0\0", "GGUF version 4, but only 2 and 3"),
    (b"GGUF\0\0\0\x03", "big-endian"),
])
def test_other_files_are_named(tmp_path, contents, message):
    (tmp_path / "a").write_bytes(contents + bytes(32 * (contents[:4] == b"GGUF")))
    with pytest.raises(FormatError, match=message) as caught:
        GGUFFile(tmp_path / "a")
    assert str(caught.value).startswith(str(tmp_path / "a")) and "\n" not in str(caught.value)


def test_missing_files_folders_and_pipes(tmp_path):
    with pytest.raises(LoraFastError, match=r"cannot read .*none: No such file or directory"):
        GGUFFile(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(LoraFastError, match=r"cannot read .*: it is a folder or a device"):
            GGUFFile(other)


def test_large_vocabularies_are_read_quickly(tmp_path):
    """150,000 tokens and 280,000 merges, as Llama 3 and Qwen have, in well under a second."""
    tokens = [f"token {i}" for i in range(150_000)]
    write_gguf(tmp_path / "a", [("tokens", (V.ARRAY, V.STRING), tokens),
                                ("merges", (V.ARRAY, V.STRING), [f"a{i} b" for i in range(280_000)]),
                                ("scores", (V.ARRAY, V.FLOAT32), np.zeros(150_000, np.float32))], [])
    start = time.perf_counter()
    read = GGUFFile(tmp_path / "a")
    assert time.perf_counter() - start < 1.5       # measured: 0.12 to 0.20 s, two other jobs running
    assert read.metadata["tokens"] == tokens


def test_header_size_is_as_specified(tmp_path):
    """The smallest file, byte by byte."""
    write_gguf(tmp_path / "a", [("k", V.UINT8, 7)], [])
    expected = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<IB", 0, 7)
    assert (tmp_path / "a").read_bytes() == expected + bytes(-len(expected) % 32)
