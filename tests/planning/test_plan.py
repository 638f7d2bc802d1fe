"""`lorafast plan` and --mem-limit: what is chosen, what is refused, and that a run keeps to it."""
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import quick_cli
from folders import environment
from make_models import make_tiny, split_model

from lorafast import cli
from lorafast.data.lengths import SharedRows
from lorafast.errors import LoraFastError
from lorafast.gguf.reader import open_model
from lorafast.gguf.roles import BLOCK_MATRICES
from lorafast.network.buffers import sized
from lorafast.network.hparams import read_hparams
from lorafast.network.lora import Adapter, default_ranks, specs_for
from lorafast.network.model_files import ModelFiles
from lorafast.network.network import Network
from lorafast.network.trainer import Activations
from lorafast.planning.budget import Budget
from lorafast.planning.plan import CACHE, Job, Plan
from lorafast.planning.planner import Forced, Planner
from lorafast.planning.routing import UNPACKING_TOKENS
from lorafast.planning.speed import BlockSpeed, Speed

MIB = 2**20


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """11 MB: large beside the buffers of a run."""
    return make_tiny(tmp_path_factory.mktemp("plan") / "model.gguf", n_embd=256, n_ff=1024, n_layer=10, n_head=4)


@pytest.fixture(scope="module")
def planner(model):
    def make(limit: float, cgroup: float | None = None, dora: bool = False, **job) -> Planner:
        gguf = open_model(model)
        hparams = read_hparams(gguf)
        specs = specs_for(hparams.tensor_shapes(), default_ranks(4), BLOCK_MATRICES if dora else None, dora=dora)
        adapter = Adapter(specs, 4, 4)
        job = Job(**{**dict(batch=4, ctx=32, passes=1, iterations=10, n_threads=1), **job})
        budget = Budget(int(limit * MIB), "--mem-limit", cgroup and int(cgroup * MIB))
        return Planner(gguf, ModelFiles(gguf), Network(gguf, hparams, 2048), adapter, job, budget, base_bytes=30 * MIB)
    return make


def total(plan: Plan) -> float:
    return plan.nbytes / MIB


def test_the_fastest_where_memory_is_enough(planner):
    plan = planner(1000).plan()
    assert plan.strategy.n_kept == 10 and plan.strategy.micro_batch is None
    assert plan.capacity is None and not plan.reasons
    assert 0.9 * planner(1000).gguf.nbytes < plan.items[-1].nbytes < planner(1000).gguf.nbytes
    assert plan.timing.seconds > 0 and plan.timing.bytes_read == 0
    assert " ".join(" ".join(plan.table()).split()).count("but for the embedding") == 1


def test_magnitudes_are_counted(planner):
    plain, dora = ({item.name: item.nbytes for item in planner(1000, dora=dora).plan().items} for dora in (False, True))
    rows = 10 * (256 + 2 * 128 + 256 + 2 * 1024 + 256)          # q, k and v, output, gate and up, down of ten blocks
    assert dora["DoRA's norms and gains"] == 2 * 4 * rows and "DoRA's norms and gains" not in plain
    kept = "activations kept for backward"
    assert dora[kept] - plain[kept] == 4 * 10 * (4 * 32) * 2 * 256


def test_prompts_that_are_computed_once(planner, monkeypatch):
    whole, shared = (planner(1000, ctx=64, shared=rows) for rows in (None, SharedRows(0.75, 0.5)))
    speed = whole._speed()
    monkeypatch.setattr(Planner, "_speed", lambda self: speed)
    bytes_of = [{item.name: item.nbytes for item in each.plan().items} for each in (whole, shared)]
    for name in ("inputs of the blocks", "activations kept for backward"):
        assert bytes_of[1][name] == 0.75 * bytes_of[0][name], "the most that any order of samples can lead to"
    prompts = "keys and values of shared prompts"
    assert [each[prompts] for each in bytes_of] == [0, 4 * 256 * 4 * 128]
    seconds = [each._compute(each.plan().strategy) for each in (whole, shared)]
    assert seconds[1] / seconds[0] == pytest.approx((128 + UNPACKING_TOKENS) / (256 + UNPACKING_TOKENS))


