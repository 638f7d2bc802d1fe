"""Weights that stream: what the window holds, that results are those of the whole model, and what happens to a broken
file."""
import errno
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from make_models import make_tiny, split_model

from lorafast.errors import LoraFastError
from lorafast.gguf.reader import open_model
from lorafast.network.model_files import ModelFiles
from lorafast.network.preference_losses import Hyper
from lorafast.network.residency import Residency, least_capacity, nbytes
from lorafast.network.trainer import Strategy, Trainer, weight_order
from lorafast.network.weights import MAPPED
from lorafast.network.window import Window
from lorafast.training.methods import PairMethod
from tests.network.test_network import Case, batch_of


def zigzag(n: int) -> list[int]:
    return [*range(n), *reversed(range(n))]


def read_in_a_pass(window: Window) -> int:
    """Bytes that the second of two passes fetches when fetching is instant; checks the window's promises on the way."""
    read = 0
    for _ in range(2):
        read = 0
        for place, unit in enumerate(window.order):
            window.now = place
            while fetch := window.next_fetch():
                assert unit not in fetch[1], "a unit left while it was in use"
                read += window.sizes[fetch[0]]
                assert sum(window.sizes[held] for held in window.held) <= window.capacity
            assert unit in window.held
    return read


@pytest.mark.parametrize("held", [1, 2, 3, 7, 9, 10])
def test_what_fits_at_the_turns_is_not_read_again(held):
    """The least possible: each way, all units but those that are there already."""
    n = 10
    read = read_in_a_pass(Window([5] * n, zigzag(n), 5 * held + 4))
    assert read == 2 * 5 * (n - held)


def test_window_of_units_of_all_sizes():
    rng = np.random.default_rng(1)
    for _ in range(50):
        sizes = rng.integers(1, 30, 12).tolist()
        order = zigzag(12) + rng.integers(0, 12, 8).tolist()
        capacity = int(rng.integers(max(sizes), sum(sizes) + 5))
        assert read_in_a_pass(Window(sizes, order, capacity)) >= max(0, sum(sizes) - capacity)
    with pytest.raises(ValueError, match="cannot hold"):
        Window([3, 9], [0, 1], 8)


def test_window_follows_another_order_than_announced():
    """Evaluation goes up only, and begins below again."""
    window = Window([1] * 6, zigzag(6), 3)
    for unit in [*range(6), *range(6)]:
        window.use(unit)
        while window.next_fetch():
            pass
        assert window.order[window.now] == unit and unit in window.held


@pytest.mark.parametrize("tied, dora, n_parts, experts",
                         [(False, False, 1, 0), (True, False, 1, 0), (True, True, 1, 0), (False, False, 4, 0),
                          (False, False, 1, 6)])
@pytest.mark.parametrize("strategy", [Strategy(n_kept=4), Strategy(n_kept=1),
                                      Strategy(1, input_every=2, head_tokens=8, micro_batch=2)], ids=str)
def test_results_are_those_of_the_whole_model(tmp_path, tied, dora, n_parts, experts, strategy):
    case = Case(tmp_path / "model.gguf", n_layer=4, tied=tied, dora=dora, n_parts=n_parts, experts=experts)
    batch = batch_of(case.tokens, case.targets)
    trainer = Trainer(case.network, case.adapter, case.tokens.size, strategy, n_threads=2)
    expected = trainer.loss_and_gradients(batch, 0.1, case.gradients), case.gradients.flat.copy(), trainer.loss(batch)
    files = ModelFiles(case.gguf)
    assert len(files.files) == n_parts
    order = weight_order(case.network, trainer.buffers)
    residency = Residency(files, order, least_capacity(order))
    trainer.weights = residency
    for _ in range(2):
        case.gradients.clear()
        case.network.refresh(case.adapter)
        assert trainer.loss_and_gradients(batch, 0.1, case.gradients) == expected[0]
        np.testing.assert_array_equal(case.gradients.flat, expected[1])
        assert trainer.loss(batch) == expected[2]
    assert residency.bytes_read > sum(nbytes(group) for group in set(order))
    residency.close()
    files.close()
    trainer.weights = MAPPED
    assert trainer.loss(batch) == expected[2], "the model works without it again"


