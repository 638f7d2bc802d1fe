"""Files and folders appear whole or not at all, and leave nothing behind."""
import errno
import os
from pathlib import Path

import pytest

from lorafast.errors import LoraFastError
from lorafast.system import atomic
from lorafast.system.atomic import atomic_dir, atomic_write


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_new_file(tmp_path):
    with atomic_write(tmp_path / "a.bin") as file:
        file.write(b"one")
        assert "a.bin" not in names(tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == b"one"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_interruption_keeps_the_old_contents(tmp_path, interruption):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(interruption):
        with atomic_write(path) as file:
            file.write(b"new")
            raise interruption
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_full_disk_names_the_file(tmp_path):
    with pytest.raises(LoraFastError, match=r"cannot write .*a\.bin: No space left on device"):
        with atomic_write(tmp_path / "a.bin"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


def test_missing_folder_names_the_file(tmp_path):
    with pytest.raises(LoraFastError, match=r"cannot write .*none/a\.bin: No such file or directory"):
        with atomic_write(tmp_path / "none" / "a.bin"):
            pass


def test_errors_of_other_files_pass_through(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(FileNotFoundError):
        with atomic_write(tmp_path / "out" / "a.bin"):
            open(tmp_path / "input")


def test_symbolic_link_stays_one(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_device_is_not_replaced():
    with atomic_write("/dev/null") as file:
        file.write(b"gone")
    assert not Path("/dev/null").is_file()


def test_folder_cannot_be_overwritten_by_a_file(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(LoraFastError, match=r"cannot write .*a: Is a directory"):
        with atomic_write(tmp_path / "a"):
            pass


def test_permissions_follow_the_umask(tmp_path):
    with atomic_write(tmp_path / "a"):
        pass
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_contents_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(atomic.os, "fsync", lambda descriptor: calls.append("fsync"))
    monkeypatch.setattr(atomic.os, "replace", lambda old, new: calls.append("replace"))
    with atomic_write(tmp_path / "a"):
        pass
    assert calls[:2] == ["fsync", "replace"]


def test_new_dir(tmp_path):
    with atomic_dir(tmp_path / "deep" / "adapter") as folder:
        (folder / "config").write_text("c")
        (folder / "weights").write_text("w")
        assert not (tmp_path / "deep" / "adapter").exists()
    assert names(tmp_path / "deep") == ["adapter"]
    assert names(tmp_path / "deep" / "adapter") == ["config", "weights"]


def test_existing_dir_keeps_other_files(tmp_path):
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "notes").write_text("mine")
    (target / "weights").write_text("old")
    with atomic_dir(target) as folder:
        (folder / "weights").write_text("new")
    assert (target / "notes").read_text() == "mine"
    assert (target / "weights").read_text() == "new"
    assert names(tmp_path) == ["adapter"]


def test_interrupted_dir_vanishes(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with atomic_dir(tmp_path / "adapter") as folder:
            (folder / "weights").write_text("half")
            raise KeyboardInterrupt
    assert names(tmp_path) == []


def test_dir_over_a_file_names_it(tmp_path):
    (tmp_path / "adapter").write_text("a file")
    with pytest.raises(LoraFastError, match=r"cannot write .*adapter: Not a directory"):
        with atomic_dir(tmp_path / "adapter") as folder:
            (folder / "weights").write_text("w")
    assert names(tmp_path) == ["adapter"]
