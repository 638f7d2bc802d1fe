import numpy as np
import pytest

from lorafast.network.rope import rope_tables


def test_angles():
    cos, sin = rope_tables(300, 64, 10000.0)
    angle = np.arange(300)[:, None] * 10000.0 ** (-2 * np.arange(32) / 64)
    assert cos.dtype == sin.dtype == np.float32 and cos.shape == sin.shape == (300, 32)
    np.testing.assert_allclose(cos, np.cos(angle), atol=1e-4)  # repeated float32 multiplication drifts
    np.testing.assert_allclose(sin, np.sin(angle), atol=1e-4)


def test_power_by_float32_multiplication():
    theta, step = np.float32(299), np.float32(10000.0 ** (-2 / 64))
    for _ in range(31):
        theta *= step
    assert theta != np.float32(299 * 10000.0 ** (-62 / 64))    # else the test could not tell
    assert rope_tables(300, 64, 10000.0)[1][299, 31] == np.float32(np.sin(np.float64(theta)))


def test_scale_and_factors():
    cos, _ = rope_tables(8, 4, 10000.0)
    np.testing.assert_array_equal(rope_tables(16, 4, 10000.0, freq_scale=0.5)[0][::2], cos)
    factors = np.array([1, 2], np.float32)
    np.testing.assert_array_equal(rope_tables(16, 4, 10000.0, freq_factors=factors)[0][::2, 1], cos[:, 1])
    with pytest.raises(ValueError, match="freq_factors"):
        rope_tables(8, 4, 10000.0, freq_factors=np.ones(4, np.float32))


def test_odd_number_of_values():
    with pytest.raises(ValueError, match=r"^rope_tables: n_rot is 5"):
        rope_tables(8, 5, 10000.0)
