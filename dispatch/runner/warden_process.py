"""Start the warden from a worker's main process, replace it when it dies, and let it go."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dispatch.runner import tree
from dispatch.runner.owner import is_orphan
from dispatch.runner.warden import IGNORED

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatch.runner.cgroups import Place

_PASSED_ON: Final = ("PATH", "LANG", "LC_ALL", "SSL_CERT_FILE", "SSL_CERT_DIR")
_QUICK_DEATH_S: Final = 1.0
_PAUSE_S: Final = 0.5
_READY_S: Final = 5.0
_BACKLOG: Final = 1024
_MESSAGE_BYTES_MAX: Final = 65_536


class WardenProcess:
    """The warden of this worker main.

    Make and start it before the pool forks; give ``address`` to each pool
    child's ``WardenClient``. The socket that the address names stays open here,
    so a client can connect and speak even while a dead warden is being replaced.

    ``tasks_url`` is where lost tasks are released: the service's base URL, the
    scope if there is one, and ``/tasks``. None releases nothing (a service
    without the release extension): then the lease brings a lost task back.
    ``token`` goes over an inherited socket, never through argv or environment.
    ``place`` is where attempts have their control groups, if they have any.
    """

    def __init__(self, *, tasks_url: str | None, token: str | None, log: Any, place: Place | None = None) -> None:
        hello = {"tasks_url": tasks_url, "token": token, "groups": None if place is None else list(place)}
        self._hello = json.dumps(hello).encode()
        self._log = log
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # The kernel picks a free name in the abstract namespace: nothing is left on disk, whoever dies.
        self._listener.bind("")
        self._listener.listen(_BACKLOG)
        self.address: bytes = self._listener.getsockname()
        """What ``WardenClient`` connects to."""
        self._life: socket.socket | None = None
        self._popen: subprocess.Popen[bytes] | None = None
        self._control_r, self._control_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._stopping = False
        self._thread: threading.Thread | None = None
        os.register_at_fork(after_in_child=_forget(weakref.ref(self)))

    @property
    def pid(self) -> int | None:
        """Return the pid of the present warden, None before the start."""
        return self._popen.pid if self._popen is not None else None

    def start(self) -> None:
        """Start the warden and wait until it listens; a thread replaces it when it dies.

        Raises OSError when it cannot be started.
        """
        self._launch()
        self._await_ready()
        self._thread = threading.Thread(target=self._monitor, name="warden-monitor", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Let the warden go: it kills and releases what still runs, then exits; wait for that at most so long."""
        self._stopping = True
        with contextlib.suppress(BlockingIOError):
            os.write(self._control_w, b"\0")
        if self._thread is not None:
            self._thread.join(timeout_s)
        self._close()
        if self._popen is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(timeout_s)

    def forget_in_child(self) -> None:
        """Close this process's copies, in a pool child: else the warden would not see the worker main die."""
        self._close()
        self._thread = None
        if self._popen is not None:
            # The warden is a child of the worker main, not of this process: never wait for it.
            self._popen.returncode = 0
            self._popen = None

    def _close(self) -> None:
        if self._life is not None:
            self._life.close()
            self._life = None
        self._listener.close()
        if self._control_r >= 0:
            os.close(self._control_r)
            os.close(self._control_w)
            self._control_r = self._control_w = -1

    def _await_ready(self) -> None:
        if self._life is None:
            return
        poll = select.poll()
        poll.register(self._life.fileno(), select.POLLIN)
        if poll.poll(int(_READY_S * 1000)):
            self._hear(self._life)
        else:
            self._log.warning("warden_slow", waited_s=_READY_S)

    def _launch(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            package_root = str(Path(__file__).resolve().parents[2])
            env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
            argv = [sys.executable, "-S", "-P", "-m", "dispatch.runner.warden"]
            argv += [str(os.getpid()), str(self._listener.fileno()), str(theirs.fileno())]
            # Blocked until the warden ignores them: a stray TERM must not end it while it starts.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
            try:
                self._popen = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    pass_fds=(self._listener.fileno(), theirs.fileno()),
                    env=env | {"PYTHONPATH": package_root},
                    cwd="/",
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                raise
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        with contextlib.suppress(OSError):
            ours.send(self._hello)
        if self._life is not None:
            self._life.close()
        self._life = ours
        self._log.info("warden_started", pid=self._popen.pid)

    def _monitor(self) -> None:
        while not self._stopping:
            popen, life = self._popen, self._life
            if popen is None or life is None:
                return
            launched_at = time.monotonic()
            self._watch(popen, life)
            if self._stopping:
                return
            self._log.warning("warden_died", pid=popen.pid, status=popen.wait())
            if time.monotonic() - launched_at < _QUICK_DEATH_S:
                time.sleep(_PAUSE_S)
            self._relaunch()

    def _relaunch(self) -> None:
        while not self._stopping:
            try:
                self._launch()
            except OSError as exc:
                self._log.exception("warden_not_started", error=str(exc))
                time.sleep(_PAUSE_S)
            else:
                return

    def _watch(self, popen: subprocess.Popen[bytes], life: socket.socket) -> None:
        """Return when this warden has died or ``stop`` was called."""
        pidfd = os.pidfd_open(popen.pid)
        poll = select.poll()
        for fd in (pidfd, life.fileno(), self._control_r):
            poll.register(fd, select.POLLIN)
        try:
            while not self._stopping:
                ready = dict(poll.poll())
                if life.fileno() in ready and not self._hear(life):
                    poll.unregister(life.fileno())
                if pidfd in ready:
                    return
        finally:
            os.close(pidfd)

    def _hear(self, life: socket.socket) -> bool:
        """Take a message of the warden: it is ready, or orphans of a pool child are to be collected. False at the end.

        The worker main gets them when it is a subreaper or the first process of a
        container. Pool children themselves are the pool's to collect.
        """
        try:
            data = life.recv(_MESSAGE_BYTES_MAX, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if not data:
            return False
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            message = json.loads(data)
            if message.get("ready"):
                self._log.info("warden_ready")
            if message.get("reap"):
                tree.reap(pid for pid in tree.children(os.getpid()) if is_orphan(pid))
        return True


def _forget(reference: weakref.ref[WardenProcess]) -> Callable[[], None]:
    def forget() -> None:
        process = reference()
        if process is not None:
            process.forget_in_child()

    return forget
