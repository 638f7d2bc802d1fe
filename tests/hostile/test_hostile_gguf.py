"""Broken GGUF files: an error of one line, never a crash, a hang or a large allocation."""
import struct
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from make_models import make_tiny

from lorafast.errors import FormatError, LoraFastError
from lorafast.gguf.reader import GGUFFile, open_model
from lorafast.gguf.types import GGMLType, GGUFValueType
from lorafast.gguf.writer import TensorToWrite, write_gguf

V = GGUFValueType
HUGE = 2**63 - 1


def string(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def value(key: bytes, type: int, *contents: bytes) -> bytes:
    return string(key) + struct.pack("<I", type) + b"".join(contents)


def array(type: int, count: int, contents: bytes = b"") -> bytes:
    return struct.pack("<IQ", type, count) + contents


def info(name: bytes, ne: list[int], type: int = GGMLType.F32, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, type, offset)


def gguf_bytes(values: Sequence[bytes] = (), infos: Sequence[bytes] = (), data: int = 0, n_tensors: int | None = None,
               n_values: int | None = None) -> bytes:
    header = b"GGUF" + struct.pack("<IQQ", 3, len(infos) if n_tensors is None else n_tensors,
                                   len(values) if n_values is None else n_values) + b"".join((*values, *infos))
    return header + bytes(-len(header) % 32) + bytes(data)


U32_VALUE = value(b"k", V.UINT32, bytes(4))

CASES = {
    "no counts": (b"GGUF\3\0\0\0" + bytes(8), "the counts of tensors and metadata values reaches beyond the end"),
    "huge tensor count": (gguf_bytes(n_tensors=HUGE), f"a count of {HUGE} tensors"),
    "huge value count": (gguf_bytes(n_values=HUGE), f"a count of {HUGE} metadata values"),
    "largest counts": (gguf_bytes(n_tensors=2**64 - 1, n_values=2**64 - 1),
        "a count of 18446744073709551615 metadata values"),
    "long key": (gguf_bytes([string(b"k", HUGE) + bytes(32)]), "the key of metadata value 0, a string of .* bytes"),
    "long string": (gguf_bytes([value(b"k", V.STRING, string(b"x", 2**64 - 1))]), "the value of 'k', a string of"),
    "unknown value type": (gguf_bytes([value(b"k", 13, bytes(8))]), "the value of 'k' has the unknown type 13"),
    "unknown element type": (gguf_bytes([value(b"k", V.ARRAY, array(77, 1, bytes(8)))]),
        "the value of 'k' has the unknown type 77"),
    "huge string array": (gguf_bytes([value(b"k", V.ARRAY, array(V.STRING, HUGE))]),
        f"a count of {HUGE} strings in the value of 'k'"),
    "huge number array": (gguf_bytes([value(b"k", V.ARRAY, array(V.UINT8, HUGE))]),
        f"a count of {HUGE} numbers in the value of 'k'"),
    "overflowing array": (gguf_bytes([value(b"k", V.ARRAY, array(V.FLOAT64, 2**61))]), f"a count of {2**61} numbers"),
    "huge array of arrays": (gguf_bytes([value(b"k", V.ARRAY, array(V.ARRAY, HUGE))]), f"a count of {HUGE} arrays"),
    "deep arrays": (gguf_bytes([value(b"k", V.ARRAY, array(V.ARRAY, 1) * 5000)]), "nested more than 4 deep"),
    "wide deep arrays": (gguf_bytes([value(b"k", V.ARRAY, array(V.ARRAY, 10) * 5000)]), "nested more than 4 deep"),
    "bool of 2": (gguf_bytes([value(b"k", V.BOOL, b"\2")]), "the value of 'k' is a bool other than 0 and 1"),
    "bool array of 2": (gguf_bytes([value(b"k", V.ARRAY, array(V.BOOL, 3, b"\1\2\0"))]), "bool other than 0 and 1"),
    "key twice": (gguf_bytes([U32_VALUE, U32_VALUE]), "the metadata key 'k' occurs twice"),
    "alignment 0": (gguf_bytes([value(b"general.alignment", V.UINT32, struct.pack("<I", 0))]),
        "'general.alignment' is 0"),
    "alignment 24": (gguf_bytes([value(b"general.alignment", V.UINT32, struct.pack("<I", 24))]),
        "must be a power of two"),
    "alignment text": (gguf_bytes([value(b"general.alignment", V.STRING, string(b"32"))]),
        "'general.alignment' is '32'"),
    "alignment true": (gguf_bytes([value(b"general.alignment", V.BOOL, b"\1")]), "'general.alignment' is True"),
    "alignment negative": (gguf_bytes([value(b"general.alignment", V.INT32, struct.pack("<i", -32))]),
        "'general.alignment' is -32"),
    "alignment beyond the file": (
        gguf_bytes([value(b"general.alignment", V.UINT32, struct.pack("<I", 2**31))], [info(b"w", [1])], 4),
        "tensor 'w' .* but the file has only"),
    "no dimensions": (gguf_bytes([], [info(b"w", [])]), "tensor 'w' has 0 dimensions"),
    "5 dimensions": (gguf_bytes([], [info(b"w", [1] * 5)], 32), "tensor 'w' has 5 dimensions, but 1 to 4"),
    "huge number of dimensions": (gguf_bytes([], [string(b"w") + struct.pack("<I", 2**32 - 1) + bytes(64)]),
        "4294967295 dimensions"),
    "zero dimension": (gguf_bytes([], [info(b"w", [4, 0])], 32), "tensor 'w' is empty: ne is .4, 0."),
    "unknown tensor type": (gguf_bytes([], [info(b"w", [4], 99)], 32), "tensor 'w' has the unknown type 99"),
    "removed tensor type": (gguf_bytes([], [info(b"w", [32], 4)], 32), "tensor 'w' has the unknown type 4"),
    "part of a block": (gguf_bytes([], [info(b"w", [33, 2], GGMLType.Q8_0)], 128),
        "33 values, not a multiple of the 32 .* q8_0"),
    "overflowing shape": (gguf_bytes([], [info(b"w", [2**32, 2**32])], 32), "tensor 'w' .* but the file has only"),
    "overflowing shape to zero": (gguf_bytes([], [info(b"w", [2**63, 2**63, 4])], 32),
        "tensor 'w' .* but the file has only"),
    "data beyond the end": (gguf_bytes([], [info(b"w", [9])], 32),
        "tensor 'w' .* reaches to byte .* but the file has only"),
    "offset beyond the end": (gguf_bytes([], [info(b"w", [1], offset=2**64 - 32)], 32),
        "tensor 'w' .* but the file has only"),
    "misaligned offset": (gguf_bytes([], [info(b"w", [1], offset=4)], 32),
        "byte 4 of the data, not a multiple of the alignment 32"),
    "overlap": (gguf_bytes([], [info(b"v", [16]), info(b"w", [16], offset=32)], 96),
        "tensors 'v' and 'w' overlap at byte"),
    "same place": (gguf_bytes([], [info(b"v", [8]), info(b"w", [8])], 96), "tensors 'v' and 'w' overlap at byte"),
    "tensor twice": (gguf_bytes([], [info(b"w", [8]), info(b"w", [8], offset=32)], 96), "tensor 'w' .* occurs twice"),
    "long tensor name": (gguf_bytes([], [string(b"w", 2**40) + bytes(64)]), "a tensor's name, a string of"),
    "infos cut off": (gguf_bytes([], [info(b"w", [1])], n_tensors=2), "a tensor's name|a count of 2 tensors"),
}


@pytest.mark.parametrize("case", CASES)
def test_broken_field_is_explained(tmp_path, case):
    contents, message = CASES[case]
    (tmp_path / "a.gguf").write_bytes(contents)
    with pytest.raises(FormatError, match=message) as caught:
        GGUFFile(tmp_path / "a.gguf")
    text = str(caught.value)
    assert "\n" not in text and text.startswith(str(tmp_path / "a.gguf")) and len(text) < 400
    assert "byte" in text or "'" in text           # where: an offset, a key or a tensor


def test_the_cases_are_one_step_from_a_good_file(tmp_path):
    """What the helpers above build is readable when nothing in it is wrong."""
    (tmp_path / "a.gguf").write_bytes(gguf_bytes(
        [U32_VALUE, value(b"deep", V.ARRAY, array(V.ARRAY, 1) * 2 + array(V.UINT8, 1, b"\7"))],
        [info(b"v", [8]), info(b"w", [4, 2], offset=32)], 64))
    file = GGUFFile(tmp_path / "a.gguf")
    assert file.metadata["deep"][0][0][0] == 7 and file.tensors["w"].shape == (2, 4)


def small_file(folder: Path) -> bytes:
    """A file with every kind of field, small enough to break at each byte."""
    write_gguf(folder / "good.gguf", [
        ("general.architecture", V.STRING, "llama"), ("n", V.UINT32, 7), ("x", V.FLOAT64, 0.5), ("yes", V.BOOL, True),
        ("general.alignment", V.UINT32, 32), ("tokens", (V.ARRAY, V.STRING), ["a", "bc", ""]),
        ("ids", (V.ARRAY, V.INT32), [1, 2, 3]), ("nested", (V.ARRAY, V.ARRAY), [np.array([1], np.uint8)]),
    ], [TensorToWrite("gain", GGMLType.F32, (8,), np.ones(8, np.float32)),
        TensorToWrite("weight", GGMLType.Q8_0, (3, 64), np.ones((3, 68), np.uint8))])
    return (folder / "good.gguf").read_bytes()


def opens_or_explains(path: Path) -> bool:
    """True when the file opens and every tensor can be read, False for an error of one line; all else fails."""
    try:
        for tensor in open_model(path).tensors.values():
            tensor.data.sum()
    except LoraFastError as error:
        assert "\n" not in str(error)
        return False
    return True


def test_every_truncation(tmp_path):
    contents = small_file(tmp_path)
    weight = GGUFFile(tmp_path / "good.gguf").tensors["weight"]
    for length in [*range(weight.offset), weight.offset + weight.nbytes - 1]:
        (tmp_path / "a.gguf").write_bytes(contents[:length])
        assert not opens_or_explains(tmp_path / "a.gguf")


def test_every_flipped_header_byte(tmp_path):
    contents = small_file(tmp_path)
    header_size = GGUFFile(tmp_path / "good.gguf").tensors["gain"].offset
    refused = 0
    tracemalloc.start()
    for position in range(header_size):
        for flip in (0x01, 0x80):
            broken = bytearray(contents)
            broken[position] ^= flip
            (tmp_path / "a.gguf").write_bytes(broken)
            refused += not opens_or_explains(tmp_path / "a.gguf")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert refused > header_size                     # the checks do check
    assert peak < 1e6                                # measured: 16 KB


def test_random_garbage_after_the_magic(tmp_path):
    rng = np.random.default_rng(0)
    for _ in range(300):
        garbage = rng.integers(0, 256, rng.integers(0, 200), dtype=np.uint8)
        garbage[rng.random(len(garbage)) < 0.6] = 0                  # zeros, so that counts are often small
        (tmp_path / "a.gguf").write_bytes(b"GGUF\3\0\0\0" + garbage.tobytes())
        opens_or_explains(tmp_path / "a.gguf")


def test_truncated_model(tmp_path):
    path = make_tiny(tmp_path / "tiny.gguf")
    contents = path.read_bytes()
    for share in (0.02, 0.5, 0.99):
        path.write_bytes(contents[:int(len(contents) * share)])
        with pytest.raises(FormatError, match="broken or incomplete: fetch it again"):
            GGUFFile(path)
