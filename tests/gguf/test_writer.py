"""Files we write: read back by us, by the gguf package, and equal to what others wrote."""
import numpy as np
import pytest
from golden_files import unpack
from make_models import make_tiny

from lorafast.errors import LoraFastError
from lorafast.gguf.reader import GGUFFile
from lorafast.gguf.strings import Strings
from lorafast.gguf.types import GGMLType, GGUFValueType
from lorafast.gguf.writer import TensorToWrite, write_gguf

V = GGUFValueType

EVERY_TYPE = [
    ("u8", V.UINT8, 255), ("i8", V.INT8, -128), ("u16", V.UINT16, 65535), ("i16", V.INT16, -32768),
    ("u32", V.UINT32, 2**32 - 1), ("i32", V.INT32, -2**31), ("u64", V.UINT64, 2**64 - 1), ("i64", V.INT64, -2**63),
    ("f32", V.FLOAT32, 0.5), ("f64", V.FLOAT64, 0.1), ("yes", V.BOOL, True), ("no", V.BOOL, False),
    ("text", V.STRING, "Grüße \N{HIRAGANA LETTER A}\0"), ("empty", V.STRING, ""), ("bytes", V.STRING, "\udcff\udcfe"),
    ("strings", (V.ARRAY, V.STRING), ["a", "", "ü"]), ("no strings", (V.ARRAY, V.STRING), []),
    ("floats", (V.ARRAY, V.FLOAT32), np.array([0.0, -1.5, np.inf], np.float32)),
    ("ints", (V.ARRAY, V.INT32), np.array([1, -2, 3], np.int32)), ("bools", (V.ARRAY, V.BOOL), np.array([True, False])),
    ("none", (V.ARRAY, V.UINT64), np.zeros(0, np.uint64)),
    ("nested", (V.ARRAY, V.ARRAY), [np.array([1, 2], np.uint8), np.array([], np.float64)]),
    ("nested strings", (V.ARRAY, V.ARRAY), [["a"], ["b", "c"]]),
]


def plain(value):
    """The value with lists where it has Strings or lists."""
    return list(map(plain, value)) if isinstance(value, (list, Strings)) else value


def rewrite(source: GGUFFile, path, **options) -> None:
    write_gguf(path, [(key, source.value_types[key], value) for key, value in source.metadata.items()],
               [TensorToWrite(t.name, t.type, t.shape, t.data) for t in source.tensors.values()], **options)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [1, 8, 32, 4096])
def test_every_value_type_returns(tmp_path, version, alignment):
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    write_gguf(tmp_path / "a", EVERY_TYPE, [TensorToWrite("w", GGMLType.F32, (3, 4), weight)], alignment, version)
    read = GGUFFile(tmp_path / "a")
    assert (read.version, read.alignment) == (version, alignment)
    assert list(read.metadata) == [key for key, _, _ in EVERY_TYPE] + ["general.alignment"] * (alignment != 32)
    for key, value_type, value in EVERY_TYPE:
        assert read.value_types[key] == (value_type if isinstance(value_type, tuple) else (value_type, None))
        got = plain(read.metadata[key])
        assert type(got) is type(value)
        if isinstance(value, np.ndarray):
            assert got.dtype == value.dtype
        np.testing.assert_equal(got, value)
    assert read.tensors["w"].offset % alignment == 0
    np.testing.assert_array_equal(read.tensors["w"].to_float32(), weight)
    rewrite(read, tmp_path / "b", version=version)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_gguf_package_reads_it(tmp_path):
    gguf = pytest.importorskip("gguf")
    flat = [item for item in EVERY_TYPE if not item[0].startswith("nested") and len(np.atleast_1d(item[2]))
            and item[0] != "bytes"]
    weight = np.arange(64, dtype=np.float32).reshape(2, 32)
    write_gguf(tmp_path / "a", flat, [TensorToWrite("w", GGMLType.F32, (2, 32), weight)])
    reader = gguf.GGUFReader(tmp_path / "a")
    for key, _, value in flat:
        expected = value.tolist() if isinstance(value, np.ndarray) else value
        np.testing.assert_equal(reader.get_field(key).contents(), expected)
    np.testing.assert_array_equal(reader.tensors[0].data, weight)


