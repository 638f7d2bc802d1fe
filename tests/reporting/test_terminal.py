"""The terminal's view of a run."""
import re
import sys

import pytest

from lorafast.reporting.choose import open_log
from lorafast.reporting.events import Continuation, Evaluation
from lorafast.reporting.log import IterationRecord
from lorafast.reporting.terminal import Rate, TerminalLog, fitting
from tests.reporting.test_log import Terminal, replay


def open_terminal(monkeypatch, columns: int = 80) -> Terminal:
    """stdout as a terminal. Called in the test itself: pytest replaces stdout before it."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    return terminal


def shown(terminal: Terminal) -> str:
    """What was written, without the sequences that move the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).replace("\r", "\n")


@pytest.mark.parametrize("columns", [12, 40, 80, 120])
def test_the_same_facts_at_any_width(monkeypatch, columns):
    terminal = open_terminal(monkeypatch, columns)
    log = open_log()
    assert isinstance(log, TerminalLog)
    with log:
        replay(log)
    text = shown(terminal)
    flat = re.sub(r"\s+", " ", text)
    if columns >= 80:
        for fact in ("1720093158", "Llama-2-7b.Q8_0.gguf", "6.74 B", "6.67 GiB (8.50 BPW)",
                     "27,520 with 27,584 tokens", "10,549,313", "80.9 MB", "120.7 MB", "31.3 MB", "28760.8 MB", "30/30",
                     "shakespeare-10.gguf", "shakespeare-LATEST.bin", "iteration 30, loss 1.3100", "03:44:04",
                     "all 30 iterations are done"):
            assert fact in flat, fact
    far, good, fast = text[text.rindex("30/30"):].splitlines()[:3]
    assert max(map(len, (far, good, fast))) <= columns
    if columns >= 80:
        assert "ETA 0.0ms" in far and far.endswith("━━") and "─" not in far
        assert all(fact in good for fact in ("loss 1.3100", "smoothed 1.", "first 2.5656"))
        assert all(fact in fast for fact in ("tok/s", "memory", "lr 3.00e-04", "disk", "free"))


def test_labels_alone_are_bold(monkeypatch):
    terminal = open_terminal(monkeypatch)
    with open_log() as log:
        log.seed(7)
    assert re.search("\x1b\\[1mSeed *\x1b\\[0m7", terminal.getvalue())


def test_evaluations_and_what_a_prompt_becomes(monkeypatch):
    terminal = open_terminal(monkeypatch)
    with open_log() as log:
        log.begin(0, n_iter=40, tokens_per_iter=64)
        log.evaluation(Evaluation(20, 1.5, 640, True))
        log.saving("adapter", "a-BEST.gguf")
        log.evaluation(Evaluation(30, 1.6, 640, False))
        log.continuation(Continuation(30, "Shall I", " compare\x1b[31m thee\n\tto"))
        log.iteration(IterationRecord(30, 30, 1, 9, 1.0, 1e-3, 2.0, 100.0, 0.5, 64))
    lines = [line.rstrip() for line in shown(terminal).splitlines()]
    assert "Evaluation  iteration 20, loss 1.5000, perplexity 4.482, the lowest so far" in lines
    assert "Evaluation  iteration 30, loss 1.6000, perplexity 4.953" in lines
    at = lines.index("Sample      Shall I│ compare\\x1b[31m thee")
    assert "             to" in lines[at + 1:]
    assert any("evaluation 1.6000  best 1.5000 at 20" in line for line in lines)


def test_short_epochs_do_not_fill_the_screen(monkeypatch):
    terminal = open_terminal(monkeypatch)
    with open_log() as log:
        log.begin(0, n_iter=25, tokens_per_iter=64)
        for step in range(1, 26):
            log.iteration(IterationRecord(step, step, 1, 9, 1.0, 1e-3, 2.0, 100.0))
            log.reshuffled(step)
    assert re.findall(r"(\d+) completed, samples reshuffled", shown(terminal)) == ["1", "11", "21"]


def test_a_signal_is_answered_at_once(monkeypatch):
    terminal = open_terminal(monkeypatch)
    with open_log() as log:
        log.begin(0, n_iter=40, tokens_per_iter=64)
        log.iteration(IterationRecord(1, 1, 1, 9, 1.0, 1e-3, 2.0, 100.0))
        log.stopping()
        log.live.refresh()
    assert "will finish this step, save and end" in shown(terminal)


def test_pieces():
    assert fitting(["aaa", "bbbb", "c"], 7) == "aaa  c" and fitting(["aaa"], 2) == "aaa"
    counts = iter([0, 500])
    rate = Rate(lambda: next(counts))
    assert rate() == 0
    rate.time -= 2
    assert rate() == pytest.approx(250, rel=0.01)
