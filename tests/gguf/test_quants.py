"""NumPy (de)quantisers against the gguf package, and against what quantisation means."""
import numpy as np
import pytest
from quant_blocks import TRAINABLE, blocks_of_every_kind

from lorafast.errors import LoraFastError
from lorafast.gguf.quants import dequantize, quantize
from lorafast.gguf.types import GGMLType

QUANTIZABLE = [GGMLType.F32, GGMLType.F16, GGMLType.BF16, GGMLType.Q8_0, GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q5_0,
               GGMLType.Q5_1]


def gguf_type(type: GGMLType):
    return pytest.importorskip("gguf").GGMLQuantizationType(int(type))


def difficult_values() -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((48, 256)).astype(np.float32)
    x[0] = 0
    x[1] = 7                                              # all equal
    x[2] *= 1e-6                                          # scales are subnormal in float16
    x[3] *= 1e4
    x[4] = np.round(x[4] * 3) / 2                         # many ties
    x[5] = np.where(np.arange(256) % 32 == 5, 100, x[5])  # one outlier a block
    x[6] = -np.abs(x[6])
    x[7] = np.abs(x[7])
    x[8] = 1e-36
    x[9] = np.linspace(-127, 127, 256)
    x[10] = np.where(np.arange(256) % 32 == 0, 127, np.arange(256) % 63 + 0.5)     # halves at scale 1
    return x


@pytest.mark.parametrize("type", TRAINABLE, ids=lambda type: type.label)
def test_dequantize_has_the_bits_of_gguf(type):
    quants = pytest.importorskip("gguf.quants")
    data = blocks_of_every_kind(type)
    ours, theirs = dequantize(data, type), quants.dequantize(data, gguf_type(type))
    assert ours.dtype == np.float32 and ours.shape == theirs.shape
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("type", QUANTIZABLE, ids=lambda type: type.label)
def test_quantize_has_the_bits_of_gguf(type):
    quants = pytest.importorskip("gguf.quants")
    x = difficult_values()
    np.testing.assert_array_equal(quantize(x, type), quants.quantize(x, gguf_type(type)).view(np.uint8))


@pytest.mark.parametrize("type, largest_error", [
    # of a block whose largest magnitude is 1: half a step, and one whole step at the end that has no level of its own
    (GGMLType.F32, 0), (GGMLType.F16, 2**-12), (GGMLType.BF16, 2**-9), (GGMLType.Q8_0, 0.5 / 127),
    (GGMLType.Q4_0, 1 / 8), (GGMLType.Q5_0, 1 / 16), (GGMLType.Q4_1, 1 / 15), (GGMLType.Q5_1, 1 / 31)], ids=str)
def test_round_trip_error(type, largest_error):
    x = np.random.default_rng(0).uniform(-1, 1, (64, 256)).astype(np.float32)
    error = np.abs(dequantize(quantize(x, type), type) - x).max()
    assert error <= largest_error * 1.01 + 1e-3 * (type.block_size == 32)      # the scale itself is rounded to float16
    assert error >= largest_error / 2


@pytest.mark.parametrize("type", QUANTIZABLE, ids=lambda type: type.label)
def test_quantizing_again_changes_nothing(type):
    x = np.random.default_rng(0).standard_normal((16, 128)).astype(np.float32)
    once = dequantize(quantize(x, type), type)
    twice = dequantize(quantize(once, type), type)
    assert np.abs(twice - once).max() <= 2e-3 * np.abs(once).max()


@pytest.mark.parametrize("type", QUANTIZABLE[3:], ids=lambda type: type.label)
def test_values_too_small_for_any_scale_become_zero(type):
    tiny = np.full((1, 32), 1e-40, np.float32)
    tiny[0, 5] = -3e-40
    np.testing.assert_array_equal(dequantize(quantize(tiny, type), type), 0)


def test_q8_0_by_hand():
    """d = 0.5 (0x3800), q = 0, 1, ..., -1 in the last place."""
    block = np.array([[0x00, 0x38, *range(31), 0xFF]], np.uint8)
    np.testing.assert_array_equal(dequantize(block, GGMLType.Q8_0)[0], [*(0.5 * i for i in range(31)), -0.5])


def test_q4_K_by_hand():
    """d = 1, dmin = 2; scale and min of sub-block 0 are 3 and 5, of sub-block 7 63 and 32; q is 1 and 2 alternating
    by sub-block."""
    block = np.zeros(144, np.uint8)
    block[0:2], block[2:4] = [0x00, 0x3C], [0x00, 0x40]
    block[4] = 3
    block[8] = 5
    block[4 + 3] |= 0b11 << 6                 # scale 7: upper two bits ...
    block[8 + 3] |= 0b10 << 6
    block[12 + 3] = 0b0000_1111               # ... lower four; min 7 has none
    block[16:] = 0x21
    x = dequantize(block[None], GGMLType.Q4_K)[0]
    np.testing.assert_array_equal(x[:32], 1 * 3 * 1 - 2 * 5)
    np.testing.assert_array_equal(x[32:224], 0)
    np.testing.assert_array_equal(x[224:], 1 * 63 * 2 - 2 * 32)


def test_other_types_are_refused_by_name():
    with pytest.raises(LoraFastError, match="q8_K"):
        dequantize(np.zeros((1, 292), np.uint8), GGMLType.Q8_K)
    with pytest.raises(LoraFastError, match="cannot quantise to q4_K; possible are f32, f16, bf16, q8_0"):
        quantize(np.zeros((1, 256), np.float32), GGMLType.Q4_K)


def test_misfits_are_refused():
    with pytest.raises(ValueError, match="33 values are not a multiple of the 32"):
        quantize(np.zeros((1, 33), np.float32), GGMLType.Q8_0)
    with pytest.raises(ValueError, match="35 bytes are not a multiple of the 34"):
        dequantize(np.zeros((1, 35), np.uint8), GGMLType.Q8_0)
