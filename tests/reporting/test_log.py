"""The log against logs that the original printed, and the terminal's view of the same events."""
import io
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lorafast.gguf.types import GGMLType, GGUFValueType
from lorafast.network.lora import default_ranks
from lorafast.reporting.choose import open_log
from lorafast.reporting.events import Continuation, Evaluation
from lorafast.reporting.log import IterationRecord, PipeLog, Progress, duration
from lorafast.reporting.model_summary import shorten, show_value

GOLDEN = Path(__file__).parents[1] / "golden"
SEED_RUN = (GOLDEN / "seed-run.log").read_text().splitlines()

U32, F32, STRING, ARRAY, I32 = (GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.STRING, GGUFValueType.ARRAY,
                                GGUFValueType.INT32)


def llama_2_7b():
    """Metadata and tensors of the seed's model, without their contents."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)] + ["x"] * (32000 - 259)
    entries = [
        ("general.architecture", (STRING, None), "llama"), ("general.name", (STRING, None), "LLaMA v2"),
        ("llama.vocab_size", (U32, None), 32000), ("llama.context_length", (U32, None), 4096),
        ("llama.embedding_length", (U32, None), 4096), ("llama.block_count", (U32, None), 32),
        ("llama.feed_forward_length", (U32, None), 11008), ("llama.rope.dimension_count", (U32, None), 128),
        ("llama.attention.head_count", (U32, None), 32), ("llama.attention.head_count_kv", (U32, None), 32),
        ("llama.attention.layer_norm_rms_epsilon", (F32, None), 1e-5), ("general.file_type", (U32, None), 7),
        ("tokenizer.ggml.model", (STRING, None), "llama"), ("tokenizer.ggml.tokens", (ARRAY, STRING), tokens),
        ("tokenizer.ggml.scores", (ARRAY, F32), np.zeros(32000, np.float32)),
        ("tokenizer.ggml.token_type", (ARRAY, I32), np.array([2, 3, 3] + [6] * 256 + [1] * (32000 - 259), np.int32)),
        ("general.quantization_version", (U32, None), 2),
    ]
    shapes = [(32000, 4096)] * 2 + [(4096,)] * 65 + [(4096, 4096)] * 128 + [(11008, 4096)] * 96
    tensors = {}
    for i, shape in enumerate(shapes):
        kind = GGMLType.F32 if len(shape) == 1 else GGMLType.Q8_0
        rows = shape[0] if len(shape) == 2 else 1
        tensors[str(i)] = SimpleNamespace(type=kind, shape=shape, nbytes=rows * kind.row_bytes(shape[-1]))
    gguf = SimpleNamespace(path="Llama-2-7b.Q8_0.gguf", version=3, metadata={k: v for k, _, v in entries},
                           value_types={k: t for k, t, _ in entries}, tensors=tensors)
    tokenizer = SimpleNamespace(
        vocab_type="SPM", n_vocab=32000, n_merges=0, bos_id=1, eos_id=2, unk_id=0, linefeed_id=13, max_token_length=48,
        token_text=lambda token: tokens[token])
    hparams = SimpleNamespace(
        arch="llama", model_type="7B", n_vocab=32000, n_ctx_train=4096, n_embd=4096, n_ff=11008, n_head=32,
        n_head_kv=32, n_layer=32, n_rot=128, n_embd_head_k=128, n_embd_head_v=128, rope_scaling_type="linear", n_ctx=64,
        norm_rms_eps=1e-5, rope_freq_base=10000.0, rope_freq_scale=1.0, experts=None)
    return gguf, tokenizer, hparams


ITERATION = re.compile(r"train_opt_callback: iter=\s*(\d+) sample=(\d+)/(\d+) sched=([\d.]+) loss=([\d.]+)"
                       r"(?: dt=(\S+) eta=(\S+))? \|(-*)>")


def replay(log) -> None:
    """The events of the seed's run."""
    gguf, tokenizer, hparams = llama_2_7b()
    log.seed(1720093158)
    log.model_base("Llama-2-7b.Q8_0.gguf")
    log.loader(gguf, tokenizer, hparams)
    log.params(hparams)
    log.lora_params(default_ranks(4), 10_549_313)
    log.counters(0, 0, 0, 0)
    log.lora_size(84826528)
    log.sizes(opt_size=126592912, opt_iter=0, input_size=32769056, compute_size=30157848896, order="LEFT_TO_RIGHT")
    log.tokenizing("shakespeare.txt", "", False)
    log.data(27520, 27584, 3069, [])
    log.restarted(forced=False)
    log.begin(768376, n_iter=30, tokens_per_iter=256)
    smoothed = None
    for line in SEED_RUN:
        if saving := re.fullmatch(r"(save_\w+): saving to (.*)", line):
            log.saving("checkpoint" if "checkpoint" in saving[1] else "adapter", saving[2])
        elif match := ITERATION.match(line):
            done, step_ms = int(match[1]), None
            if match[6]:
                # The step that makes the smoothed time what the line's eta says (the line itself shows whole seconds).
                left = 30 - done
                shown = seconds(match[7]) / left if left else seconds(match[6])
                step_ms = shown if smoothed is None else (shown - 0.3 * smoothed) / 0.7
                smoothed = shown
            sched, loss = float(match[4]), float(match[5])
            log.iteration(IterationRecord(done, done, int(match[2]), int(match[3]), sched, sched * 1e-3, loss, step_ms))
    log.total_time(13_444_000)
    log.finished("all 30 iterations are done")


