"""The tree in which the gradients of passes are summed."""
import itertools

import numpy as np
import pytest

from lorafast.network.lora import Adapter, PairSpec
from lorafast.network.pass_sums import PassSums, nodes_within, split, stores_needed, sum_of_nodes

ADAPTER = Adapter([PairSpec("blk.0.attn_q.weight", "linear", 8, 8, 2)], 2, 2)


def gradients(n_passes: int) -> np.ndarray:
    """float32 (n_passes, n_params) whose sum depends on the order."""
    random = np.random.default_rng(n_passes)
    shape = n_passes, ADAPTER.n_params
    return (random.standard_normal(shape) * 10.0 ** random.integers(-3, 4, shape)).astype(np.float32)


def summed(values: np.ndarray, own: range) -> dict[range, np.ndarray]:
    """The parts that whoever has these passes adds up."""
    sums = PassSums(ADAPTER)
    sums.begin(len(values), own)
    for i in own:
        sums.next().flat += values[i]
        sums.add()
    assert len(sums.stores) <= max(1, stores_needed(len(own)) + 1)
    return {part: array.copy() for part, array in sums.sums().items()}


def recursive(values: np.ndarray) -> np.ndarray:
    """The definition."""
    if len(values) == 1:
        return values[0]
    middle = split(range(len(values)))
    return recursive(values[:middle]) + recursive(values[middle:])


def test_the_tree_of_seven():
    g = gradients(7)
    expected = ((g[0] + g[1]) + (g[2] + g[3])) + ((g[4] + g[5]) + g[6])
    parts = summed(g, range(7))
    assert list(parts) == [range(7)]
    np.testing.assert_array_equal(parts[range(7)], expected)
    assert not np.array_equal(expected, np.add.reduce(list(g))), "the order does not matter for these numbers"


@pytest.mark.parametrize("n_passes", range(1, 14))
def test_any_number_of_ranks_gives_the_same_bits(n_passes):
    g = gradients(n_passes)
    for n_ranks in range(1, n_passes + 3):
        bounds = [n_passes * rank // n_ranks for rank in range(n_ranks + 1)]
        parts: dict[range, np.ndarray] = {}
        for begin, end in itertools.pairwise(bounds):
            own = summed(g, range(begin, end))
            assert list(own) == nodes_within(range(begin, end), range(n_passes))
            parts |= own
        np.testing.assert_array_equal(sum_of_nodes(parts, range(n_passes)), recursive(g))


def test_one_pass_takes_one_store_and_eight_take_four():
    assert [stores_needed(n) for n in (0, 1, 2, 3, 4, 5, 8, 9, 16)] == [1, 1, 2, 2, 3, 3, 4, 4, 5]
