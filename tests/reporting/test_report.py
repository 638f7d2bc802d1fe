"""The page and the plots of a run."""
import math
import re
import xml.etree.ElementTree as ET

import pytest

from lorafast import cli
from lorafast.errors import FormatError, LoraFastError, UsageError
from lorafast.reporting.events import Continuation, Ended, Evaluation, Started, Step
from lorafast.reporting.metrics import MetricsFile
from lorafast.reporting.plots import Chart, Line, bounds, number, svg, ticks
from lorafast.reporting.report import find_metrics, smoothed, thinned, write_report


@pytest.fixture
def metrics(tmp_path):
    path = tmp_path / "m.jsonl"
    with MetricsFile(path, 0) as write:
        write(Started(0, 3, 10, {"model_base": "/models/x<y>.gguf", "train_data": ("poems.txt",), "ctx": 64,
                                 "lora_out": ()}))
        for i in range(1, 4):
            write(Step(i, 3.0 - i / 4, 1e-3 * i, float("nan") if i == 2 else 0.5, 100, 0, 0.25))
        write(Evaluation(0, 3.0, 50, True))
        write(Evaluation(3, 2.0, 50, True))
        write(Continuation(3, "Shall <I>", " & thee\n"))
        write(Ended(3, "all 3 iterations are done", 1.0))
    return path


def test_page(metrics, tmp_path):
    written = write_report(metrics, tmp_path / "r.html")
    assert written[0] == str(tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert "x&lt;y&gt;.gguf on poems.txt" in page and "Finished: all 3 iterations are done." in page
    assert '<tr class="prompt"><td></td><td class="text">Shall &lt;I&gt;</td></tr>' in page
    assert '<tr><td>3</td><td class="text">&amp; thee\n</td></tr>' in page
    assert "<b>400</b><span>tokens per second" in page and "<b>2.000</b><span>lowest evaluation loss, at 3" in page
    assert "<td>3</td><td>2.0000</td><td>7.389</td><td>lowest</td>" in page
    assert "<th>ctx</th><td><code>64</code>" in page
    assert page.count("<svg") == 4
    assert not re.search(r"""(src|href)=["']|@import|url\(""", page)      # nothing is fetched from anywhere
    for element in re.findall("<svg.*?</svg>", page, re.DOTALL):
        ET.fromstring(element)


def test_command(metrics, tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"wrote {tmp_path / 'm.html'}"


def test_which_run(metrics, tmp_path):
    assert find_metrics(str(metrics)) == find_metrics(str(tmp_path)) == str(metrics)
    (tmp_path / "n.jsonl").touch()
    with pytest.raises(UsageError, match="holds several runs"):
        find_metrics(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoraFastError, match=r"no .jsonl file there"):
        find_metrics(str(tmp_path / "empty"))
    with pytest.raises(FormatError, match="no iteration is done yet"):
        write_report(tmp_path / "n.jsonl", tmp_path / "r.html")


@pytest.mark.parametrize("low, high, expected", [
    (0, 10, [0, 2, 4, 6, 8, 10]), (0.13, 0.19, [0.14, 0.16, 0.18]), (-1e-5, 2.1e-5, [-1e-5, 0, 1e-5, 2e-5]),
    (3, 3.9, [3, 3.2, 3.4, 3.6, 3.8]),
])
def test_ticks(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected, abs=1e-12)


def test_ticks_of_iterations_are_whole():
    assert ticks(1, 3, 6, least=1) == [1, 2, 3]


def test_numbers_and_bounds():
    assert [number(x) for x in (0, 1e-5, 5e-4, 0.25, 12000, 2.0)] == ["0", "1e-5", "0.0005", "0.25", "12,000", "2"]
    assert bounds([2, math.nan, 2]) == (1.8, 2.2) and bounds([0, 0]) == (-0.5, 0.5) and bounds([1, 3]) == (1, 3)


def test_axes_from_zero():
    lines = [Line("a", [1, 2], [30, 50])]
    assert Chart("x", lines).y_bounds == pytest.approx((29.2, 50.8))
    assert Chart("x", lines, from_zero=True).y_bounds == (0, 52)
    assert Chart("x", [Line("a", [1, 2], [0, 0])], from_zero=True).y_bounds[0] < 0


def test_svg_of_points_that_are_no_numbers():
    chart = Chart("x", [Line("a", [1, 2, 3], [1, math.nan, 2]), Line("b", [1], [1]), Line("c", [1], [math.nan])])
    points = re.findall('points="([^"]*)"', svg(chart))
    assert len(points) == 2 and len(points[0].split()) == 2 and "nan" not in svg(chart)
    assert "no data" in svg(Chart("x", [Line("a", [], [])]))


def test_long_lines_are_thinned():
    x, y = thinned(list(range(4000)), [1.0] * 4000)
    assert len(x) == len(y) <= 1500 and set(y) == {1.0} and x[0] == 1
    assert thinned([1.0], [2.0]) == ([1.0], [2.0])


def test_smoothed():
    assert smoothed([4.0, 2.0]) == pytest.approx([4.0, (0.9 * 4 + 2) / 1.9])
