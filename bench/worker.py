"""Contestants in processes of their own, so that their thread pools, memory and settings stay apart.

A worker is a Python file that calls `serve`. It prints a line of JSON about itself when it is ready, and then answers
each line on its standard input, a command and its arguments as JSON, with a line of JSON.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PAUSE = 0.05
"""Seconds to let between two workers' turns: by then the threads of the first have stopped spinning."""


class WorkerFailed(Exception):
    """A worker ended, or never started; the message is the last line it wrote to stderr."""


class Worker:
    """The parent's end. A context manager: the process is gone at the end of the block."""

    def __init__(self, script: Path, *arguments: object, python: str = sys.executable,
                 environment: Mapping[str, str | None] | None = None) -> None:
        """environment: variables to set, or with None to unset"""
        env = {**os.environ, **{k: v for k, v in (environment or {}).items() if v is not None}}
        for name, value in (environment or {}).items():
            if value is None:
                env.pop(name, None)
        self.script = script
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([python, str(script), *map(str, arguments)], env=env, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
        self.about = self._answer()

    def ask(self, command: str, **arguments: Any) -> Any:
        self.process.stdin.write(json.dumps([command, arguments]) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            lines = self.errors.read().strip().splitlines() or [f"ended with status {self.process.returncode}"]
            raise WorkerFailed(f"{self.script.name}: {lines[-1]}")
        return json.loads(line)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.errors.close()


def serve(about: dict[str, Any], commands: Mapping[str, Callable[..., Any]]) -> None:
    """The worker's end. Returns when the parent closes the pipe."""
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        command, arguments = json.loads(line)
        print(json.dumps(commands[command](**arguments)), flush=True)
