"""Budgets, the bytes and seconds that the plan reckons with, and the strategies it chooses from."""
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from hybrid_models import make_hybrid
from make_models import make_tiny

from lorafast.errors import UsageError
from lorafast.gguf.reader import open_model
from lorafast.network.buffers import Scratch, empty, sized
from lorafast.network.hparams import read_hparams
from lorafast.network.lora import Adapter, default_ranks, specs_for
from lorafast.network.model_files import ModelFiles
from lorafast.network.network import Network
from lorafast.network.trainer import Activations, Strategy, Trainer, scratch_floats
from lorafast.network.window import Window
from lorafast.planning.budget import Budget, cgroup_limit, parse_limit, read_budget
from lorafast.planning.plan import Job
from lorafast.planning.planner import Planner
from lorafast.planning.speed import BlockSpeed, Speed, follow, measure_speed
from lorafast.system.mounts import Mount, read_mounts
from tests.network.test_network import Case, batch_of

GIB, MIB = 2**30, 2**20


@pytest.mark.parametrize("text, nbytes", [
    ("1.5G", 3 * GIB // 2), ("800M", 800 * MIB), ("800m", 800 * MIB), ("800MB", 800 * MIB), ("1 GiB", GIB),
    ("2048K", 2 * MIB), (".5T", 512 * GIB), ("50%", 4 * GIB), ("100%", 8 * GIB)])
def test_limits(text, nbytes):
    assert parse_limit(text, 8 * GIB) == nbytes


@pytest.mark.parametrize("text", ["", "1.5", "G", "-1G", "0M", "101%", "1.5GG", "1e3M", "nan%", "1,5G"])
def test_what_is_no_limit(text):
    with pytest.raises(UsageError, match=r"--mem-limit .*: must be a size such as 1.5G or 800M, or a share such as "
                       r"50%"):
        parse_limit(text, 8 * GIB)


PURE_V1 = {"cpu": ("/sys/fs/cgroup/cpu", "cgroup", "cpu"), "memory": ("/sys/fs/cgroup/memory", "cgroup", "memory")}
PURE_V2 = {"": ("/sys/fs/cgroup", "cgroup2", "nsdelegate")}
HYBRID = {**PURE_V1, "": ("/sys/fs/cgroup/unified", "cgroup2", "rw")}


def system(root: Path, available: int = 8 * GIB, cgroup: str = "", files: dict[str, str] | None = None, mounts=PURE_V2,
           shown: str = "/") -> Path:
    """A folder with proc and sys as this process would see them. shown: the group that is mounted at the top."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {available // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(cgroup)
    lines = [f"{20 + i} 1 0:{20 + i} {shown} {point} rw,nosuid shared:9 - {type} {type} rw,{options}"
             for i, (point, type, options) in enumerate(mounts.values())]
    (root / "proc/self/mountinfo").write_text("\n".join(["19 1 0:19 / /a\\040b rw - tmpfs tmpfs rw", *lines, ""]))
    for name, text in (files or {}).items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


V1 = "5:cpu:/a\n4:memory:/a/b\n"
V1_NONE = "9223372036854771712"
V1_FILE, V2_FILE = "memory.limit_in_bytes", "memory.max"


@pytest.mark.parametrize("mounts, cgroup, files, limit", [
    (PURE_V2, "", {}, None),
    ({}, "0::/a\n", {"a/memory.max": str(GIB)}, None),
    (PURE_V2, "0::/a/b\n", {"a/b/memory.max": "max"}, None),
    (PURE_V2, "0::/a/b\n", {"a/b/memory.max": str(GIB)}, GIB),
    (PURE_V2, "0::/a/b\n", {"a/b/memory.max": str(2 * GIB), "a/memory.max": str(GIB), "memory.max": "max"}, GIB),
    (PURE_V2, "0::/a/b\n", {"a/b/memory.max": "max", "a/b/memory.high": str(GIB)}, GIB),
    (PURE_V2, "0::/a\n", {"a/b/memory.max": str(GIB)}, None),
    (PURE_V2, "0::/\n", {}, None),
    (PURE_V2, "0::/host/path\n", {"memory.max": str(GIB)}, GIB),
    (PURE_V1, V1, {f"memory/a/b/{V1_FILE}": V1_NONE}, None),
    (PURE_V1, V1, {f"memory/a/b/{V1_FILE}": V1_NONE, f"memory/a/{V1_FILE}": str(GIB)}, GIB),
    (PURE_V1, V1, {f"cpu/a/{V1_FILE}": str(GIB)}, None),
    (HYBRID, V1 + "0::/\n", {f"memory/a/b/{V1_FILE}": str(GIB), "unified/cgroup.controllers": ""}, GIB),
    (HYBRID, V1 + "0::/\n", {f"memory/a/b/{V1_FILE}": str(GIB), "memory.max": str(MIB)}, GIB),
    (HYBRID, "5:cpu:/a\n0::/a\n", {"unified/a/memory.max": str(GIB)}, GIB),
    ({"": PURE_V2[""], "other": ("/sys/fs/cgroup/x", "cgroup2", "rw")}, "0::/a\n", {"x/a/memory.max": str(GIB)}, GIB),
])
def test_limit_of_the_cgroup(tmp_path, mounts, cgroup, files, limit):
    assert cgroup_limit(system(tmp_path, cgroup=cgroup, files=files, mounts=mounts)) == limit


@pytest.mark.parametrize("path, limit", [("/docker/1", 3 * GIB), ("/docker/1/job", GIB), ("/docker/2/job", 3 * GIB),
                                         ("/", 3 * GIB), ("/../2", 3 * GIB)])
def test_limit_of_a_container_that_sees_its_own_group_at_the_top(tmp_path, path, limit):
    files = {V2_FILE: str(3 * GIB), f"job/{V2_FILE}": str(GIB)}
    assert cgroup_limit(system(tmp_path, cgroup=f"0::{path}\n", files=files, shown="/docker/1")) == limit


def test_mounts(tmp_path):
    mounts = read_mounts(system(tmp_path, mounts=PURE_V1))
    assert mounts[0] == Mount("0:19", "/", "/a b", "tmpfs", ("rw",))
    assert mounts[2] == Mount("0:21", "/", "/sys/fs/cgroup/memory", "cgroup", ("rw", "memory"))
    assert read_mounts(tmp_path / "nowhere") == []


@pytest.mark.parametrize("limit, cgroup, nbytes, source", [
    ("", 4 * GIB, 4 * GIB, "the limit of this process's cgroup"),
    ("", 64 * GIB, 8 * GIB, "the memory that is available"),
    ("1G", 4 * GIB, GIB, "--mem-limit 1G"),
    ("50%", 4 * GIB, 2 * GIB, "--mem-limit 50%"),
    ("6G", 4 * GIB, 4 * GIB, "the limit of this process's cgroup"),
    ("16G", None, 16 * GIB, "--mem-limit 16G"),
])
def test_budget(tmp_path, monkeypatch, limit, cgroup, nbytes, source):
    monkeypatch.setattr("lorafast.planning.budget.resident_bytes", lambda: 0)
    root = system(tmp_path, cgroup="0::/\n", files={"memory.max": str(cgroup or "max")})
    budget = read_budget(limit, root)
    assert (budget.nbytes, budget.source, budget.cgroup) == (nbytes, source, cgroup)


STRATEGIES = [Strategy(4), Strategy(3), Strategy(1), Strategy(1, 2), Strategy(1, 3), Strategy(1, 4), Strategy(2, 1, 7),
              Strategy(1, 2, 16, 2), Strategy(4, 1, 128, 1), Strategy(4, keeps_cheap=False),
              Strategy(3, keeps_cheap=False)]


@pytest.mark.parametrize("targets, dora", [
    (None, False), (["blk.2.attn_q", "blk.3.ffn_up"], False), (["output"], False),
    (None, True), (["blk.1.ffn_down", "blk.2.attn_output", "blk.3.ffn_gate"], True)], ids=str)
def test_every_strategy_gives_the_same_loss_and_gradients(tmp_path, targets, dora):
    case = Case(tmp_path / "model.gguf", n_layer=4, targets=targets, dora=dora)
    batch = batch_of(case.tokens, case.targets)
    results = {}
    for strategy in STRATEGIES:
        case.gradients.flat.fill(0)
        trainer = Trainer(case.network, case.adapter, strategy.max_tokens(*case.tokens.shape), strategy, n_threads=2)
        results[strategy] = trainer.loss_and_gradients(batch, 0.01, case.gradients), case.gradients.flat.copy()
    loss, gradients = results[STRATEGIES[0]]
    for strategy, (other_loss, other_gradients) in results.items():
        if strategy.head_tokens == 128 and not strategy.micro_batch:
            assert other_loss == loss, strategy
            np.testing.assert_array_equal(other_gradients, gradients, str(strategy))
        assert other_loss == pytest.approx(loss, rel=1e-6), strategy
        np.testing.assert_allclose(other_gradients, gradients, rtol=1e-4, atol=1e-5 * np.abs(gradients).max(),
                                   err_msg=str(strategy))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_sizes_without_memory_are_those_with_it(tmp_path, strategy, dora):
    case = Case(tmp_path / "model.gguf", n_layer=4, dora=dora)
    T = strategy.max_tokens(*case.tokens.shape)
    trainer = Trainer(case.network, case.adapter, T, strategy, n_threads=1)
    assert Activations(case.network, case.adapter, T, strategy, sized).nbytes == trainer.buffers.nbytes
    scratch = 4 * scratch_floats(case.network, case.adapter, T, strategy)
    assert trainer.nbytes == trainer.buffers.nbytes + scratch
    array = sized(1000, 1000, 1000)
    assert (array.shape, array.nbytes) == ((1000, 1000, 1000), 4 * 10**9)


@pytest.mark.parametrize("name", ["llama", "qwen35moe", "gemma4"])
@pytest.mark.parametrize("targets", [None, ["blk.2.*"]], ids=str)
def test_activations_summed_block_by_block_are_the_trainers(tmp_path, name, targets):
    path = tmp_path / "model.gguf"
    gguf = open_model(make_tiny(path, n_layer=4) if name == "llama" else make_hybrid(path, name))
    hparams = read_hparams(gguf)
    network = Network(gguf, hparams, 16)
    adapter = Adapter(specs_for(hparams.tensor_shapes(), default_ranks(4), targets), 4, 4)
    planner = Planner(gguf, ModelFiles(gguf), network, adapter, Job(1, 16, 1, 1, 1), Budget(GIB, "it", None), 0)
    for strategy in STRATEGIES:
        trainers = Activations(network, adapter, 16, strategy, sized)
        assert planner._activation_bytes(16, strategy.n_kept, strategy.input_every, strategy.keeps_cheap) == (
            trainers.nbytes - trainers.saved_nbytes, trainers.saved_nbytes), strategy


def test_scratch_is_used_in_turn():
    scratch = Scratch(Scratch.floats(3, 5, 8))
    a, b = scratch.arrays(3, 5, 8)
    assert a.shape == (3, 5) and b.shape == (3, 8) and not np.shares_memory(a, b)
    c, = scratch.arrays(2, 6)
    assert np.shares_memory(a, c) and c.flags.c_contiguous
    with pytest.raises(ValueError, match="cannot hold 3 rows"):
        scratch.arrays(3, 50)


def test_a_step_that_reads_nothing_takes_the_time_of_computing():
    assert follow(Window([10, 10], [0, 1, 1, 0], 20), [1.0, 2.0, 3.0, 4.0], rate=5.0) == (10.0, 0)


def test_a_step_waits_for_a_slow_disk_and_hides_a_quick_one():
    n = 20
    order = [*range(n), *reversed(range(n))]
    for rate, least in ((1e9, 40.0), (10.0, 40.0), (0.5, 2 * (n - 4) * 2.0)):
        seconds, read = follow(Window([1] * n, order, 4), [1.0] * (2 * n), rate)
        assert read == 2 * (n - 4)
        assert 0.999 * least < seconds < 1.15 * least, rate


def test_what_is_measured_on_a_part_of_a_long_sequence(tmp_path, monkeypatch):
    """The linear parts grow with the tokens, attention with their square."""
    case = Case(tmp_path / "model.gguf")
    monkeypatch.setattr("lorafast.planning.speed.MEASURED_TOKENS", 10)
    monkeypatch.setattr("lorafast.planning.speed._usual_time", lambda run, residency: (run(), 1.0)[1])
    shape = case.network.blocks[0].shape
    assert measure_speed(case.network, case.adapter, 40, 10, 8, 1) == Speed(40, 8, {shape: BlockSpeed(*[4.0] * 4)}, 4.0)
    of_block = BlockSpeed(*(pytest.approx(1.3 * (1 + 0.3 * growth)) for growth in (1, 1, 2.5, 1)))
    assert measure_speed(case.network, case.adapter, 13, 13, 8, 1) == Speed(13, 8, {shape: of_block},
                                                                            pytest.approx(1.3))


def test_measuring_leaves_the_adapter_alone(tmp_path):
    case = Case(tmp_path / "model.gguf")
    before = case.adapter.params.copy()
    speed = measure_speed(case.network, case.adapter, 39, 13, 8, 1)
    assert isinstance(speed, Speed) and speed.tokens == 39
    assert speed.head > 0 and all(seconds > 0 for block in speed.blocks.values() for seconds in astuple(block))
    np.testing.assert_array_equal(case.adapter.params, before)
    assert empty(2, 3).shape == (2, 3)
