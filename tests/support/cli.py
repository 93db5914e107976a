"""Runs ``python -m dispatch`` as people and scripts do: with pipes, or on a terminal; or its commands right here."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from dispatch.cli.main import run
from tests.support.processes import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pytest

ROOT = Path(__file__).parents[2]


@dataclass
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)


class CliHere:
    """Runs commands in this process, which is quicker; ``env`` is all they see of DISPATCH_*."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], home: Path) -> None:
        self._monkeypatch, self._capfd = monkeypatch, capfd
        for name in [name for name in os.environ if name.startswith("DISPATCH_")]:
            monkeypatch.delenv(name)
        monkeypatch.chdir(home)
        self.env(HOME=str(home), XDG_CONFIG_HOME=str(home / ".config"), DISPATCH_DATA_DIR=str(home / "data"))

    def env(self, **values: str) -> None:
        """Set variables for all commands that follow."""
        for name, value in values.items():
            self._monkeypatch.setenv(name, value)

    def __call__(self, *args: str, stdin: str | None = None) -> Ended:
        """Run a command to its end."""
        self._capfd.readouterr()
        if stdin is not None:
            self._monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        try:
            code = run(args)
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else 1
        return Ended(code, *self._capfd.readouterr())


class Cli:
    """Runs commands against one service, with nothing of the caller's environment. Call ``close`` at the end."""

    def __init__(self, home: Path, env: Mapping[str, str]) -> None:
        self.home = home
        self._started: list[subprocess.Popen[str]] = []
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "USER": "tester",
            "LOGNAME": "tester",
            "TERM": "xterm-256color",
            "COLUMNS": "140",
            **env,
        }

    def close(self) -> None:
        """Kill what still runs and close its pipes."""
        for process in self._started:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def start(self, *args: str, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
        """Start a command with pipes."""
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            [sys.executable, "-m", "dispatch", *args],
            env={**self.env, **(env or {})},
            cwd=self.home,
            text=True,
            **{**streams, **options},
        )
        self._started.append(process)
        return process

    def __call__(self, *args: str, stdin: str | None = None, env: Mapping[str, str] | None = None) -> Ended:
        """Run a command to its end, its output in pipes."""
        options = {} if stdin is None else {"stdin": subprocess.PIPE}
        process = self.start(*args, env=env, **options)
        out, err = process.communicate(stdin, timeout=PATIENCE_S)
        return Ended(process.returncode, out, err)

    def here(self, *args: str, env: Mapping[str, str] | None = None) -> Ended:
        """Run a command to its end in this process: for what neither waits nor reads stdin, where many are run.

        What only a process shows (exit codes, pipes, signals) is shown by the tests that start one.
        """
        out, err = io.StringIO(), io.StringIO()
        mask = os.umask(0o022)
        try:
            with (
                mock.patch.dict(os.environ, {**self.env, **(env or {})}, clear=True),
                contextlib.chdir(self.home),
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
            ):
                code = run(args)
        finally:
            os.umask(mask)
        return Ended(code, out.getvalue(), err.getvalue())

    def on_terminal(
        self,
        *args: str,
        interrupt_at: str = "",
        steps: Sequence[tuple[str, bytes | tuple[int, int] | int]] = (),
        timeout_s: float = PATIENCE_S,
    ) -> Ended:
        """Run a command on a terminal of its own, stderr included in ``out``; ``err`` tells of a terminal left raw.

        ``steps``: when that text has come since the step before, press these keys, resize it to (lines,
        columns), or send the program this signal.
        With ``interrupt_at``: presses Ctrl-C when that text has come.
        """
        todo = [*steps, *([(interrupt_at, b"\x03")] if interrupt_at else [])]
        done = 0
        pid, terminal = pty.fork()
        if pid == 0:
            try:
                os.chdir(self.home)
                os.execve(sys.executable, [sys.executable, "-m", "dispatch", *args], self.env)
            finally:
                os._exit(127)
        out = b""
        deadline = time.monotonic() + timeout_s
        try:
            while time.monotonic() < deadline:
                if select.select([terminal], [], [], 0.1)[0]:
                    try:
                        data = os.read(terminal, 65_536)
                    except OSError:  # what Linux says when the other side has closed
                        break
                    if not data:
                        break
                    out += data
                if todo and todo[0][0].encode() in out[done:]:
                    done = len(out)
                    action = todo.pop(0)[1]
                    if isinstance(action, bytes):
                        os.write(terminal, action)
                    elif isinstance(action, int):
                        os.kill(pid, action)
                    else:
                        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *action, 0, 0))
            else:
                os.kill(pid, signal.SIGKILL)
            cooked = termios.ECHO | termios.ICANON
            left = "" if termios.tcgetattr(terminal)[3] & cooked == cooked else "the terminal was left raw"
        finally:
            os.close(terminal)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return Ended(code, out.decode("utf-8", "replace").replace("\r\n", "\n"), left)