def test_less_memory_is_traded_for_time(planner):
    everything = total(planner(1000).plan())
    least = float(re.search(r"at least ([\d.]+) MB", refusal(planner(10)))[1])
    for limit in (everything + 0.1, everything - 3, (everything + least) / 2, least + 3, least + 0.2):
        plan = planner(limit).plan()
        assert total(plan) <= limit
        assert (not plan.reasons) == (limit > everything)
        assert plan.capacity is not None or plan.timing.bytes_read == 0
    # Between the ends the choice depends on the speeds measured; with the least memory there is none.
    assert plan.strategy.n_kept == 1 and plan.timing.bytes_read > 0


def refusal(planner: Planner, forced: Forced = Forced()) -> str:
    with pytest.raises(LoraFastError) as error:
        planner.plan(forced)
    return str(error.value)


def test_a_refusal_says_what_would_fit(planner):
    text = refusal(planner(10))
    assert "needs at least" in text and "may take 10.0 MB (--mem-limit)" in text
    limit = int(re.search(r"--mem-limit (\d+)M", text)[1])
    assert total(planner(limit).plan()) <= limit
    ctx = int(re.search(r"--ctx (\d+)", refusal(planner(limit + 4, ctx=2048)))[1])
    assert total(planner(limit + 4, ctx=ctx).plan()) <= limit + 4
    told = refusal(planner(limit + 1), Forced(kept=True, micro_batch=4))
    assert "the same without --no-checkpointing and --micro-batch 4, or" in told


@pytest.mark.parametrize("forced, field, value, reason", [
    (Forced(kept=True), "n_kept", 10, "activations of 10 of 10 blocks are kept: --no-checkpointing"),
    (Forced(kept=False), "n_kept", 1,
     "activations of 1 of 10 blocks are kept, the others are computed again: --use-checkpointing"),
    (Forced(input_every=3), "input_every", 3,
     "of 3 blocks one keeps its input, the others compute even that again: --checkpoint-every 3"),
    (Forced(head_tokens=5), "head_tokens", 5, "logits exist of 5 tokens at a time: --head-tokens 5"),
    (Forced(micro_batch=3), "micro_batch", 3, "of the 4 samples of a pass, 3 are worked on at a time: --micro-batch 3"),
    (Forced(micro_batch=9), "micro_batch", None,
     "of the 4 samples of a pass, 4 are worked on at a time: --micro-batch 9"),
])
def test_options_force_a_choice(planner, forced, field, value, reason):
    plan = planner(1000).plan(forced)
    assert getattr(plan.strategy, field) == value and plan.reasons == (reason,)
    assert f"  {reason}" in plan.table() and reason in plan.summary()


@pytest.mark.parametrize("attention, reason", [
    (0.01, "attention's outputs in these are computed again: saves"),
    (9.0, "activations of 9 of 10 blocks are kept, the others are computed again: saves")])
def test_choices_of_the_plan_have_reasons(planner, monkeypatch, attention, reason):
    """Where the disk is very slow: what is cheap to compute again is not kept."""
    everything = total(planner(1000).plan())
    monkeypatch.setattr(Planner, "_speed",
                        lambda self: Speed(128, 128,
                                           {self.network.blocks[0].shape: BlockSpeed(1.0, 1.0, 2.0, attention)},
                                                              1.0))
    monkeypatch.setattr(Planner, "_disk", lambda self: 1.0)
    tight = planner(everything - 1)
    plan = tight.plan()
    assert any(each.startswith(reason) for each in plan.reasons), plan.reasons
    sizes = {item.name: item.nbytes for item in plan.items}
    activations = Activations(tight.network, tight.adapter, 128, plan.strategy, sized)
    assert sizes["inputs of the blocks"] + sizes["activations kept for backward"] == activations.nbytes


