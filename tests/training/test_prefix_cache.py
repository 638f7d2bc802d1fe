"""--prefix-cache: the same bits as without, files of other data, and what cannot be kept."""
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from make_models import make_tiny

from lorafast import cli
from lorafast.network.block import Block
from lorafast.network.prefix_cache import MAGIC, NAME, PrefixCache
from lorafast.training import prefix

RUN = ["--model-base", "tiny.gguf", "--train-data", "a.jsonl", "--ctx", "32", "--batch", "3", "--threads", "1",
       "-s", "1", "--lora-r", "2", "--log", "llama", "--layers", "1", "--epochs", "3", "--save-every", "0",
       "--valid-split", "0.2"]


@pytest.fixture
def finetune(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_tiny(Path("tiny.gguf"), n_layer=3)
    words = "the love of thy sweet all and not to thou that in my with is".split()
    Path("a.jsonl").write_text("".join(json.dumps({
        "prompt": " ".join(words[:1 + i % 7]), "completion": words[i % 13], "chosen": words[i % 11],
        "rejected": words[i % 11 + 1]}) + "\n" for i in range(10)))

    def run(*argv: str, status: int = 0) -> str:
        assert cli.main(["finetune", *argv]) == status, capsys.readouterr().err
        shown = capsys.readouterr()
        return shown.out + shown.err

    return run


@pytest.mark.parametrize("more", [["--raw-pairs", "--method", "dpo"],
                                  ["--method", "ipo", "--pack", "--micro-batch", "1"]])
def test_the_bits_are_those_without(finetune, monkeypatch, more):
    blocks, forward = [], Block.forward
    monkeypatch.setattr(Block, "forward",
                        lambda self, *given, **named: blocks.append(self) or forward(self, *given, **named))
    finetune(*RUN, *more, "--run", "without")
    n_without = len(blocks)
    finetune(*RUN, *more, "--run", "with", "--prefix-cache", "cache")
    n_with = len(blocks) - n_without
    assert n_with < 0.8 * n_without
    adapters = [Path(run, "adapter.gguf").read_bytes() for run in ("without", "with")]
    assert adapters[0] == adapters[1]
    finetune(*RUN, *more, "--run", "again", "--prefix-cache", "cache")
    assert len(blocks) - n_without - n_with < n_with and Path("again/adapter.gguf").read_bytes() == adapters[0]


def test_only_the_head_may_be_trained(finetune):
    head = ["0" if before == "--layers" else option for before, option in zip(["", *RUN], RUN)]
    more = ["--method", "cpo", "--targets", "output", "--run"]
    finetune(*head, *more, "without", "--lora-out", "a.bin")
    finetune(*head, *more, "with", "--lora-out", "b.bin", "--prefix-cache", "cache")
    assert Path("a.bin").read_bytes() == Path("b.bin").read_bytes()


def test_what_is_of_other_data_is_refused(finetune):
    cached = [*RUN, "--method", "dpo", "--prefix-cache", "cache", "--force", "--run", "r"]
    finetune(*cached)
    Path("a.jsonl").write_text(Path("a.jsonl").read_text().replace("love", "thy sweet"))
    assert "is of other data, another model or other options" in finetune(*cached, status=1)
    Path("cache", NAME).unlink()
    finetune(*cached, "--prefix-cache-type", "float16")


def test_plan_and_disk_count_it(finetune, monkeypatch):
    sizes, size_of = [], prefix.prefix_cache_bytes
    monkeypatch.setattr(prefix, "prefix_cache_bytes", lambda *asked: sizes.append(size_of(*asked)) or sizes[-1])
    cached = [*RUN, "--method", "dpo", "--epochs", "1", "--prefix-cache"]
    assert "on disk: the input of block 2 for each row (--prefix-cache)" in finetune(*cached, "cache", "--run", "r")
    n_rows, head = 2 * 8, len(MAGIC) + 64           # of the ten pairs two are held out
    assert Path("cache", NAME).stat().st_size == sizes[0] + n_rows + head
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=1, f_frsize=1))
    assert "--prefix-cache other: it needs " in finetune(*cached, "other", "--run", "r", "--force", status=1)
    assert not Path("other", NAME).exists()


@pytest.mark.parametrize(("more", "message"), [
    (["--layers", "0"], "the lowest block is trained"),
    (["--layers", "1", "--train-data", "a.txt"], "is text, which is cut anew"),
])
def test_what_cannot_be_kept(finetune, more, message):
    Path("a.txt").write_text("the love of thy sweet " * 30)
    argv = [*RUN, "--run", "r", "--prefix-cache", "cache", "--method", "dpo"]
    if "a.txt" in more:
        argv = ["a.txt" if option == "a.jsonl" else option for option in argv[:-2]]
        more = more[:2]
    assert message in finetune(*argv, *more, status=2)


def test_rows_are_there_after_they_were_written(tmp_path):
    lengths, x = np.array([2, 3, 1]), np.arange(24, dtype=np.float32).reshape(6, 4)
    cache = PrefixCache(str(tmp_path), "0" * 64, lengths, 4, 1)
    cache.write(np.array([2, 0]), x[:3])
    assert cache.holds(np.array([0, 2])) and not cache.holds(np.array([0, 1]))
    cache.close()
    cache = PrefixCache(str(tmp_path), "0" * 64, lengths, 4, 1)
    out = np.zeros((3, 4), np.float32)
    cache.read(np.array([0, 2]), out)
    cache.close()
    assert out.tolist() == x[[1, 2, 0]].tolist()
