"""A worker for tests: a pool child, alone or below a worker main with a warden, and a scripted task service.

``python tests/support/runner_host.py '{...}'``: the process under test runs
``dispatch.runner`` as it is; what is replaced is the service behind it, and
that is scripted by files in a directory, so that a test can change its mind
while the attempt runs. Calls and results are appended to files there.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import resource
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dispatch.core.routing import Routing
    from dispatch.crypto.trust import Trust

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dispatch import log, routing_settings
from dispatch.ats.gateway import AttemptRef
from dispatch.ats.model import Grant, Task
from dispatch.errors import (
    AuthenticationError,
    GatewayRejectedError,
    GatewayUnavailableError,
    LeaseLostError,
    UnknownTaskError,
)
from dispatch.runner import execution, executors
from dispatch.runner.context import RunnerContext
from dispatch.runner.execution import execute
from dispatch.runner.limits import Holder, set_up
from dispatch.runner.tree import boottime, set_child_subreaper
from dispatch.runner.warden_client import WardenClient
from dispatch.runner.warden_process import WardenProcess
from dispatch.settings import Execution


def append(path: Path, line: Any) -> None:
    """Append one JSON line in one write."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, json.dumps(line).encode() + b"\n")
    os.close(fd)


class ScriptedGateway:
    """A task service that does what files say: ``OP.MOOD`` holds how often, empty means always."""

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        self._directory = directory
        self._said = ""
        self._lease_s = config.get("lease_s", 120.0)
        self._task = config.get("task", {})
        self._dependencies = tuple(config.get("dependencies", ()))
        if config.get("prompt_bytes"):
            self._task["description"] = "d" * config["prompt_bytes"]

    def _call(self, op: str, **fields: Any) -> None:
        append(self._directory / "calls.jsonl", {"op": op, "at": boottime(), **fields})
        for mood in ("auth", "unknown", "unavailable", "stale", "cancelled", "too_large", "invalid", "hang"):
            if self._takes(f"{op}.{mood}"):
                self._raise(mood)

    def _takes(self, name: str) -> bool:
        path = self._directory / name
        try:
            text = path.read_text()
        except FileNotFoundError:
            return False
        if text.isdigit():
            left = int(text) - 1
            if left > 0:
                path.write_text(str(left))
            else:
                path.unlink(missing_ok=True)
        return True

    def _raise(self, mood: str) -> None:
        if mood == "unavailable":
            raise GatewayUnavailableError("The task service gave no answer.")
        if mood == "stale":
            raise LeaseLostError("stale token", status=409, code="STALE_LEASE", facts={"status": "in_progress"})
        if mood == "cancelled":
            raise LeaseLostError("cancelled", status=409, code="STALE_LEASE", facts={"status": "cancelled"})
        if mood == "auth":
            raise AuthenticationError("The key was refused.")
        if mood == "unknown":
            raise UnknownTaskError("No such task.", status=404)
        if mood == "hang":
            threading.Event().wait(30)
        raise GatewayRejectedError(
            f"The result is {mood}.", status=413 if mood == "too_large" else 400, code=mood.upper()
        )

    def _grant(self, ref: AttemptRef) -> Grant:
        task = Task(id=ref.task_id, channel="ch", **self._task)
        return Grant(task, ref.token, self._lease_s, self._dependencies)

    def start(self, ref: AttemptRef, *, runner: str, message: str) -> Grant:
        """Begin."""
        self._call("start", runner=runner, message=message, token=ref.token)
        return self._grant(ref)

    def renew(self, ref: AttemptRef, *, message: str | None = None) -> Grant:
        """Extend."""
        self._call("renew", message=message, token=ref.token)
        return self._grant(ref)

    def complete(self, ref: AttemptRef, outputs: list[Any], *, review: bool = False) -> None:
        """Take a success."""
        self._call("complete", outputs=outputs, review=review, token=ref.token)

    def fail(self, ref: AttemptRef, reason: str) -> None:
        """Take a failure."""
        self._call("fail", reason=reason, token=ref.token)

    def say(self, ref: AttemptRef, text: str, meta: dict[str, Any] | None = None) -> str:
        """Take a message. In the mood ``unanswered`` it is taken and nothing comes back."""
        self._call("say", text=text, meta=meta, token=ref.token)
        self._said = text
        if self._takes("say.unanswered"):
            self._raise("unavailable")
        return "1"

    def was_said(self, ref: AttemptRef, text: str, *, after: str) -> bool:
        """Say whether this was the last text that was taken."""
        self._call("was_said", text=text, after=after)
        return text == self._said

    def release(self, ref: AttemptRef, *, counted: bool, delay_s: float, reason: str) -> None:
        """Take a task back."""
        self._call("release", counted=counted, delay_s=delay_s, reason=reason, token=ref.token)


def _peak_kib() -> int:
    """Return this program's peak; getrusage would count what its parent had before the exec."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


class FileWake:
    """Wake-ups through a FIFO: one task id per line."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)

    def fileno(self) -> int:
        """Return the FIFO."""
        return self._fd

    def read(self) -> set[str] | None:
        """Return the ids that were written."""
        try:
            return set(os.read(self._fd, 65_536).decode().split())
        except BlockingIOError:
            return set()

    def check(self, task_id: str, token: int) -> bool:
        """Nothing is ever left behind in a FIFO."""
        return False


class BrokenKeys:
    """A defect of ours in the place where keys are read."""

    def trust(self) -> Trust:
        """Fail with what must not be told."""
        raise RuntimeError("canary")