def test_equal_to_the_gguf_package(tmp_path):
    """Same bytes as gguf's writer for the same contents."""
    gguf = pytest.importorskip("gguf")
    weight = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    gain = np.arange(5, dtype=np.float32)
    writer = gguf.GGUFWriter(tmp_path / "theirs", "llama")
    writer.add_uint32("n", 7)
    writer.add_array("tokens", ["a", "bc"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_tensor("w", weight)
    writer.add_tensor("g", gain)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_gguf(tmp_path / "ours", [
        ("general.architecture", V.STRING, "llama"), ("n", V.UINT32, 7), ("tokens", (V.ARRAY, V.STRING), ["a", "bc"]),
        ("numbers", (V.ARRAY, V.INT32), [1, 2, 3])],
        [TensorToWrite("w", GGMLType.F32, weight.shape, weight), TensorToWrite("g", GGMLType.F32, gain.shape, gain)])
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_reproduces_a_checkpoint_of_the_original(tmp_path):
    original = unpack("tinymha-seed1-10.gguf", tmp_path)
    rewrite(GGUFFile(original), tmp_path / "ours.gguf")
    assert (tmp_path / "ours.gguf").read_bytes() == original.read_bytes()


def test_chunks_stream(tmp_path):
    values = np.arange(40, dtype=np.float32)

    def chunks():
        yield values[:10].tobytes()
        yield values[10:33]
        yield memoryview(values[33:].tobytes())

    write_gguf(tmp_path / "a", [], [TensorToWrite("called", GGMLType.F32, (40,), chunks),
                                    TensorToWrite("iterated", GGMLType.F32, (1, 40), chunks()),
                                    TensorToWrite("not contiguous", GGMLType.F32, (20,), values[::2])])
    tensors = GGUFFile(tmp_path / "a").tensors
    np.testing.assert_array_equal(tensors["called"].to_float32(), values)
    np.testing.assert_array_equal(tensors["iterated"].to_float32(), values[None])
    np.testing.assert_array_equal(tensors["not contiguous"].to_float32(), values[::2])


def test_wrong_amount_of_data_writes_nothing(tmp_path):
    for data in (np.zeros(3, np.float32), [b"123"], lambda: [bytes(20)]):
        with pytest.raises(ValueError, match=r"tensor 'w': .* bytes of data, but its shape .4,. takes 16 in f32"):
            write_gguf(tmp_path / "a", [], [TensorToWrite("w", GGMLType.F32, (4,), data)])
    with pytest.raises(ValueError, match="33 values a row are not a multiple of the 32"):
        write_gguf(tmp_path / "a", [], [TensorToWrite("w", GGMLType.Q8_0, (33,), b"")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("type, value", [
    (V.UINT8, 256), (V.UINT32, -1), (V.INT64, 2**63), (V.UINT32, "7"), (V.UINT32, 1.5), (V.FLOAT32, 1e300),
    (V.FLOAT32, None), (V.ARRAY, [1]), ((V.ARRAY, None), [1])])
def test_values_that_do_not_fit_are_named(tmp_path, type, value):
    with pytest.raises(ValueError, match="metadata 'the key'"):
        write_gguf(tmp_path / "a", [("the key", type, value)], [])
    assert list(tmp_path.iterdir()) == []


def test_unwritable_place_is_named(tmp_path):
    with pytest.raises(LoraFastError, match=r"cannot write .*none/a"):
        write_gguf(tmp_path / "none" / "a", [], [])


@pytest.mark.parametrize("options", [{}, {"vocab": "BPE", "tied": True}, {"rope_freqs": True, "key_length": 32},
                                     {"type": "Q4_K", "n_embd": 256, "n_ff": 512, "types": {"output.weight": "Q6_K"}}])
def test_tiny_models_are_valid(tmp_path, options):
    gguf = pytest.importorskip("gguf")
    path = make_tiny(tmp_path / "tiny.gguf", **options)
    ours, theirs = GGUFFile(path), gguf.GGUFReader(path)
    assert [(t.name, int(t.tensor_type), t.data_offset, t.n_bytes) for t in theirs.tensors] == [
        (t.name, int(t.type), t.offset, t.nbytes) for t in ours.tensors.values()]
    assert ("output.weight" in ours.tensors) is not options.get("tied", False)
    for tensor in ours.tensors.values():
        assert np.isfinite(tensor.to_float32()).all() and tensor.to_float32().std() > 0
    assert len(set(ours.metadata["tokenizer.ggml.tokens"])) == ours.metadata["llama.vocab_size"]