def test_under_a_cgroup_the_systems_cache_counts(planner):
    for cgroup, is_more in ((1000, False), (200, True)):
        assert (CACHE in {item.name for item in planner(199, cgroup).plan().items}) == is_more


def test_what_reading_the_data_took_counts(planner):
    plan = planner(1000).plan()
    assert plan.after_reading(plan.nbytes - 1) == plan
    after = plan.after_reading(plan.nbytes + 5 * MIB)
    assert after.nbytes == plan.nbytes + 5 * MIB and after.items[-1] == plan.items[-1]
    assert any("reading the data" in line and "5.0 MB" in line for line in after.table())
    with pytest.raises(LoraFastError, match=r"reading the data took 1\d+.\d MB, but the run may take .*--data-cache"):
        plan.after_reading(1001 * MIB)


def test_plan_command(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("the love of my sweet love " * 50)
    assert cli.main(["plan", "--model-base", str(model), "--train-data", "text.txt", "--ctx", "32", "--batch", "4",
                     "--adam-iter", "5"]) == 0
    out = capsys.readouterr().out
    for part in ("Python, libraries", "adapter", "moments", "activations", "logits", "weights in memory", "in all",
                 "tokens/s", "for 5 steps"):
        assert part in out, part
    assert os.listdir() == ["text.txt"], "a plan writes nothing"
    assert cli.main(["plan", "--model-base", str(model), "--train-data", "text.txt", "--mem-limit", "1M"]) == 1
    out, err = capsys.readouterr()
    assert not out and err.startswith("lorafast: error: this run needs at least ") and err.count("\n") == 1
    assert cli.main(["plan", "--model-base", str(model), "--checkpoint-every", "2", "--no-checkpointing"]) == 2


OPTIONS = ("--train-data text.txt --ctx 32 --batch 4 --micro-batch 4 --no-checkpointing --head-tokens 128 --adam-iter "
           "3 -s 1 -t 1 --warmup 1 --adam-alpha 0.01 --checkpoint-in none --checkpoint-out '' --lora-out a.bin")
EVALUATION = "--valid-data text.txt --eval-every 1 --eval-batches 3 --sample-prompt 'my love' --sample-tokens 6"


TEXT = "the love of my sweet love with all thy love is not for " * 50


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """A Python of its own, in a folder with data."""
    (folder / "text.txt").write_text(TEXT)
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True,
                          env=environment())


def finetune(model: Path, folder: Path, *options: str) -> str:
    run = start(folder, quick_cli.__file__, "finetune", "--model-base", str(model), *shlex.split(OPTIONS), *options)
    assert run.returncode == 0, run.stderr
    return run.stdout


def peak_and_plan(output: str) -> tuple[float, float]:
    """MB."""
    return tuple(map(float, re.search(r"memory ([\d.]+) MB \(planned ([\d.]+) MB\)", output).groups()))


@dataclass(frozen=True)
class Whole:
    """A run without a limit: what it printed, and its adapter."""

    output: str
    adapter: bytes

    def limit(self) -> float:
        """MB in which the model does not find room."""
        return peak_and_plan(self.output)[1] - 4


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    output = finetune(model, folder, *shlex.split(EVALUATION))
    return Whole(output, (folder / "a.bin").read_bytes())


def results(output: str) -> list[str]:
    """Losses, of training and of evaluation, and texts."""
    return re.findall(r"iter= *\d+ .*loss=\S+|main: evaluation: .*|main: continuation: .*", output)


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures by /proc")


