"""Regular expressions of strangers, run with a limit of time: some take longer than anybody waits.

They run in a process of their own, which is ended when the time is over, and begun again for the next one.
"""
from __future__ import annotations

import json
import select
import subprocess
import sys
from typing import IO

WORKER = """
import json, re, sys
for line in sys.stdin:
    pattern, text = json.loads(line)
    print(int(re.search(pattern, text) is not None), flush=True)
"""


class LimitedRegex:
    """Searches texts for patterns, each in at most `seconds`. To be used in a `with` block."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.seconds = seconds
        self.worker: subprocess.Popen[str] | None = None

    def search(self, pattern: str, text: str) -> bool:
        """Whether the text has a match. TimeoutError where that was not found out in time."""
        if self.worker is None:
            self.worker = subprocess.Popen([sys.executable, "-I", "-c", WORKER], stdin=subprocess.PIPE,
                                           stdout=subprocess.PIPE, text=True)
            self._ask("", "")           # until it has started the time does not count
            self._answer(None)
        self._ask(pattern, text)
        answer = self._answer(self.seconds)
        if answer is None:
            self.close()
            raise TimeoutError
        return answer == "1\n"

    def _ask(self, pattern: str, text: str) -> None:
        stream = self._stream("stdin")
        stream.write(json.dumps([pattern, text]) + "\n")
        stream.flush()

    def _answer(self, seconds: float | None) -> str | None:
        """The answer of the other process; None where none came in time."""
        stream = self._stream("stdout")
        return stream.readline() if select.select([stream], [], [], seconds)[0] else None

    def _stream(self, name: str) -> IO[str]:
        stream: IO[str] = getattr(self.worker, name)
        return stream

    def close(self) -> None:
        if self.worker is not None:
            self.worker.kill()
            self.worker.wait()
            for name in ("stdin", "stdout"):
                self._stream(name).close()
            self.worker = None

    def __enter__(self) -> LimitedRegex:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
