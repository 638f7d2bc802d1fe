"""Gradients summed over ranks: the bits of one rank."""
import numpy as np
import pytest
from thread_ranks import on_ranks

from lorafast.distributed.reduction import slices, sum_over_ranks
from lorafast.distributed.wire import BFloat16, Float32, Wire
from lorafast.distributed.world import World
from lorafast.network.lora import Adapter, PairSpec
from lorafast.network.pass_sums import PassSums

ADAPTER = Adapter([PairSpec("blk.0.attn_q.weight", "linear", 37, 21, 2)], 2, 2)


def summed(size: int, n_passes: int, wire: Wire = Float32()) -> list[np.ndarray]:       # noqa: B008 (it has no state)
    random = np.random.default_rng(n_passes)
    shape = n_passes, ADAPTER.n_params
    gradients = (random.standard_normal(shape) * 10.0 ** random.integers(-3, 4, shape)).astype(np.float32)

    def run(world: World) -> np.ndarray:
        sums = PassSums(ADAPTER)
        sums.begin(n_passes, world.share(n_passes))
        for i in world.share(n_passes):
            sums.next().flat += gradients[i]
            sums.add()
        sum_over_ranks(world, sums, n_passes, wire)
        return sums.stores[0].flat

    return on_ranks(size, run)


@pytest.mark.parametrize("n_passes", [1, 2, 3, 5, 8])
def test_the_bits_do_not_depend_on_the_number_of_ranks(n_passes):
    expected, = summed(1, n_passes)
    for size in (2, 3, 4, 5, 7):
        for rank, result in enumerate(summed(size, n_passes)):
            np.testing.assert_array_equal(result, expected, f"rank {rank} of {size}")


def test_slices_cover_everything_and_begin_on_cache_lines():
    for n, n_ranks in ((1000, 3), (17, 4), (16, 2)):
        places = slices(n, n_ranks)
        assert [i for place in places for i in range(place.start, place.stop)] == list(range(n))
        assert all(place.start % 16 == 0 or place.start == n for place in places)


def test_bfloat16_is_rounded_and_the_same_on_all_ranks():
    expected, = summed(1, 4)
    results = summed(2, 4, BFloat16())
    np.testing.assert_array_equal(*results)
    error = np.abs(results[0] - expected) / np.abs(expected).max()
    assert 0 < error.max() < 2.0**-7


def test_bfloat16_rounds_to_the_nearest_even():
    values = np.array([1, 1 + 2**-8, 1 + 3 * 2**-8, -3.14159265, np.inf, -np.inf, np.nan, 0, -0.0], np.float32)
    wire = BFloat16()
    back = wire.unpacked(wire.packed(values))
    np.testing.assert_array_equal(back, np.array([1, 1, 1 + 2**-6, -3.140625, np.inf, -np.inf, np.nan, 0, -0.0],
                                                 np.float32))
