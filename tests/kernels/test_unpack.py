"""The C unpackers (kernels/unpack_body.h) against the NumPy dequantisers, for every type and instruction set."""
import numpy as np
import pytest
from make_models import random_blocks
from quant_blocks import TRAINABLE, blocks_of_every_kind

from lorafast.gguf.quants import dequantize
from lorafast.gguf.types import GGMLType
from lorafast.kernels.build_info import available_isas
from lorafast.kernels.embedding import dequantize_rows


def unpacked(data: np.ndarray, type: GGMLType, n_threads: int = 1) -> np.ndarray:
    out = np.full((len(data), data.shape[1] // type.type_size * type.block_size), np.nan, np.float32)
    dequantize_rows(out, data, type, n_threads)
    return out


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("type", TRAINABLE, ids=lambda type: type.label)
def test_values_equal_numpy(type, isa, monkeypatch):
    monkeypatch.setenv("LORAFAST_ISA", isa)
    data = blocks_of_every_kind(type)
    # Equal as numbers: where a sub-scale is folded into q, an integer zero has lost the sign that -0.0 would have
    np.testing.assert_array_equal(unpacked(data, type), dequantize(data, type))


@pytest.mark.parametrize("type", TRAINABLE, ids=lambda type: type.label)
def test_infinite_and_nan_scales(type, monkeypatch):
    """Random bits throughout, scales included: what is not finite must be so in the same places."""
    data = np.random.default_rng(1).integers(0, 256, (64, 8 * type.type_size), dtype=np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = dequantize(data, type)
    assert not np.isfinite(expected).all() or type is GGMLType.NVFP4       # whose scales are all finite
    for isa in available_isas():
        monkeypatch.setenv("LORAFAST_ISA", isa)
        np.testing.assert_array_equal(unpacked(data, type), expected)


@pytest.mark.parametrize("type", TRAINABLE, ids=lambda type: type.label)
@pytest.mark.parametrize("n_blocks", [1, 3, 9, 17])
def test_odd_numbers_of_blocks_and_unaligned_rows(type, n_blocks, monkeypatch):
    blocks = np.resize(blocks_of_every_kind(type), 5 * n_blocks * type.type_size)
    rows = np.concatenate([np.zeros(1, np.uint8), blocks])[1:].reshape(5, -1)       # at an odd address
    for isa in available_isas():
        monkeypatch.setenv("LORAFAST_ISA", isa)
        np.testing.assert_array_equal(unpacked(rows, type), dequantize(rows, type))


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("type", TRAINABLE, ids=lambda type: type.label)
def test_parts_of_a_row(type, isa, monkeypatch):
    """Any range of values, whether or not it begins and ends with a block, and nothing written beyond it."""
    monkeypatch.setenv("LORAFAST_ISA", isa)
    data = random_blocks(np.random.default_rng(0), type, 2, 1024)
    whole = dequantize(data, type)
    for k0, n in [(0, 256), (256, 512), (32, 64), (32, 992), (1023, 1), (250, 600), (7, 1), (5, 1019), (992, 32)]:
        out = np.full((3, n), np.nan, np.float32)
        dequantize_rows(out[:2], data, type, 1, k0)
        np.testing.assert_array_equal(out[:2], whole[:, k0:k0 + n])
        assert np.isnan(out[2]).all()


def test_threads_give_equal_bits():
    data = np.concatenate([blocks_of_every_kind(GGMLType.Q4_K)] * 40)
    one = unpacked(data, GGMLType.Q4_K)
    for n_threads in (2, 3):
        np.testing.assert_array_equal(unpacked(data, GGMLType.Q4_K, n_threads), one)


def test_misfits_are_refused():
    data = np.zeros((2, 34), np.uint8)
    out = np.zeros((2, 32), np.float32)
    with pytest.raises(ValueError, match=r"dequantize_rows: type 15 is not a trainable"):
        dequantize_rows(out, data, GGMLType.Q8_K, 1)
    for type in (-1, 4, 31, 1000):
        with pytest.raises(ValueError, match="not a trainable"):
            dequantize_rows(out, data, type, 1)
    with pytest.raises(ValueError, match=r"data has rows of 34 bytes \(32 values\), wanted 18 bytes a block"):
        dequantize_rows(out, data, GGMLType.Q4_0, 1)
    for k0 in (-1, 1, 2**40):
        with pytest.raises(ValueError, match=f"values {k0} to {k0 + 31}"):
            dequantize_rows(out, data, GGMLType.Q8_0, 1, k0)
    with pytest.raises(ValueError, match=r"out has shape \(3, 32\), wanted \(2, 32\)"):
        dequantize_rows(np.zeros((3, 32), np.float32), data, GGMLType.Q8_0, 1)
