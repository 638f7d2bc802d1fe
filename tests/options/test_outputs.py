"""Output names, what is refused before a run, and pruning."""
import os
from collections import namedtuple

import pytest

from lorafast.errors import LoraFastError, UsageError
from lorafast.gguf.file_form import FileForm, form_of_output
from lorafast.options import outputs as files
from lorafast.options.outputs import Output, check_disk, check_outputs


def checkpoints(name, *more, **keywords):
    return Output("--checkpoint-out", name, FileForm.CHECKPOINT, *more, **keywords)


def adapters(name, *more):
    return Output("--lora-out", name, form_of_output("--lora-out", name), *more)


def test_only_the_first_placeholder_is_replaced():
    output = checkpoints("a-ITERATION-ITERATION.gguf")
    assert output.paths(10) == ("a-10-ITERATION.gguf", "a-LATEST-ITERATION.gguf")


def test_no_placeholder_is_one_file():
    assert checkpoints("a.gguf").paths(10) == ("a.gguf",)


def test_other_placeholder_and_folder():
    assert checkpoints("x/IT/", "IT", "new").paths(3) == ("x/3/", "x/new/")


@pytest.mark.parametrize("name, form", [("a.bin", FileForm.GGLA), ("A.GGUF", FileForm.GGUF), ("dir/", FileForm.PEFT)])
def test_form(name, form):
    assert form_of_output("--lora-out", name) is form


@pytest.mark.parametrize("name", ["a", "a.safetensors", "a.gguf.tmp"])
def test_form_unknown(name):
    with pytest.raises(UsageError, match="--lora-out"):
        form_of_output("--lora-out", name)


def touch(path, time):
    path.write_bytes(b"x")
    os.utime(path, ns=(time, time))


def test_prune_keeps_the_newest_and_touches_nothing_else(tmp_path):
    names = ["c-100.gguf", "c-10.gguf", "c-20.gguf", "c-30.gguf"]  # 100 is of an earlier run
    for time, name in enumerate(names):
        touch(tmp_path / name, time)
    others = ["c-LATEST.gguf", "c-5.bin", "cc-5.gguf", "c-05.gguf", "c-.gguf", "c-5x.gguf"]
    for name in others:
        touch(tmp_path / name, 0)
    output = checkpoints(str(tmp_path / "c-ITERATION.gguf"), keep=2)
    assert [path.name for path in output.prune()] == ["c-100.gguf", "c-10.gguf"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names[2:], *others])
    assert checkpoints(output.name, keep=0).prune() == []


def test_prune_without_placeholder_deletes_nothing(tmp_path):
    touch(tmp_path / "1.gguf", 0)
    assert checkpoints(str(tmp_path / "1.gguf"), keep=1).prune() == []


def refused(*outputs):
    with pytest.raises(LoraFastError) as error:
        check_outputs(outputs)
    return str(error.value)


def test_check_accepts_what_is_fine(tmp_path):
    (tmp_path / "p-LATEST").mkdir()
    (tmp_path / "c-LATEST.gguf").touch()
    check_outputs([checkpoints(f"{tmp_path}/c-ITERATION.gguf"), adapters(f"{tmp_path}/a-ITERATION.gguf"),
                   adapters(f"{tmp_path}/p-ITERATION/")])


def test_check_missing_folder(tmp_path):
    assert "no/where does not exist" in refused(checkpoints(f"{tmp_path}/no/where/c.gguf"))


def test_check_unwritable_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "not writable" in refused(checkpoints(f"{tmp_path}/c.gguf"))


def test_check_placeholder_in_folder():
    assert "last part" in refused(checkpoints("run-ITERATION/c.gguf"))


def test_check_two_outputs_of_one_name(tmp_path):
    a, b = checkpoints(f"{tmp_path}/x-ITERATION.gguf"), adapters(f"{tmp_path}/./x-ITERATION.gguf")
    assert "--checkpoint-out and --lora-out both write" in refused(a, b)


def test_check_file_and_folder_are_not_confused(tmp_path):
    (tmp_path / "a-LATEST.gguf").mkdir()
    (tmp_path / "p").touch()
    assert "a-LATEST.gguf is a folder" in refused(checkpoints(f"{tmp_path}/a-ITERATION.gguf"))
    assert "/p is a file" in refused(adapters(f"{tmp_path}/p/"))


@pytest.mark.parametrize("n_iter, save_every, keep, copies", [
    (30, 10, 0, 3 + 1), (35, 10, 0, 4 + 1), (30, 0, 0, 1 + 1), (0, 10, 0, 1 + 1), (30, 10, 2, 2 + 1),
    (10**9, 1, 2, 2 + 1),
])
def test_disk(tmp_path, monkeypatch, n_iter, save_every, keep, copies):
    """Room for all copies, and one more under a temporary name."""
    usage = namedtuple("usage", "free")
    output = checkpoints(f"{tmp_path}/c-ITERATION.gguf", keep=keep)
    run = dict(iteration=100, n_iter=n_iter, save_every=save_every)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage(1000 * (copies + 1)))
    check_disk([(output, 1000)], **run)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage(1000 * (copies + 1) - 1))
    with pytest.raises(LoraFastError, match="--keep"):
        check_disk([(output, 1000)], **run)


def test_disk_counts_what_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "c-10.gguf").write_bytes(bytes(900))
    (tmp_path / "c-15.gguf").write_bytes(bytes(900))  # not of this run
    (tmp_path / "c-LATEST.gguf").write_bytes(bytes(400))
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: namedtuple("usage", "free")(100 + 1000 + 600 + 1000))
    check_disk([(checkpoints(f"{tmp_path}/c-ITERATION.gguf"), 1000)], iteration=0, n_iter=20, save_every=10)


def test_best_copy():
    assert checkpoints("c-ITERATION.gguf").best_path == "c-BEST.gguf"
    assert checkpoints("x/ITERATION/").best_path == "x/BEST/"
    assert checkpoints("c.gguf").best_path is None


def test_the_best_copy_needs_room_too(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    output = checkpoints(str(tmp_path / "c-ITERATION.gguf"))
    # Two numbered copies, the latest, the best, and one that is being written.
    for free, fits in ((5000, True), (4999, False)):
        monkeypatch.setattr(files.shutil, "disk_usage", lambda folder, free=free: usage(0, 0, free))
        if fits:
            check_disk([(output, 1000)], iteration=0, n_iter=4, save_every=2, keep_best=True)
        else:
            with pytest.raises(LoraFastError, match="free"):
                check_disk([(output, 1000)], iteration=0, n_iter=4, save_every=2, keep_best=True)
    (tmp_path / "c-BEST.gguf").write_bytes(bytes(1000))
    check_disk([(output, 1000)], iteration=0, n_iter=4, save_every=2, keep_best=True)
