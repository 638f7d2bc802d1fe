"""The benches run, in a minimal form, and what they write can be compared and plotted."""
import json
import runpy
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from lorafast.kernels import build_info
from tests.planning.test_planner import HYBRID, PURE_V2, system

BENCH = Path(__file__).parent.parent / "bench"


def run(script: str, *arguments: object, status: int = 0) -> str:
    """What a bench prints: run here, as one that is started would first have to import everything."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
        patch.setattr(sys, "argv", [str(BENCH / script), *map(str, arguments)])
        patch.setenv("LORAFAST_ISA", build_info.isa())      # a bench may set others, one after the other
        patch.syspath_prepend(BENCH)
        try:
            runpy.run_path(str(BENCH / script), run_name="__main__")
        except SystemExit as end:
            assert (end.code or 0) == status, end.code
        else:
            assert status == 0
    return out.getvalue()


def rows(path: Path) -> list[dict]:
    return json.loads(path.read_text())["rows"]


@pytest.fixture(scope="module")
def peaks(tmp_path_factory) -> Path:
    """A file of peaks, so that each bench need not measure them again."""
    path = tmp_path_factory.mktemp("bench") / "machine.json"
    run("machine.py", "--seconds", 0.001, "--memory", 16, "--threads", 2, "--out", path)
    return path


def test_machine(peaks):
    measured = json.loads(peaks.read_text())["peaks"]
    assert {"memory read", "memory scale", "memory update"} < measured.keys()
    assert any(name.startswith("f32") for name in measured) and any(name.startswith("int16") for name in measured)
    assert all(value > 0 for values in measured.values() for value in values.values())


def test_kernels(peaks, tmp_path):
    out = tmp_path / "kernels.json"
    run("bench_kernels.py", "--product", "Q4_K,5,96,256", "--experts", "9,4,2,256,256", "--op", "sum_of_squares",
        "--threads", 2, "--repeats", 1, "--peaks", peaks, "--out", out)
    measured = rows(out)
    products = [row for row in measured if row["op"].startswith("linear_")]
    *experts, op = measured[len(products):]
    assert [row["op"] for row in experts] == [f"experts_{name}" for name in ("forward", "sum_forward", "sum_backward",
                                                                             "backward")]
    assert all(row["of_dense"] > 0 and 0 <= row["nmse"] < 1e-8 for row in experts)
    assert all(row["speedup"] > 0 and row["sgemm"]["gops"] > 0 for row in products)
    in_int16 = [("linear_forward", "int16"), ("linear_backward", "int16")]
    assert [(row["op"], row["precision"]) for row in products][:2] == in_int16 and op["op"] == "sum_of_squares"
    assert all(row["percent_of_peak"] > 0 for row in (*products, op)) and 0 <= op["nmse"] < 1e-8
    assert all(0 <= row["nmse"] < (5e-4 if row["precision"] == "int8" else 1e-8) for row in products)


def test_train_and_compare(peaks, tmp_path):
    out = tmp_path / "train.json"
    run("bench_train.py", "--model", "tiny", "--only", "threads", "--threads", 2, "--repeats", 1, "--peaks", peaks,
        "--models-folder", tmp_path, "--out", out)
    one, two = rows(out)
    assert (one["threads"], two["threads"]) == (1, 2)
    assert one["memory"]["anonymous"] > one["memory"]["buffers"] > 0
    assert set(one["phases"]) == {"forward", "backward", "head", "update"}
    assert sum(one["phases"].values()) == pytest.approx(100, abs=0.1)
    assert sum(one["ops"].values()) + one["percent_outside_kernels"] == pytest.approx(100, abs=0.1)
    assert all(one["ops"][name] > 0 for name in ("linear_forward", "swiglu_backward")) and one["kernel_calls"] > 50

    results = json.loads(out.read_text())
    results["rows"][0]["seconds"] *= 2
    slower = tmp_path / "slower.json"
    slower.write_text(json.dumps(results))
    assert "1 slower" in run("compare.py", out, slower, status=1)
    assert "0 slower" in run("compare.py", slower, out)

    pytest.importorskip("matplotlib")
    run("plots.py", "--results", tmp_path)
    assert (tmp_path / "plots.svg").stat().st_size > 10000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="watches by /proc")
def test_memory(tmp_path):
    out = tmp_path / "memory.json"
    shown = run("bench_memory.py", "--case", "tiny,2,32,0", "--case", "tiny,2,32,120", "--no-cgroup", "--steps", 3,
                "--models-folder", tmp_path, "--out", out)
    assert "losses and adapter bit-equal" in shown
    whole, limited = rows(out)
    assert whole["limit"] is None and limited["peak_rss"] < 120 * 2**20 and limited["losses"] == whole["losses"]
    assert 0.8 * whole["planned_bytes"] < whole["peak_rss"] < 1.2 * whole["planned_bytes"]
    assert whole["planned_seconds"] > 0
    pytest.importorskip("matplotlib")
    run("plots.py", "--results", tmp_path)
    assert (tmp_path / "memory.svg").stat().st_size > 5000


def test_group_to_limit(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCH)
    from cgroup import parent_group

    def parent(cgroup: str, hands_down: list[str]) -> str:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        mounts = PURE_V2 if cgroup.startswith("0:") else HYBRID
        system(root, cgroup=cgroup, mounts=mounts,
               files={f"{group}cgroup.subtree_control": "cpu memory" for group in hands_down})
        return str(parent_group(root)[1].relative_to(root / "sys/fs/cgroup"))

    assert parent("4:memory:/a/b\n0::/\n", []) == "memory/a/b"
    assert parent("0::/a/b\n", ["", "a/"]) == "a"
    assert parent("0::/a/b\n", [""]) == "."
    with pytest.raises(OSError, match="no group hands the memory controller down"):
        parent("0::/a/b\n", [])


def test_generate(peaks, tmp_path):
    out = tmp_path / "generate.json"
    run("bench_generate.py", "--models", "tiny", "--threads", 1, "--ctx", 40, "--repeats", 2, "--peaks", peaks,
        "--models-folder", tmp_path, "--out", out)
    (row,) = rows(out)
    assert row["tokens_per_s"] > 0 and row["percent_of_peak"] > 0
