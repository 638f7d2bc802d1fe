"""The program's first moments."""
import subprocess
import sys

import pytest

WHILE_IMPORTING = """
import signal, sys
from lorafast.__main__ import start

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "lorafast.cli":
            signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.{handler})
sys.meta_path.insert(0, Interrupting())
sys.argv = ["lorafast", "--version"]
sys.exit(start())
"""


@pytest.mark.parametrize("handler, status, said", [("default_int_handler", 130, "lorafast: interrupted\n"),
                                                   ("SIG_IGN", 0, "")])
def test_interrupted_while_modules_are_imported(handler, status, said):
    done = subprocess.run([sys.executable, "-c", WHILE_IMPORTING.format(handler=handler)], stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (status, said)