def seconds(text: str) -> float:
    """Milliseconds in the middle of the second that a clock shows."""
    h, m, s = map(int, text.split(":"))
    return 1000 * (3600 * h + 60 * m + s) + 500


def test_every_line_of_the_seed_run(capsys):
    replay(PipeLog())
    out, err = capsys.readouterr()
    loader = [line for line in SEED_RUN if line.startswith("ll")]
    assert err.splitlines() == loader
    assert out.splitlines() == [*(line for line in SEED_RUN if line not in loader),
                                "main: finished: all 30 iterations are done"]


@pytest.mark.parametrize("name", ["seed-run.log", "tinymha-seed1.log", "smollm2-mha-seed1.log"])
def test_bar_follows_from_the_losses(name):
    progress = Progress(30)
    lines = [match for line in (GOLDEN / name).read_text().splitlines() if (match := ITERATION.match(line))]
    assert len(lines) > 20
    for i, match in enumerate(lines):
        progress.update(IterationRecord(i, i, 1, 1, 0.0, 0.0, float(match[5])))
        assert progress.bar() == match[8] + ">"


def test_bar_of_a_loss_that_is_no_number():
    progress = Progress(2)
    progress.update(IterationRecord(1, 1, 1, 1, 0.0, 0.0, 3.0))
    progress.update(IterationRecord(2, 2, 1, 1, 0.0, 0.0, float("nan")))
    assert progress.bar() == ">"


def test_smoothed_loss_is_a_mean_at_first_and_forgets_later():
    progress = Progress(9)
    for done, loss in enumerate([0.0, 4.0, 2.0]):
        progress.update(IterationRecord(done, done, 1, 1, 0.0, 0.0, loss))
    assert progress.smoothed_loss == pytest.approx((0.9 * 4 + 2) / 1.9)
    for done in range(3, 203):
        progress.update(IterationRecord(done, done, 1, 1, 0.0, 0.0, 1.0))
    assert progress.smoothed_loss == pytest.approx(1.0, abs=1e-6)


def test_step_time_is_smoothed_and_multiplied():
    progress = Progress(10)
    for done, step_ms in enumerate([None, 100.0, 200.0]):
        progress.update(IterationRecord(done, done, 1, 1, 0.0, 0.0, 0.0, step_ms))
    assert progress.step_ms == pytest.approx(0.3 * 100 + 0.7 * 200)
    assert progress.eta_ms == pytest.approx(8 * 170)


@pytest.mark.parametrize("ms, text", [
    (0, "0.0ms"), (385.34, "385.3ms"), (999.94, "999.9ms"), (1000, "00:00:01"), (8_953_000, "02:29:13"),
    (86_400_000, "1d 00:00:00"), (2 * 86_400_000 + 11_045_999, "2d 03:04:05"),
])
def test_duration(ms, text):
    assert duration(ms) == text


@pytest.mark.parametrize("value, kind, item, text", [
    ("a\nb", STRING, None, "a\\nb"), (True, GGUFValueType.BOOL, None, "true"), (1e-5, F32, None, "0.000010"),
    (['a"', "\\"], ARRAY, STRING, r'["a\"", "\\"]'), (np.array([1, 2]), ARRAY, I32, "[1, 2]"), ([], ARRAY, F32, "[]"),
])
def test_show_value(value, kind, item, text):
    assert show_value(value, kind, item) == text


def test_long_values_are_cut_to_40():
    assert shorten("x" * 40) == "x" * 40
    assert shorten("x" * 41) == "x" * 37 + "..."


def test_forced_reshuffle_warnings_epochs_and_evaluations(capsys):
    log = PipeLog()
    log.data(1, 2, 3, ["1 sample is empty"])
    log.restarted(forced=True)
    log.reshuffled(2)
    log.evaluation(Evaluation(20, 1.5, 640, True))
    log.continuation(Continuation(20, "Shall", " I\n"))
    log.finished("interrupted", "lorafast finetune")
    log.warning("w")
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "tokenize_file: warning: 1 sample is empty"
    assert out.splitlines()[4:] == [
        "main: forced reshuffling. restarting shuffled epoch.",
        "train_opt_callback: reshuffle samples. completed epochs: 2",
        "main: evaluation: iter=    20 loss=1.500000 perplexity=4.4817 over 640 tokens, the lowest so far",
        "main: continuation: 'Shall' -> ' I\\n'",
        "main: finished: interrupted", "main: to go on: lorafast finetune"]
    assert err == "lorafast: warning: w\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("tty, term", [(False, "xterm"), (True, "dumb")])
def test_lines_where_a_live_line_cannot_be(monkeypatch, tty, term):
    monkeypatch.setattr(sys, "stdout", Terminal() if tty else io.StringIO())
    monkeypatch.setenv("TERM", term)
    assert isinstance(open_log(), PipeLog)
