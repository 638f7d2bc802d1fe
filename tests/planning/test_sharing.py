"""What connects ranks, and how long gradients take on it."""
import pytest

from lorafast.errors import UsageError
from lorafast.planning.sharing import WAKING, link_of


def test_what_a_network_takes():
    two = link_of("1G,1ms").seconds(117_500_000, 2)
    assert two == pytest.approx(1.0 + 8e-3 + WAKING)        # each sends half of the bytes twice
    assert link_of("1G").seconds(117_500_000, 16) == pytest.approx(15 / 8 + 8e-4 + WAKING)
    assert link_of("10G,0.5ms").seconds(0, 4) == pytest.approx(4e-3 + WAKING)
    assert link_of("1G").seconds(10**9, 1) == 0


def test_latencies_where_none_is_given():
    assert [link_of(name).latency for name in ("1G", "2.5G", "10G", "25G")] == [1e-4, 5e-5, 5e-5, 3e-5]


@pytest.mark.parametrize("text", ["fast", "1", "0G", "1G,", "1G,1s", "-1G"])
def test_other_texts_are_refused(text):
    with pytest.raises(UsageError, match="--network"):
        link_of(text)
