"""Two runs on the same names: the second is refused; what a killed one left is taken over."""
import os
import subprocess
import sys
from contextlib import ExitStack

import pytest

from lorafast.errors import LoraFastError
from lorafast.gguf.file_form import FileForm
from lorafast.options.outputs import Output
from lorafast.training.lock import lock_path, locked

HOLD = """
import sys
from contextlib import ExitStack
from lorafast.gguf.file_form import FileForm
from lorafast.options.outputs import Output
from lorafast.training.lock import locked
with ExitStack() as stack:
    locked([Output("--lora-out", sys.argv[1], FileForm.GGUF)], stack)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def output(tmp_path):
    return Output("--lora-out", str(tmp_path / "a-ITERATION.gguf"), FileForm.GGUF)


def hold(output):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, output.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    return holder


def test_a_second_run_is_refused(output):
    holder = hold(output)
    with ExitStack() as stack, pytest.raises(LoraFastError, match=f"process {holder.pid}, is writing the same files"):
        locked([output], stack)
    holder.communicate(b"", timeout=60)
    with ExitStack() as stack:
        locked([output], stack)
        assert os.path.exists(lock_path(output))
    assert not os.path.exists(lock_path(output))


def test_the_lock_of_a_killed_run_is_taken_over(output):
    holder = hold(output)
    holder.kill()
    holder.communicate(timeout=60)
    assert os.path.exists(lock_path(output))
    with ExitStack() as stack:
        locked([output], stack)


def test_a_run_on_another_host_is_not_disturbed(output):
    with open(lock_path(output), "w") as file:
        file.write("12 elsewhere\n")
    with ExitStack() as stack, pytest.raises(LoraFastError, match=r"process 12 on elsewhere.* delete"):
        locked([output], stack)