def test_losses_are_known_before_their_gradients_while_weights_stream(tmp_path):
    """Pairs: the output is read twice forward before its way back."""
    case = Case(tmp_path / "model.gguf", n_layer=3)
    batch = batch_of(case.tokens, np.abs(case.targets))
    n_rows = len(batch.begin) - 1 & ~1
    batch = replace(batch.part(0, n_rows), label=np.tile([1, -1], n_rows // 2), reference=np.full(n_rows, -30.0))
    trainer = Trainer(case.network, case.adapter, len(batch.tokens), Strategy(n_kept=1, head_tokens=8), n_threads=1)
    results = []
    files = ModelFiles(case.gguf)
    order = weight_order(case.network, trainer.buffers)
    residency = Residency(files, order, least_capacity(order))
    for weights in (MAPPED, residency, residency):
        trainer.weights = weights
        case.gradients.clear()
        case.network.refresh(case.adapter)
        objective, _ = PairMethod("dpo", Hyper(0.1), 0.0).begin([batch], trainer)
        results.append((trainer.minimise(batch, objective, case.gradients), case.gradients.flat.copy()))
    residency.close()
    files.close()
    for loss, gradients in results[1:]:
        assert loss == results[0][0]
        np.testing.assert_array_equal(gradients, results[0][1])


def read_from_disk() -> int:
    """Bytes, by this process so far; 0 where the system does not say."""
    if not os.path.exists("/proc/self/io"):
        return 0
    return next(int(line.split()[1]) for line in Path("/proc/self/io").read_text().splitlines()
                if line.startswith("read_bytes"))


def test_only_the_experts_that_a_batch_needs_are_read(tmp_path):
    """Two tokens see at most 4 of 16 experts; another batch others, in training and in evaluation."""
    case = Case(tmp_path / "model.gguf", n_layer=3, experts=16, rows=1, ctx=2, type="F32", n_ff=2048)
    trainer = Trainer(case.network, case.adapter, 2, Strategy(n_kept=1), n_threads=2)
    others = batch_of(case.tokens + 7, case.targets)
    expected = [trainer.loss_and_gradients(batch, 0.1, case.gradients)
                for batch in (batch_of(case.tokens, case.targets), others)]
    gradients = case.gradients.flat.copy()
    files = ModelFiles(case.gguf)
    for file in files.files.values():
        os.fsync(file)              # for only what is on the disk leaves the system's cache
    order = weight_order(case.network, trainer.buffers)
    residency = Residency(files, order, sum(nbytes(group) for group in set(order)))
    trainer.weights = residency
    case.gradients.clear()
    read, beginning = [], read_from_disk()
    for batch in (batch_of(case.tokens, case.targets), others):
        before = residency.bytes_read
        assert trainer.loss_and_gradients(batch, 0.1, case.gradients) == expected.pop(0)
        read.append(residency.bytes_read - before)
        assert all(1 < parts.wanted.sum() <= 4 for parts in residency.parts.values())
    assert read_from_disk() - beginning <= residency.bytes_read + (1 << 20), "nothing but these and the ends of pages"
    np.testing.assert_array_equal(case.gradients.flat, gradients)
    trainer.loss(batch_of(case.tokens, case.targets))
    whole = sum(nbytes(group) for group in set(order) if not group.n_parts)
    of_all_experts = sum(nbytes(group) for group in set(order) if group.n_parts)
    assert whole < read[0] <= whole + of_all_experts / 4
    assert 0 < read[1] <= of_all_experts / 4, "what is there is not read again"
    residency.close()
    files.close()


def test_what_is_not_known_yet_is_not_fetched():
    window = Window([1, 8, 1], [0, 1, 2, 2, 1, 0], 10, partial={1})
    assert window.next_fetch() == (0, []) and window.next_fetch() == (2, []) and window.next_fetch() is None
    window.learn(1, 4, remaining=0)
    assert window.next_fetch() == (1, [])
    for unit in (1, 2, 1, 0):
        window.use(unit)
    assert window.next_fetch() is None, "the next pass has not named its parts"
    window.move(window.now + 1)
    window.learn(1, 9, remaining=3)
    assert 1 not in window.held
    assert window.next_fetch() == (1, [2]), "1 is in use, and what remains of the unit makes no room for it twice"


def test_rows_are_read_from_the_file(tmp_path):
    gguf = open_model(make_tiny(tmp_path / "model.gguf"))
    files = ModelFiles(gguf)
    tensor = gguf.tensors["token_embd.weight"]
    for rows in ([0, 5, 6, 7, 383], [3], [9, 8, 8, 1, 2], range(384)):
        np.testing.assert_array_equal(files.read_rows(tensor, np.array(rows)), tensor.data[np.array(rows)])
    files.close()


@pytest.mark.parametrize("n_parts, changed", [(1, "model.gguf"), (3, "model-00003-of-00003.gguf")])
@pytest.mark.parametrize("change", [
    lambda path: os.truncate(path, os.path.getsize(path) - 1),
    lambda path: path.write_bytes(b"GGUF" + path.read_bytes()[4:]),
], ids=["shorter", "written to"])
def test_a_changed_model_is_noticed(tmp_path, change, n_parts, changed):
    path = make_tiny(tmp_path / "model.gguf")
    path = split_model(path, n_parts) if n_parts > 1 else path
    os.utime(tmp_path / changed, (1, 1))
    files = ModelFiles(open_model(path))
    files.check()
    change(tmp_path / changed)
    with pytest.raises(LoraFastError, match=f"{changed} was changed while it was in use"):
        files.check()
    files.close()


def test_a_model_replaced_by_another_is_none_of_our_business(tmp_path):
    """The mapping still shows the old file."""
    path = make_tiny(tmp_path / "model.gguf")
    files = ModelFiles(open_model(path))
    os.replace(make_tiny(tmp_path / "other.gguf", n_layer=1), path)
    files.check()
    files.close()


@pytest.mark.parametrize("then", ["files.populate(tensor)", "tensor.data.sum()"], ids=["streamed", "mapped"])
def test_a_model_cut_short_is_one_line_and_no_bus_error(tmp_path, then):
    path = make_tiny(tmp_path / "model.gguf", n_ff=1024)
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(f"""
        import os, sys
        from lorafast.errors import LoraFastError
        from lorafast.gguf.reader import open_model
        from lorafast.network.model_files import ModelFiles
        gguf = open_model({str(path)!r})
        files = ModelFiles(gguf)
        tensor = gguf.tensors["blk.1.ffn_up.weight"]
        os.truncate({str(path)!r}, 4096)
        try:
            {then}
        except LoraFastError as error:
            sys.exit(f"lorafast: error: {{error}}")
        """)], capture_output=True, text=True)
    assert run.returncode == 1, run.stderr
    assert run.stderr.startswith("lorafast: error: ") and run.stderr.count("\n") == 1
    assert "model.gguf was c" in run.stderr


