"""The file of metrics."""
import json

import pytest

from lorafast.errors import FormatError, LoraFastError
from lorafast.reporting.events import Continuation, Ended, Evaluation, Started, Step
from lorafast.reporting.metrics import MetricsFile, read_metrics

STEP = Step(1, 2.5, 1e-3, 0.5, 100, 0, 0.25)


def test_an_event_is_a_line_at_once(tmp_path):
    path = tmp_path / "m.jsonl"
    with MetricsFile(path, 0) as write:
        write(STEP)
        step, = read_metrics(path)
        assert step.pop("time") > 1.7e9 and step.pop("memory") >= 0
        assert step == dict(event="step", iteration=1, loss=2.5, learning_rate=1e-3, gradient_norm=0.5, tokens=100,
                            epochs=0, seconds=0.25, tokens_per_second=400.0)
        write(Evaluation(1, 0.0, 7, True))
        write(Continuation(1, "ü\n", "\udcff🙂"))
        write(Started(0, 5, 3, {"lora_out": ("a", "b"), "ctx": None}))
        write(Ended(1, "enough", 3.0))
    events = list(read_metrics(path))
    assert events[1]["perplexity"] == 1.0 and events[2]["prompt"] == "ü\n" and "🙂" in events[2]["text"]
    assert events[3]["options"] == {"lora_out": ["a", "b"], "ctx": None} and events[4]["reason"] == "enough"


def test_going_on_drops_what_came_after_and_a_fresh_run_everything(tmp_path):
    path = tmp_path / "m.jsonl"

    def run(start: int, end: int) -> list[int]:
        with MetricsFile(path, start) as write:
            for iteration in range(start + 1, end + 1):
                write(Step(iteration, 1.0, 1.0, 1.0, 1, 0, 1.0))
        return [record["iteration"] for record in read_metrics(path)]

    assert run(0, 3) == [1, 2, 3]
    path.write_bytes(path.read_bytes()[:-5])            # a crash
    assert run(2, 4) == [1, 2, 3, 4]
    assert run(1, 2) == [1, 2]
    assert run(0, 1) == [1]
    path.unlink()
    assert run(7, 8) == [8]


@pytest.mark.parametrize("line", ["not json", "3", '{"event": "step"}', '{"iteration": 1}',
                                  '{"iteration": "1", "event": "step"}',
                                  '{"iteration": 1, "event": "ended", "reason": "", "time": 1e300}',
                                  '{"iteration": 1, "event": "step", "loss": 1, "tokens": 1, "seconds": 0}',
                                  '{"iteration": 1, "event": "step", "loss": 1, "tokens": 1, "seconds": Infinity}'])
def test_another_file_is_refused_and_spared(tmp_path, line):
    path = tmp_path / "m.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(FormatError, match=r"m.jsonl:1: is not a line of metrics"):
        MetricsFile(path, 1)
    assert path.read_text() == line + "\n"


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(LoraFastError, match="cannot write"):
        MetricsFile(tmp_path / "nowhere" / "m.jsonl", 0)
    with pytest.raises(LoraFastError, match="cannot read"):
        list(read_metrics(tmp_path / "m.jsonl"))


def test_a_full_disk_is_said_in_words():
    with pytest.raises(LoraFastError, match="cannot write /dev/full: No space left"):
        with MetricsFile("/dev/full", 0) as write:
            write(STEP)


def test_numbers_that_json_has_not(tmp_path):
    with MetricsFile(tmp_path / "m.jsonl", 0) as write:
        write(Evaluation(1, float("inf"), 7, False))
    line = (tmp_path / "m.jsonl").read_text()
    assert json.loads(line)["event"] == "evaluation"
