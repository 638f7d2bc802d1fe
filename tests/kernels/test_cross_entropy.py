import numpy as np
import pytest
from lorafast.kernels.cross_entropy import cross_entropy_backward, cross_entropy_forward, cross_entropy_forward_backward
from numerics import GRADIENT_LIMIT, gradient_error, nmse

from lorafast.reference import cross_entropy as twin

LOSS_LIMIT = 1e-14        # measured 3e-15
DLOGITS_LIMIT = 1e-12     # measured 4e-14


ORIGINALS = 1e-9          # the original's floor


@pytest.mark.parametrize("floor", [0, ORIGINALS])
def test_twin_gradients(rng, floor):
    logits, weight = rng.standard_normal((4, 6)), rng.standard_normal(4)
    targets, loss, dlogits = np.array([0, 5, -1, 2], np.int32), np.empty(4), np.zeros((4, 6))

    def total():
        twin.cross_entropy_forward(loss, logits, targets, floor, 1)
        return np.sum(weight * loss)

    twin.cross_entropy_backward(dlogits, weight, logits, targets, floor, 1)
    assert gradient_error(dlogits, total, logits) < GRADIENT_LIMIT
    fused = logits.copy()
    twin.cross_entropy_forward_backward(loss, fused, targets, weight, floor, 1)
    np.testing.assert_array_equal(fused, dlogits)


@pytest.mark.parametrize("floor", [0, ORIGINALS])
@pytest.mark.parametrize("T, V", [(20, 32000), (3, 49152), (50, 1000), (7, 2049), (5, 3)])
def test_kernels_equal_twin(isa, rng, T, V, floor):
    logits = 4 * rng.standard_normal((T, V), dtype=np.float32) + rng.uniform(-50, 50, (T, 1)).astype(np.float32)
    targets, dloss = rng.integers(0, V, T, dtype=np.int32), rng.uniform(0, 1, T).astype(np.float32)
    targets[1] = -1
    exact_loss, exact_dlogits = np.empty(T), np.zeros((T, V))
    twin.cross_entropy_forward(exact_loss, logits.astype(np.float64), targets, floor, 1)
    twin.cross_entropy_backward(exact_dlogits, dloss.astype(np.float64), logits.astype(np.float64), targets, floor, 1)

    loss, dlogits = np.full(T, np.nan, np.float32), np.zeros((T, V), np.float32)
    cross_entropy_forward(loss, logits, targets, floor, 2)
    cross_entropy_backward(dlogits, dloss, logits, targets, floor, 2)
    assert nmse(loss, exact_loss) < LOSS_LIMIT
    assert nmse(dlogits, exact_dlogits) < DLOGITS_LIMIT

    fused_loss, fused = np.full(T, np.nan, np.float32), logits.copy()
    cross_entropy_forward_backward(fused_loss, fused, targets, dloss, floor, 2)
    np.testing.assert_array_equal(fused_loss, loss)
    assert nmse(fused, exact_dlogits) < DLOGITS_LIMIT
    assert not fused[1].any()


@pytest.mark.parametrize("floor", [0, ORIGINALS])
@pytest.mark.parametrize("V", [40, 5000])
def test_maximum_anywhere(isa, V, floor):
    """The running maximum of the one-pass sum: rising, falling, and in the tail of the row."""
    for ends in ((-300, 300), (300, -300)):
        logits = np.linspace(*ends, V, dtype=np.float32)[None]
        for target in (0, V - 1):
            targets, loss, exact = np.array([target], np.int32), np.empty(1, np.float32), np.empty(1)
            twin.cross_entropy_forward(exact, logits.astype(np.float64), targets, floor, 1)
            cross_entropy_forward(loss, logits, targets, floor, 1)
            np.testing.assert_allclose(loss, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("floor, wanted", [(0, 100), (ORIGINALS, 20.723266)])      # -ln 1e-9
def test_a_floor_caps_the_loss(floor, wanted):
    logits, dlogits = np.zeros((2, 1, 45), np.float32)
    logits[0, 0] = 100
    loss = np.empty(1, np.float32)
    cross_entropy_forward(loss, logits, np.array([1], np.int32), floor, 1)
    assert loss[0] == pytest.approx(wanted)
    cross_entropy_backward(dlogits, np.array([0.5], np.float32), logits, np.array([1], np.int32), floor, 1)
    np.testing.assert_allclose(dlogits, [[0.5, -0.5] + 43 * [0.5 * floor]], rtol=1e-6, atol=1e-30)


def test_minus_infinity_is_a_token_that_cannot_be():
    logits = np.array([[-np.inf, 0, 0]], np.float32)
    loss = np.empty(1, np.float32)
    cross_entropy_forward_backward(loss, logits, np.array([1], np.int32), np.ones(1, np.float32), ORIGINALS, 1)
    assert loss[0] == pytest.approx(np.log(2))
    np.testing.assert_allclose(logits, [[0, -0.5, 0.5]], atol=2e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 30, 4999])
def test_bad_logits_show_in_the_loss(isa, bad, place):
    logits = np.zeros((1, 5000), np.float32)
    logits[0, place] = bad
    loss = np.zeros(1, np.float32)
    cross_entropy_forward(loss, logits, np.array([7], np.int32), ORIGINALS, 1)
    assert np.isnan(loss[0])


@pytest.mark.parametrize("target", [-2, 6])
def test_target_outside_the_vocabulary(target):
    with pytest.raises(ValueError, match=rf"^cross_entropy_forward: targets\[1\] is {target}, wanted -1 to 5"):
        cross_entropy_forward(np.empty(2, np.float32), np.zeros((2, 6), np.float32), np.array([0, target], np.int32),
                              0, 1)
