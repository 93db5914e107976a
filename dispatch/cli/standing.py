"""A whole dispatch on one machine: Redis, task service, ingress and a worker as supervised processes.

``dispatch up`` and ``dispatch demo`` stand on this. Every part is the same
command that an operator would start by hand. A part that ends unasked is
started again, at once the first time and then with a growing pause.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from dispatch.asynchronous import cancel_all
from dispatch.embedded import EmbeddedRedis
from dispatch.errors import (
    AuthenticationError,
    ConfigurationError,
    DatabaseUnavailableError,
    DispatchError,
    NoAddressError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

START_TIMEOUT_S: Final = 30.0
_RESTART_FIRST_S: Final = 0.2
_RESTART_MAX_S: Final = 10.0
_SETTLED_S: Final = 30.0
"""A part that ran this long starts again at once when it ends."""
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)
_LINE_BYTES_MAX: Final = 1024 * 1024


def _end_with_parent() -> None:
    """Ask the kernel, in the new process, for a SIGTERM when ``up`` itself is killed."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass(slots=True)
class Part:
    """One supervised process. ``ready_event`` is the log event that says it works."""

    name: str
    argv: list[str]
    ready_event: str
    stop_timeout_s: float
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the part has ended for good."""
    process: asyncio.subprocess.Process | None = None
    exit_code: int | None = None
    last_error: str = ""


class Standing:
    """Starts, supervises and stops the parts.

    ``on_line(part name, log object)`` gets every log line of every part; a line
    that is not JSON comes as ``{"event": text}``. Use as an async context manager.
    """

    def __init__(
        self,
        *,
        data_dir: Path,
        environ: Mapping[str, str],
        slots: int,
        drain_s: float,
        redis_url: str | None,
        on_line: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self._environ = dict(environ)
        self._on_line = on_line
        self._stopping = False
        self._keepers: list[asyncio.Task[None]] = []
        self.redis = None if redis_url else EmbeddedRedis(data_dir / "redis")
        self._environ["DISPATCH_REDIS_URL"] = redis_url or (self.redis.celery_url if self.redis else "")
        self._environ["DISPATCH_DATA_DIR"] = str(data_dir)
        python = [sys.executable, "-m"]
        self.service = Part("service", [*python, "dispatch", "serve"], "service_ready", 10.0)
        self.ingress = Part("ingress", [*python, "dispatch", "ingress"], "ingress_ready", 15.0)
        worker = [*python, "celery", "-A", "dispatch", "worker", "-c", str(slots)]
        self.worker = Part("worker", worker, "worker_ready", drain_s + 45.0)
        self.url = ""
        """Where the task service listens, once it is ready."""
        self.has_keys = False
        """Whether the service wants API keys, once it is ready."""
        self.failed = asyncio.Event()
        """Set when a part cannot run at all (it says so by exit code 77 or 78)."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts in the order of their start."""
        return (self.service, self.ingress, self.worker)

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    def hurry(self) -> None:
        """Have the worker stop its running attempts now instead of letting them finish; they go back uncounted."""
        process = self.worker.process
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGQUIT)

    async def _start(self) -> None:
        if self.redis is not None:
            # From this thread: the kernel ends the server together with the thread that started it.
            self.redis.start()
            self._keepers.append(asyncio.create_task(self._keep_redis(self.redis), name="redis"))
        await self._start_part(self.service)
        await asyncio.gather(self._start_part(self.ingress), self._start_part(self.worker))

    async def _start_part(self, part: Part) -> None:
        self._keepers.append(asyncio.create_task(self._keep(part), name=part.name))
        waits = [asyncio.create_task(event.wait()) for event in (part.ready, part.ended)]
        try:
            done, _ = await asyncio.wait(waits, timeout=START_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if part.ended.is_set():
            raised = (ConfigurationError, AuthenticationError, DatabaseUnavailableError, NoAddressError)
            kinds: dict[int, type[DispatchError]] = {kind.exit_code: kind for kind in raised}
            kind = kinds.get(part.exit_code or 0, DispatchError)
            raise kind(part.last_error or f"The {part.name} ended with exit code {part.exit_code}.")
        if not done:
            raise DispatchError(f"The {part.name} was not ready within {START_TIMEOUT_S:g} s; its log says why.")

    async def _keep(self, part: Part) -> None:
        """Run a part, again and again until we stop."""
        pause_s = 0.0
        while not self._stopping:
            await asyncio.sleep(pause_s)
            started_at = time.monotonic()
            part.process = await asyncio.create_subprocess_exec(
                *part.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=self._environ,
                start_new_session=True,
                preexec_fn=_end_with_parent,
                limit=_LINE_BYTES_MAX,
            )
            await self._read(part, part.process)
            part.exit_code = await part.process.wait()
            if self._stopping:
                break
            if not part.ready.is_set() or part.exit_code in (77, 78):
                self.failed.set()
                break
            ran_s = time.monotonic() - started_at
            pause_s = 0.0 if ran_s > _SETTLED_S else min(max(pause_s * 2, _RESTART_FIRST_S), _RESTART_MAX_S)
            self._say(f"the {part.name} ended with {_ending(part.exit_code)}; starting it again", "warning")
        part.ended.set()

    async def _read(self, part: Part, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 - tells mypy what PIPE means
        while True:
            try:
                raw = await process.stdout.readline()
            except ValueError:
                continue
            if not raw:
                return
            line = parse_line(raw)
            if line.get("event") == part.ready_event:
                if part is self.service:
                    self._pin_address(str(line.get("url", "")))
                    self.has_keys = line.get("keys") is True
                part.ready.set()
            if line.get("level") in ("error", "critical") or "level" not in line:
                part.last_error = str(line.get("reason") or line.get("event") or "").removeprefix("dispatch: ")
            self._on_line(part.name, line)

    def _pin_address(self, url: str) -> None:
        """Tell the other parts where the service listens, and the service itself for when it starts again."""
        self.url = url
        self._environ["DISPATCH_ATS_URL"] = url
        self._environ["DISPATCH_BIND"] = url.partition("://")[2]

    async def _keep_redis(self, redis: EmbeddedRedis) -> None:
        loop = asyncio.get_running_loop()
        while True:
            pid = redis.pid
            if pid is not None:
                ended = asyncio.Event()
                pidfd = os.pidfd_open(pid)
                try:
                    loop.add_reader(pidfd, ended.set)
                    await ended.wait()
                finally:
                    loop.remove_reader(pidfd)
                    os.close(pidfd)
            if self._stopping:
                return
            self._say("redis ended; starting it again", "warning")
            try:
                redis.start()
            except DispatchError as exc:
                self._say(str(exc), "error")
                await asyncio.sleep(_RESTART_MAX_S)

    def _say(self, event: str, level: str) -> None:
        self._on_line("up", {"event": event, "level": level})

    async def _stop(self) -> None:
        """Drain: first nothing new, then the work, then the service, then Redis."""
        self._stopping = True
        for part in (self.ingress, self.worker, self.service):
            await self._stop_part(part)
        await cancel_all(self._keepers)
        if self.redis is not None:
            self.redis.stop()

    async def _stop_part(self, part: Part) -> None:
        process = part.process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), part.stop_timeout_s)
        except TimeoutError:
            self._say(f"the {part.name} did not stop in {part.stop_timeout_s:g} s; killing it", "warning")
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def parse_line(raw: bytes) -> dict[str, Any]:
    """Read one line of a part's output: its JSON object, or the text as an event."""
    text = raw.decode("utf-8", "replace").rstrip("\r\n")
    with contextlib.suppress(ValueError):
        line = json.loads(text)
        if isinstance(line, dict):
            return line
    return {"event": text}


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"