def words(argv: list[str]) -> tuple[str, ...]:
    """Return an argv; the word E2BIG stands for one that no kernel takes."""
    return tuple("x" * 3_000_000 if word == "E2BIG" else word for word in argv)


def make_context(config: dict[str, Any], *, stop_fd: int | None, address: bytes | None) -> RunnerContext:
    """Build the context of the process under test."""
    directory = Path(config["directory"])
    own = {"command": words(config["command"]), "lease_s": config.get("lease_s", 120.0), "retry_backoff_s": 0.0}
    return RunnerContext(
        gateway=ScriptedGateway(directory, config),
        execution=Execution(**(own | config.get("execution", {}))),
        data_dir=directory / "data",
        ats_url="http://service.test",
        runner="host",
        log=log.get_logger("runner"),
        warden=WardenClient(address) if address else None,
        wake=FileWake(config["wake"]) if config.get("wake") else None,
        stop_fd=stop_fd,
        keys=BrokenKeys() if config.get("broken_keys") else None,
        routing=routing_of(config),
        secrets=tuple(config.get("secrets", ())),
        rand=random.random,
    )


def routing_of(config: dict[str, Any]) -> Routing | None:
    """Read the routing of a config as it stands in a TOML file."""
    if "routing" not in config:
        return None
    command = words(config["command"])
    return routing_settings.read(
        config["routing"],
        command=command,
        queue="q",
        timeout_s=60.0,
        max_attempts=3,
        idle_s=config.get("execution", {}).get("idle_s", 0.0),
    )


@contextlib.contextmanager
def starved(*, apply: bool) -> Iterator[None]:
    """Leave this process only a few file descriptors for a while."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if apply:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 4, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def holder_of(config: dict[str, Any]) -> Holder:
    """Find what holds the limits of a config, as a worker main does."""
    own = Execution(**config.get("execution", {}))
    needed = executors.controllers_of(executors.routing_of(routing_of(config), own), own)
    return set_up(needed, own.attempt_limits, log.get_logger("worker"))


def run_attempts(config: dict[str, Any], holder: Holder, *, stop_fd: int | None, address: bytes | None) -> None:
    """Be a pool child: run the attempts one after another and write down how they ended."""
    directory = Path(config["directory"])
    (directory / "child.pid").write_text(str(os.getpid()))
    first = replace(make_context(config, stop_fd=stop_fd, address=address), holder=holder)
    commands = config.get("commands") or [config["command"]] * config.get("attempts", 1)
    for number, argv in enumerate(commands):
        context = replace(first, execution=replace(first.execution, command=words(argv)))
        ref = AttemptRef("7", config.get("attempt", 1), number + 5, "actor-1")
        with starved(apply=bool(config.get("starve")) and number == 0):
            end = execute(ref, context)
        result: dict[str, Any] = {"at": boottime(), "max_rss_kib": _peak_kib()}
        if end is not None:
            result |= {
                "reason": end.reason.value,
                "exit_code": end.exit_code,
                "signal": end.signal,
                "stdout": end.stdout.text,
                "stdout_bytes": end.stdout.total_bytes,
                "stdout_binary": end.stdout.binary,
                "stdout_truncated": end.stdout.truncated,
                "stderr": end.stderr.text,
                "stderr_bytes": end.stderr.total_bytes,
                "flags": sorted(end.flags),
                "duration_s": end.duration_s,
                "detail": end.detail,
            }
        append(directory / "results.jsonl", result)
    left = {"fds": sorted(path.name for path in Path("/proc/self/fd").iterdir()), "threads": threading.active_count()}
    append(directory / "left.jsonl", left)


def run_main(config: dict[str, Any]) -> None:
    """Be a worker main: a warden, a stop pipe, and one pool child that dies with us as Celery's do."""
    directory = Path(config["directory"])
    holder = holder_of(config)
    warden = WardenProcess(
        tasks_url=config.get("tasks_url"), token="s3cret-t0ken", log=log.get_logger("worker"), place=holder.place
    )
    warden.start()
    set_child_subreaper()
    stop_r, stop_w = os.pipe()
    main_pid = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(stop_w)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() == main_pid:
            run_attempts(config, holder, stop_fd=stop_r, address=warden.address)
        os._exit(0)

    def drain(_number: int, _frame: Any) -> None:
        os.close(stop_w)

    def stop(_number: int, _frame: Any) -> None:
        os.write(stop_w, b"C")
        os.close(stop_w)

    signal.signal(signal.SIGTERM, drain)
    signal.signal(signal.SIGUSR2, stop)
    (directory / "main.pid").write_text(str(main_pid))
    (directory / "warden.pid").write_text(str(warden.pid))
    _, status = os.waitpid(pid, 0)
    append(directory / "child_ended.jsonl", status)
    if config.get("linger_s"):
        signal.sigtimedwait({signal.SIGUSR1}, config["linger_s"])
    warden.stop()


def main() -> None:
    """Run as the one argument says."""
    config = json.loads(sys.argv[1])
    execution.START_PATIENCE_S = config.get("start_patience_s", execution.START_PATIENCE_S)
    log.configure()
    # As in Celery's pool children.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if config.get("ignore_term"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if config.get("leaky_fd"):
        os.set_inheritable(os.open("/etc/hostname", os.O_RDONLY), True)
    if config.get("main"):
        run_main(config)
    else:
        run_attempts(config, holder_of(config), stop_fd=None, address=None)


if __name__ == "__main__":
    main()
