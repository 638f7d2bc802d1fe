import numpy as np
import pytest
from numerics import GRADIENT_LIMIT, gradient_error, nmse

from lorafast.kernels.rope import rope_forward
from lorafast.reference import rope as twin

LIMIT = 1e-14     # measured 1.5e-15, forward and backward


def random_angles(rng, P, n_rot):
    angle = rng.uniform(0, 2 * np.pi, (P, n_rot // 2))
    return np.cos(angle), np.sin(angle)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("n_rot", [6, 4])
def test_twin_gradients(rng, interleaved, n_rot):
    x, weight = rng.standard_normal((2, 3, 12))                # 2 heads of 6
    cos, sin = random_angles(rng, 5, n_rot)
    positions, y, dx = np.array([4, 0, 2], np.int32), np.empty((3, 12)), np.empty((3, 12))

    def loss():
        twin.rope_forward(y, x, cos, sin, positions, 2, interleaved, 1)
        return np.sum(weight * y)

    twin.rope_forward(dx, weight, cos, -sin, positions, 2, interleaved, 1)
    assert gradient_error(dx, loss, x) < GRADIENT_LIMIT


def test_pairs_in_words():
    """One head of 4, quarter turns by position: (a, b) becomes (-b, a)."""
    x = np.array([[1, 2, 3, 4]], np.float32)
    cos, sin = np.array([[1, 1], [0, 0]], np.float32), np.array([[0, 0], [1, 1]], np.float32)
    y = np.empty_like(x)
    for interleaved, expected in ((True, [-2, 1, -4, 3]), (False, [-3, -4, 1, 2])):
        rope_forward(y, x, cos, sin, np.array([1], np.int32), 1, interleaved, 1)
        np.testing.assert_array_equal(y[0], expected)
        rope_forward(y, x, cos, sin, np.array([0], np.int32), 1, interleaved, 1)
        np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("T, n_head, D, n_rot", [(100, 12, 64, 64), (50, 3, 128, 128), (70, 5, 80, 32), (9, 2, 10, 6)])
def test_kernel_equals_twin(isa, rng, interleaved, T, n_head, D, n_rot):
    cos, sin = (table.astype(np.float32) for table in random_angles(rng, 128, n_rot))
    positions = rng.integers(0, 128, T, dtype=np.int32)
    x = rng.standard_normal((T, n_head * D), dtype=np.float32)
    y, dx, exact_y, exact_dx = np.empty_like(x), np.empty_like(x), np.empty(x.shape), np.empty(x.shape)
    twin.rope_forward(exact_y, x.astype(np.float64), cos, sin, positions, n_head, interleaved, 1)
    twin.rope_forward(exact_dx, x.astype(np.float64), cos, -sin, positions, n_head, interleaved, 1)

    rope_forward(y, x, cos, sin, positions, n_head, interleaved, 2)
    rope_forward(dx, x, cos, -sin, positions, n_head, interleaved, 2)
    assert nmse(y, exact_y) < LIMIT
    assert nmse(dx, exact_dx) < LIMIT

    head = np.arange(n_head * D) % D
    np.testing.assert_array_equal(y[:, head >= n_rot], x[:, head >= n_rot])
    rope_forward(x, x, cos, sin, positions, n_head, interleaved, 2)      # in place
    np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("position", [-1, 5])
def test_position_outside_the_tables(position):
    x, table = np.zeros((2, 4), np.float32), np.zeros((5, 2), np.float32)
    with pytest.raises(ValueError, match=rf"^rope_forward: positions\[1\] is {position}, wanted 0 to 4"):
        rope_forward(x.copy(), x, table, table, np.array([0, position], np.int32), 1, True, 1)


def test_heads_that_do_not_fit():
    x, table = np.zeros((2, 12), np.float32), np.zeros((5, 3), np.float32)
    for n_head in (0, 5, 3):                                   # no head, a remainder, heads of 4 < n_rot 6
        with pytest.raises(ValueError, match=r"^rope_forward: x has shape \(2, 12\), wanted . heads of at least 6"):
            rope_forward(x.copy(), x, table, table, np.zeros(2, np.int32), n_head, True, 1)