def test_a_tensor_that_the_disk_does_not_give(tmp_path, monkeypatch):
    gguf = open_model(make_tiny(tmp_path / "model.gguf"))
    files = ModelFiles(gguf)

    def fails(data):
        raise OSError(errno.EFAULT, "Bad address")

    monkeypatch.setattr("lorafast.network.model_files.populate", fails)
    with pytest.raises(LoraFastError, match=r"cannot read tensor 'output.weight' of .*: its disk or file system fails "
                       r"to"):
        files.populate(gguf.tensors["output.weight"])
    files.close()


def test_read_only_files(tmp_path):
    path = make_tiny(tmp_path / "model.gguf")
    path.chmod(0o444)
    gguf = open_model(path)
    files = ModelFiles(gguf)
    files.populate(gguf.tensors["output.weight"])
    files.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="by Linux's list of mounts")
def test_a_model_in_a_file_system_in_memory_is_told(tmp_path, monkeypatch):
    files = ModelFiles(open_model(make_tiny(tmp_path / "model.gguf")))
    monkeypatch.setattr("lorafast.network.model_files.file_system", lambda path: "ext4")
    assert files.kept_by_system() == ""
    monkeypatch.setattr("lorafast.network.model_files.file_system", lambda path: "tmpfs")
    assert files.kept_by_system() == f"{tmp_path / 'model.gguf'} (tmpfs)"
    files.close()


def test_a_failing_reader_ends_the_run(tmp_path, monkeypatch):
    case = Case(tmp_path / "model.gguf")
    trainer = Trainer(case.network, case.adapter, case.tokens.size, Strategy(1), n_threads=1)
    files, order = ModelFiles(case.gguf), weight_order(case.network, trainer.buffers)

    def broken(tensor, begin, end):
        raise LoraFastError(f"cannot read tensor '{tensor.name}'")

    monkeypatch.setattr(files, "populate", broken)
    trainer.weights = residency = Residency(files, order, least_capacity(order))
    with pytest.raises(LoraFastError, match=r"cannot read tensor 'blk.0.attn_q.weight'"):
        trainer.loss_and_gradients(batch_of(case.tokens, case.targets), 1.0, case.gradients)
    residency.close()
    files.close()
