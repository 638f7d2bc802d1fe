"""How the kernels are built."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lorafast.kernels import build_info

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif("LORAFAST_NO_OPENMP" in os.environ, reason="built without on purpose")
def test_openmp_is_on():
    assert build_info.openmp()


def test_a_compiler_without_openmp_is_told(tmp_path):
    """Before anything is built, with the way out."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("the sources are not here")
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path]
    environment = os.environ | {"CC": "false", "LORAFAST_ONLY": "pages"}
    environment.pop("LORAFAST_NO_OPENMP", None)
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 1
    assert "false cannot build with OpenMP" in run.stderr and "LORAFAST_NO_OPENMP=1" in run.stderr
