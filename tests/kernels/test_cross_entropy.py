import numpy as np
import pytest
from numerics import GRADIENT_LIMIT, gradient_error, nmse

from lorafast.kernels.cross_entropy import (
    cross_entropy_forward,
    cross_entropy_forward_backward,
    cross_entropy_piece_backward,
    cross_entropy_piece_forward,
    cross_entropy_piece_loss,
)
from lorafast.reference import cross_entropy as twin

LOSS_LIMIT = {False: 1e-14, True: 3e-13}        # with a soft cap; measured 3e-15, 3e-14: tanh is within 2 ulp
DLOGITS_LIMIT = {False: 1e-12, True: 5e-11}     # measured 4e-14; 6e-12 near the cap, for 1 - (y / cap)² cancels


ORIGINALS = 1e-9          # the original's floor


@pytest.mark.parametrize("soft_cap", [0, 1.5])
@pytest.mark.parametrize("floor", [0, ORIGINALS])
def test_twin_gradients(rng, floor, soft_cap):
    logits, weight = rng.standard_normal((4, 6)), rng.standard_normal(4)
    targets, loss, dlogits = np.array([0, 5, -1, 2], np.int32), np.empty(4), logits.copy()

    def total():
        twin.cross_entropy_forward(loss, logits, targets, floor, soft_cap, 1)
        return np.sum(weight * loss)

    twin.cross_entropy_forward_backward(loss, dlogits, targets, weight, floor, soft_cap, 1)
    assert gradient_error(dlogits, total, logits) < GRADIENT_LIMIT


@pytest.mark.parametrize("floor, soft_cap", [(0, 0), (ORIGINALS, 0), (0, 30), (ORIGINALS, 5)])
@pytest.mark.parametrize("T, V", [(20, 32000), (3, 49152), (50, 1000), (7, 2049), (5, 3)])
def test_kernels_equal_twin(isa, rng, T, V, floor, soft_cap):
    logits = 4 * rng.standard_normal((T, V), dtype=np.float32) + rng.uniform(-50, 50, (T, 1)).astype(np.float32)
    targets, dloss = rng.integers(0, V, T, dtype=np.int32), rng.uniform(0, 1, T).astype(np.float32)
    targets[1] = -1
    exact_loss, exact_dlogits = np.empty(T), logits.astype(np.float64)
    twin.cross_entropy_forward_backward(exact_loss, exact_dlogits, targets, dloss.astype(np.float64), floor, soft_cap,
                                        1)

    loss = np.full(T, np.nan, np.float32)
    cross_entropy_forward(loss, logits, targets, floor, soft_cap, 2)
    assert nmse(loss, exact_loss) < LOSS_LIMIT[soft_cap > 0]

    fused_loss, fused = np.full(T, np.nan, np.float32), logits.copy()
    cross_entropy_forward_backward(fused_loss, fused, targets, dloss, floor, soft_cap, 2)
    np.testing.assert_array_equal(fused_loss, loss)
    assert nmse(fused, exact_dlogits) < DLOGITS_LIMIT[soft_cap > 0]
    assert not fused[1].any()


@pytest.mark.parametrize("floor, soft_cap", [(0, 0), (ORIGINALS, 5)])
def test_pieces_give_the_bits_of_the_whole(isa, rng, floor, soft_cap):
    T, V, n = 6, 9001, 4096
    logits = 4 * rng.standard_normal((T, V), dtype=np.float32)
    targets = np.array([0, 4095, 4096, V - 1, 8192, 17], np.int32)
    dloss, loss, whole = rng.uniform(0, 1, T).astype(np.float32), np.empty(T, np.float32), logits.copy()
    cross_entropy_forward_backward(loss, whole, targets, dloss, floor, soft_cap, 2)
    highest, total, chosen = np.full(T, np.finfo(np.float32).min), np.zeros(T), np.empty(T, np.float32)
    pieces = [(np.ascontiguousarray(logits[:, begin:begin + n]), targets - np.int32(begin)) for begin in range(0, V, n)]
    for piece, here in pieces:
        cross_entropy_piece_forward(highest, total, chosen, piece, here, soft_cap, 2)
    got = np.empty(T, np.float32)
    cross_entropy_piece_loss(got, highest, total, chosen, floor, 2)
    for piece, here in pieces:
        cross_entropy_piece_backward(piece, highest, total, here, dloss, floor, soft_cap, 2)
    np.testing.assert_array_equal(got, loss)
    np.testing.assert_array_equal(np.hstack([piece for piece, _ in pieces]), whole)


