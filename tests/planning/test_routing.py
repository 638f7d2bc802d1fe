"""How many experts a pass over the data is reckoned to need, and that it needs so many."""
import numpy as np
import pytest
from make_models import make_tiny

from lorafast.gguf.reader import open_model
from lorafast.network.experts import ExpertGroup
from lorafast.network.hparams import read_hparams
from lorafast.network.model_files import ModelFiles
from lorafast.network.network import Network
from lorafast.network.window import Window
from lorafast.planning.routing import EVEN, Routing, measure_routing
from lorafast.planning.speed import follow

E, K, CTX = 16, 2, 24


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    gguf = open_model(make_tiny(tmp_path_factory.mktemp("routing") / "model.gguf", experts=E, embd_std=2.0))
    network = Network(gguf, read_hparams(gguf), CTX)
    experts = next(group for group in network.blocks[0].groups if isinstance(group, ExpertGroup))
    return network, ModelFiles(gguf), experts


def test_even_where_nothing_is_known(opened):
    network, _, experts = opened
    assert EVEN.share(experts, 1) == pytest.approx(K / E)
    assert EVEN.share(experts, 10) == pytest.approx(1 - (1 - K / E) ** 10)
    assert EVEN.share(network.head.group, 10) == 1.0


def test_in_the_mean_over_the_data_and_beyond_it(opened):
    network, _, experts = opened
    routing = Routing({experts: np.array([[0, 1], [0, 1], [2, 3], [4, 5]])})
    assert routing.share(experts, 1) == 2 / E
    assert routing.share(experts, 2) == np.mean([2, 4]) / E
    assert routing.share(experts, 4) == 6 / E
    assert routing.share(experts, 8) == pytest.approx(1 - (1 - 6 / E) ** 2)
    assert routing.needed_again(experts, 1) == pytest.approx(np.mean([1, 0, 0]))
    assert routing.needed_again(experts, 4) == routing.share(experts, 4), "of a single pass nothing else is known"
    above = next(group for group in network.blocks[1].groups if isinstance(group, ExpertGroup))
    assert routing.share(above, 2) == routing.share(experts, 2)


def test_a_step_reads_what_the_one_before_it_did_not_need():
    """Two units that fit into memory, one of experts, half of whose parts the next pass needs again."""
    order = [0, 1, 1, 0]
    assert follow(Window([10, 10], order, 20, [1]), [1.0] * 4, 5.0)[1] == 0
    assert follow(Window([10, 10], order, 20, [1]), [1.0] * 4, 5.0, {1: 0.5})[1] == 5


def test_a_text_that_repeats_itself_needs_fewer(opened):
    network, files, experts = opened
    varied = np.random.default_rng(0).integers(3, 380, 4 * CTX).astype(np.int32)
    repeated = np.full(4 * CTX, varied[0], np.int32)
    routings = [measure_routing(network, tokens, CTX, CTX, 1, files) for tokens in (varied, repeated)]
    shares = [routing.share(experts, CTX) for routing in routings]
    assert routings[1].needed_again(experts, CTX) == 1.0, "two small passes are compared"
    assert shares[0] > 0.8 > 0.4 > shares[1] >= K / E
    assert measure_routing(network, varied, CTX, CTX, 1).share(experts, CTX) == shares[0], "where all is in memory"


def test_work_of_experts_against_dense(opened):
    """With many tokens what the rows take, with one what unpacking takes."""
    network, _, experts = opened
    dense = network.head.group
    many = EVEN.work(experts, 10**6) / experts.n_values / (EVEN.work(dense, 10**6) / dense.n_values)
    assert many == pytest.approx(K / E, rel=0.01)
    one = EVEN.work(experts, 1) / experts.n_values / (EVEN.work(dense, 1) / dense.n_values)
    assert one == pytest.approx(K / E)


def test_without_experts_or_data(opened, tmp_path):
    network, files, _ = opened
    assert measure_routing(network, np.zeros(0, np.int32), CTX, CTX, 1, files) is EVEN
    gguf = open_model(make_tiny(tmp_path / "dense.gguf"))
    dense = Network(gguf, read_hparams(gguf), CTX)
    assert measure_routing(dense, np.ones(9, np.int32), CTX, CTX, 1) is EVEN
