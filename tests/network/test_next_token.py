"""The rules by which a token is chosen, one by one and together."""
from types import SimpleNamespace

import numpy as np
import pytest

from lorafast.errors import LoraFastError
from lorafast.network.next_token import Sampling, choose, likeliest, penalised

OFF = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
P = np.array([0.05, 0.4, 0.1, 0.25, 0.2])
LOGITS = np.log(P).astype(np.float32) + 3
EVENLY = 1 / 400        # the number of draws that fall into a token's share may be one more or less


def frequencies(n: int = 400, **sampling) -> np.ndarray:
    """Of each token, by numbers that lie evenly between 0 and 1, so that few of them tell the proportions."""
    rules = Sampling(**{**OFF, **sampling})
    draws = [choose(LOGITS, (), rules, SimpleNamespace(random=lambda at=i: (at + 0.5) / n)) for i in range(n)]
    return np.bincount(draws, minlength=len(LOGITS)) / n


@pytest.mark.parametrize("sampling, kept", [
    (dict(), [0, 1, 2, 3, 4]), (dict(top_k=2), [1, 3]), (dict(top_p=0.6), [1, 3]), (dict(top_p=0.66), [1, 3, 4]),
    (dict(min_p=0.45), [1, 3, 4]), (dict(top_k=3, top_p=0.75), [1, 3]),       # of 0.85: 0.47 + 0.29 is enough
    (dict(top_p=0.6, min_p=0.7), [1])])
def test_what_is_left_keeps_its_proportions(sampling, kept):
    wanted = np.zeros(5)
    wanted[kept] = P[kept] / P[kept].sum()
    np.testing.assert_allclose(frequencies(**sampling), wanted, atol=EVENLY)


def test_temperature_comes_last():
    """So it does not change what top-p leaves."""
    wanted = P[[1, 3]] ** 2 / (P[[1, 3]] ** 2).sum()
    np.testing.assert_allclose(frequencies(temperature=0.5, top_p=0.6)[[1, 3]], wanted, atol=EVENLY)
    assert frequencies(50, temperature=0, top_k=1)[1] == 1


def test_repeat_penalty():
    logits = np.array([2, -2, 1, 4], np.float32)
    np.testing.assert_array_equal(penalised(logits, [0, 1, 0], 2.0, 64), [1, -4, 1, 4])
    np.testing.assert_array_equal(penalised(logits, [0, 1, 3, 3], 2.0, 2), [2, -2, 1, 2])
    np.testing.assert_array_equal(penalised(logits, [0, 1, 3, 3], 2.0, -1), [1, -4, 1, 2])
    np.testing.assert_array_equal(penalised(logits, [], 2.0, 64), logits)
    assert logits[0] == 2
    assert choose(logits, [3], Sampling(temperature=0, repeat_penalty=3.0), np.random.default_rng(0)) == 0


def test_likeliest_are_sorted_and_ties_are_in_order():
    logits = np.array([1, 5, 5, 0, 5, 7], np.float32)
    assert likeliest(logits, 0).tolist() == [5, 1, 2, 4, 0, 3]
    assert likeliest(logits, 3).tolist() == [5, 1, 2]


def test_the_seed_decides():
    draws = [[choose(LOGITS, [], Sampling(**OFF), rng) for _ in range(20)]
             for rng in map(np.random.default_rng, (1, 1, 2))]
    assert draws[0] == draws[1] != draws[2]


def test_broken_logits_are_an_error():
    with pytest.raises(LoraFastError, match="not finite"):
        choose(np.array([1, np.nan], np.float32), [], Sampling(), np.random.default_rng(0))