@pytest.mark.parametrize("floor", [0, ORIGINALS])
@pytest.mark.parametrize("V", [40, 5000])
def test_maximum_anywhere(isa, V, floor):
    """The running maximum of the one-pass sum: rising, falling, and in the tail of the row."""
    for ends in ((-300, 300), (300, -300)):
        logits = np.linspace(*ends, V, dtype=np.float32)[None]
        for target in (0, V - 1):
            targets, loss, exact = np.array([target], np.int32), np.empty(1, np.float32), np.empty(1)
            twin.cross_entropy_forward(exact, logits.astype(np.float64), targets, floor, 0, 1)
            cross_entropy_forward(loss, logits, targets, floor, 0, 1)
            np.testing.assert_allclose(loss, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("floor, wanted", [(0, 100), (ORIGINALS, 20.723266)])      # -ln 1e-9
def test_a_floor_caps_the_loss(floor, wanted):
    logits = np.zeros((1, 45), np.float32)
    logits[0, 0] = 100
    loss = np.empty(1, np.float32)
    cross_entropy_forward(loss, logits, np.array([1], np.int32), floor, 0, 1)
    assert loss[0] == pytest.approx(wanted)
    cross_entropy_forward_backward(loss, logits, np.array([1], np.int32), np.array([0.5], np.float32), floor, 0, 1)
    np.testing.assert_allclose(logits, [[0.5, -0.5] + 43 * [0.5 * floor]], rtol=1e-6, atol=1e-30)


def test_minus_infinity_is_a_token_that_cannot_be():
    logits = np.array([[-np.inf, 0, 0]], np.float32)
    loss = np.empty(1, np.float32)
    cross_entropy_forward_backward(loss, logits, np.array([1], np.int32), np.ones(1, np.float32), ORIGINALS, 0, 1)
    assert loss[0] == pytest.approx(np.log(2))
    np.testing.assert_allclose(logits, [[0, -0.5, 0.5]], atol=2e-9)


@pytest.mark.parametrize("soft_cap", [0, 20])
def test_losses_of_far_logits(isa, soft_cap):
    """Nothing overflows or is lost: what perplexity measures, in nats. Under a cap logits are at most the cap apart."""
    logits = np.array([[-1000, 0], [0, -3]], np.float32)
    loss = np.empty(2, np.float32)
    cross_entropy_forward(loss, logits, np.array([0, 1], np.int32), 0, soft_cap, 1)
    far, near = (20, 20 * np.tanh(3 / 20)) if soft_cap else (1000, 3)
    np.testing.assert_allclose(loss, [far, near + np.log1p(np.exp(-near))], rtol=1e-6)


@pytest.mark.parametrize("soft_cap", [-1, np.nan])
def test_a_cap_below_zero_is_refused(soft_cap):
    with pytest.raises(ValueError, match=r"^cross_entropy_forward: soft_cap is (-1|nan), wanted at least 0"):
        cross_entropy_forward(np.empty(1, np.float32), np.zeros((1, 6), np.float32), np.array([0], np.int32), 0,
                              soft_cap, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 30, 4999])
def test_bad_logits_show_in_the_loss(isa, bad, place):
    logits = np.zeros((1, 5000), np.float32)
    logits[0, place] = bad
    loss = np.zeros(1, np.float32)
    cross_entropy_forward(loss, logits, np.array([7], np.int32), ORIGINALS, 0, 1)
    assert np.isnan(loss[0])


@pytest.mark.parametrize("target", [-2, 6])
def test_target_outside_the_vocabulary(target):
    with pytest.raises(ValueError, match=rf"^cross_entropy_forward: targets\[1\] is {target}, wanted -1 to 5"):
        cross_entropy_forward(np.empty(2, np.float32), np.zeros((2, 6), np.float32), np.array([0, target], np.int32),
                              0, 0, 1)