@pytest.mark.measures_memory
@linux
@pytest.mark.parametrize("n_parts", [1, 3])
def test_a_run_keeps_to_its_limit_and_loses_nothing(model, whole, tmp_path, n_parts):
    """With evaluations and texts in between; from a model in several files as well."""
    if n_parts > 1:
        (tmp_path / "model.gguf").write_bytes(model.read_bytes())
        model = split_model(tmp_path / "model.gguf", n_parts)
    peak, planned = peak_and_plan(whole.output)
    assert 0.85 * planned < peak < planned
    limited = finetune(model, tmp_path, "--mem-limit", f"{whole.limit()}M", *shlex.split(EVALUATION))
    assert "are in memory at a time" in limited and "a step (planned" in limited
    peak, planned = peak_and_plan(limited)
    assert 0.85 * planned < peak <= whole.limit()
    assert results(limited) == results(whole.output) and len(results(limited)) == 4 + 4 + 4
    assert (tmp_path / "a.bin").read_bytes() == whole.adapter


CHANGES = {
    "cut short": ("os.truncate('m.gguf', 4096)",
                  "lorafast: error: .*m.gguf was (changed while it was in use|cut short)[^\n]*\n"),
    "written to": ("os.utime('m.gguf', (1, 1))",
                   "lorafast: error: .*m.gguf was changed while it was in use: restore it, and resume[^\n]*\n"),
    "replaced": ("shutil.copy('m.gguf', 'n.gguf'); os.replace('n.gguf', 'm.gguf')",
                 "all 3 iterations are done [^\n]*\n"),
}
"""What happens to the file, and what the run then says."""

DURING_RUNS = """
import json, os, shutil, sys
from dataclasses import replace
from lorafast.cli import fail
from lorafast.options.finetune import FinetuneConfig
from lorafast.errors import LoraFastError
from lorafast.planning import speed
from lorafast.reporting.events import Step
from lorafast.reporting.log import Log
from lorafast.options.declare import parse
from lorafast.training.run import finetune, plan_of

class Noted(Log):
    def note(self, text):
        if "are in memory at a time" in text:
            print("streams")

def run(change, streams, argv):
    def observe(event):
        if isinstance(event, Step) and event.iteration == 2:
            exec(change)

    try:
        config = parse(FinetuneConfig, argv)
        if streams:
            plan_of(config)         # takes memory for the first time, which the next one counts
            config = replace(config, mem_limit=f"{plan_of(config).nbytes // 2**20 - 4}M")
        print(finetune(config, Noted(), [observe]).reason)
    except LoraFastError as error:
        return fail(str(error))
    return 0

speed.ENOUGH = 0.0
statuses = []
argv = json.loads(sys.argv[1])
for folder, change, streams in json.loads(sys.argv[2]):
    child = os.fork()
    if child:
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        continue
    os.chdir(folder)
    said = os.open("said", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    status = run(change, streams, argv)
    sys.stdout.flush()
    os._exit(status)
print(json.dumps(statuses))
"""
"""Each run in a process of its own, but all after one start of Python."""


@pytest.mark.measures_memory
@linux
def test_a_model_that_changes_during_a_run(model, tmp_path):
    """One line and no bus error, no update by what was read since; a file that another took the place of is read on."""
    cases = [(name, change, end, streams) for name, (change, end) in CHANGES.items() for streams in (True, False)]
    jobs = []
    for name, change, _, streams in cases:
        folder = tmp_path / f"{name}, {streams}"
        folder.mkdir()
        (folder / "m.gguf").write_bytes(model.read_bytes())
        (folder / "text.txt").write_text(TEXT)
        jobs.append((str(folder), change, streams))
    done = start(tmp_path, "-c", DURING_RUNS, json.dumps(["--model-base", "m.gguf", *shlex.split(OPTIONS)]),
                 json.dumps(jobs))
    assert done.returncode == 0, done.stderr
    for (name, _, end, streams), (folder, *_), status in zip(cases, jobs, json.loads(done.stdout), strict=True):
        said = re.sub(r"lorafast: warning: [^\n]*\n", "", Path(folder, "said").read_text())
        assert ("streams\n" in said) == streams, name
        said = said.replace("streams\n", "")
        assert status == (0 if name == "replaced" else 1), (name, streams, said)
        assert re.fullmatch(end, said), (name, streams)
        assert Path(folder, "a.bin").exists() == (name == "replaced"), (name, streams)
