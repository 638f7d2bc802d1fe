"""The example data: held-out contents do not occur in training, and the score means what it says."""
import json
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def make_skill(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import make_skill
    yield make_skill
    sys.modules.pop("make_skill")


def test_contents_are_held_out_and_reproducible(make_skill, tmp_path):
    make_skill.write(tmp_path / "a")
    make_skill.write(tmp_path / "b")
    fields = {}
    for split, n in make_skill.SIZES.items():
        data = (tmp_path / "a" / f"{split}.jsonl").read_text()
        assert data == (tmp_path / "b" / f"{split}.jsonl").read_text()
        answers = [json.loads(line)["messages"][1]["content"] for line in data.splitlines()]
        assert len(answers) == n
        fields[split] = list(map(make_skill.parse, answers))
    for field in range(4):
        train, test = ({fields_of_one[field] for fields_of_one in fields[split]} for split in ("train", "test"))
        assert len(test) > 5 and not train & test
    assert all(len(set(words.split())) == len(words.split()) for words in make_skill.WORDS.values())


def test_score(make_skill):
    right = "#5 old lamps >> Ben (Oslo)"
    answers = [f" {right}\n", "#5 lamps >> Ben (Rome)", "5 old lamps for Ben in Oslo", ""]
    assert make_skill.score((right, answer) for answer in answers) == (0.25, (1 + 0.5) / 4)
