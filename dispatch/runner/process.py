"""Start the command of an attempt: environment, pipes, session, and why it could not be started."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dispatch.errors import DispatchError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ALLOWED: Final = frozenset({"PATH", "HOME", "LANG", "TZ", "TMPDIR", "USER", "LOGNAME", "SHELL"})
_PIPE_BYTES: Final = 65_536
"""What an empty pipe holds on Linux: a prompt up to this size is written before the child exists."""
_ENTER: Final = (os.path.realpath(sys.executable), "-I", "-S", str(Path(__file__).parent / "enter.py"))
_ENTER_S: Final = 10.0
"""How long the way into the control groups may take, on a very busy host."""


class SpawnError(DispatchError):
    """The command could not be started; the sentence says why and what to do."""


def child_environment(environ: Mapping[str, str], allowed: Sequence[str], attempt: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a child: the allow-list, the configured names, and the attempt's own variables.

    Names that begin with DISPATCH_ are never passed on, even when configured: they may be secrets.
    """
    names = _ALLOWED.union(name for name in allowed if not name.startswith("DISPATCH_"))
    env = {name: value for name, value in environ.items() if name in names or name.startswith("LC_")}
    env.update(attempt)
    return env


@dataclass(slots=True)
class Child:
    """A running command. ``stdin`` is None when the whole prompt is in the pipe already; fds are non-blocking."""

    popen: subprocess.Popen[bytes]
    pidfd: int
    stdout: int
    stderr: int
    stdin: int | None
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))

    @property
    def pid(self) -> int:
        """Return the leader's pid."""
        return self.popen.pid

    def close(self) -> None:
        """Close whatever is still open; safe to call twice."""
        for name in ("pidfd", "stdout", "stderr", "stdin"):
            fd = getattr(self, name)
            if fd is not None and fd >= 0:
                os.close(fd)
                setattr(self, name, None if name == "stdin" else -1)


def spawn(argv: Sequence[str], *, prompt: bytes, cwd: str, env: Mapping[str, str], doors: Sequence[str] = ()) -> Child:
    """Start a command in a session of its own, with nothing inherited but three pipes.

    It begins in the control groups whose ``cgroup.procs`` files are the ``doors``.

    Signals that this process ignores would stay ignored in the child; the
    caller replaces them by handlers first (``signals.Inbox``). Raises SpawnError.
    """
    fds: list[int] = []
    try:
        fds += os.pipe2(os.O_CLOEXEC)
        fds += os.pipe2(os.O_CLOEXEC)
        fds += os.pipe2(os.O_CLOEXEC)
        stdin_r, stdin_w, stdout_r, stdout_w, stderr_r, stderr_w = fds
        for fd in (stdin_w, stdout_r, stderr_r):
            os.set_blocking(fd, False)
        unsent = memoryview(prompt)
        if unsent:
            unsent = unsent[os.write(stdin_w, unsent[:_PIPE_BYTES]) :]
        start = _start_in if doors else _start
        popen = start(argv, doors, stdin=stdin_r, stdout=stdout_w, stderr=stderr_w, cwd=cwd, env=env)
    except (OSError, ValueError, SpawnError) as exc:
        for fd in fds:
            os.close(fd)
        raise SpawnError(_why(exc, argv, cwd, env)) from exc
    for fd in (stdin_r, stdout_w, stderr_w):
        os.close(fd)
    rest: int | None = stdin_w
    if not unsent:
        os.close(stdin_w)
        rest = None
    try:
        pidfd = os.pidfd_open(popen.pid)
    except OSError as exc:
        popen.kill()
        popen.wait()
        for fd in (stdout_r, stderr_r, *(() if rest is None else (rest,))):
            os.close(fd)
        raise SpawnError(_why(exc, argv, cwd, env)) from exc
    return Child(popen, pidfd, stdout_r, stderr_r, rest, unsent)


def _start(argv: Sequence[str], _doors: Sequence[str], **inherited: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, start_new_session=True, close_fds=True, **inherited)


def _start_in(argv: Sequence[str], doors: Sequence[str], **inherited: Any) -> subprocess.Popen[bytes]:
    """Start it through ``enter``, which goes into the groups first. Raises OSError as for a plain start."""
    status_r, status_w = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            step = [*_ENTER, str(status_w), str(len(doors)), *doors, *argv]
            popen = subprocess.Popen(step, start_new_session=True, close_fds=True, pass_fds=(status_w,), **inherited)
        finally:
            os.close(status_w)
        said = _heard(status_r)
    finally:
        os.close(status_r)
    if said == b"":
        return popen
    popen.kill()
    popen.wait()
    if said is None:
        raise SpawnError(f"The command {argv[0]} could not be started: it did not get into its control group in time.")
    number = int(said[1:])
    if said.startswith(b"D"):
        raise SpawnError(
            f"The command {argv[0]} could not be started: it could not be put into its control group"
            f" ({os.strerror(number).lower()})."
        )
    raise OSError(number, os.strerror(number))


def _heard(status_fd: int) -> bytes | None:
    """Return what ``enter`` says, b"" when the command took over or died on its way, None when the time is up."""
    poll = select.poll()
    poll.register(status_fd, select.POLLIN)
    if not poll.poll(_ENTER_S * 1000):
        return None
    return os.read(status_fd, 64)


def widen(fd: int) -> None:
    """Give a pipe that carries much a larger buffer, where the system allows it."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 1 << 20)
    except OSError:
        return


def _why(exc: OSError | ValueError | SpawnError, argv: Sequence[str], cwd: str, env: Mapping[str, str]) -> str:
    if isinstance(exc, SpawnError):
        return str(exc)
    command = argv[0]
    if not isinstance(exc, OSError):
        return (
            f"The command {command} could not be started: a NUL or a lone surrogate stands in its environment ({exc})."
        )
    if exc.filename == cwd and exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
        return f"The command {command} could not be started: its work directory is missing or closed ({exc.strerror})."
    if exc.errno == errno.ENOENT:
        found = shutil.which(command, path=env.get("PATH"))
        if found is None:
            return f"The command {command} was not found. Install it, or set DISPATCH_COMMAND or PATH."
        return f"The command {found} exists but its interpreter does not: check its first line (#!)."
    reasons = {
        errno.EACCES: "it is not an executable file; check its path and its permissions (chmod +x)",
        errno.ENOEXEC: "it is neither a program of this machine nor a script with a #! line",
        errno.E2BIG: "its arguments and environment are too long; pass data on stdin or in files",
        errno.EMFILE: "this process has too many open files; raise LimitNOFILE",
        errno.ENFILE: "the system has too many open files",
        errno.EAGAIN: "the system refuses more processes now; look at the limit of processes (pids.max, ulimit -u)",
        errno.ENOMEM: "there is not enough memory to start it",
        errno.ETXTBSY: "the file is being written to",
    }
    why = reasons.get(exc.errno or 0, exc.strerror or str(exc))
    return f"The command {command} could not be started: {why}."
