"""The warden: kills what a worker process can no longer kill itself.

One process per worker main, in a session of its own, so that neither a signal
to the worker's group nor a frozen or dead worker process stops it. Pool
children tell it before each attempt what they are about to run and until when
(``WardenClient``). It kills the attempt's processes

- when the deadline passes, because the pool child is frozen or cut off: the
  lease would be given away with the old attempt still running;
- when the pool child dies, and then gives the task back to the service;
- when the worker main dies, for all pool children.

Run by ``WardenProcess`` as ``python -m dispatch.runner.warden MAIN_PID LISTEN_FD
LIFE_FD``: the listening socket and the life line to the worker main are
inherited. The standard library only: every worker has one of these, so it has
to be small.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dispatch.runner import cgroups, delegation, janitor, tree
from dispatch.runner.cgroups import Place
from dispatch.runner.owner import Owner

if TYPE_CHECKING:
    from collections.abc import Callable

IGNORED: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that must not end a warden while its worker main lives."""
MESSAGE_BYTES_MAX: Final = 8_192
_RELEASE_WAIT_S: Final = 30.0
"""How long a warden without a worker stays for the releases it still owes."""


def log_line(level: str, event: str, **fields: Any) -> None:
    """Write one event in the form of dispatch's logs."""
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z"
    line = {"component": "warden", **fields, "event": event, "level": level, "ts": stamp}
    try:
        os.write(1, json.dumps(line).encode() + b"\n")
    except OSError:
        return


@dataclass(slots=True)
class Ward:
    """One pool child. ``begun`` is the message about its running attempt, None between attempts."""

    owner: Owner
    pidfd: int
    connection: socket.socket | None = None
    begun: dict[str, Any] | None = None

    @property
    def deadline(self) -> float:
        """Return when its attempt must be dead (boot clock), infinity between attempts."""
        return float(self.begun["deadline"]) if self.begun is not None else float("inf")


class Warden:
    """Watches the pool children of one worker main.

    ``release`` gets the begin message of an attempt whose worker died and a
    reason; it must not block. ``place`` is where attempts have their control groups.
    """

    def __init__(
        self,
        listener: socket.socket,
        life: socket.socket,
        main_pid: int,
        release: Callable[[dict[str, Any], str], None],
        log: Callable[..., None] = log_line,
        place: Place | None = None,
    ) -> None:
        self._listener = listener
        self._life = life
        self._main_pid = main_pid
        self._release = release
        self._log = log
        self._place = place
        self._wards: dict[int, Ward] = {}
        """By pid."""
        self._poll = select.poll()
        self._on: dict[int, Callable[[], None]] = {}
        self._over = False

    def run(self) -> None:
        """Watch until the worker main is gone, then kill and release everything and return."""
        self._listener.setblocking(False)
        self._life.setblocking(False)
        self._listen(self._listener.fileno(), self._accept)
        self._listen(self._life.fileno(), self._on_life)
        self._tell_main({"ready": True})
        try:
            self._listen(os.pidfd_open(self._main_pid), self._main_died)
        except ProcessLookupError:
            self._main_died()
        while not self._over:
            self._turn()
        self._accept()
        for ward in list(self._wards.values()):
            self._read(ward)
        for ward in list(self._wards.values()):
            tree.send(ward.owner.process, signal.SIGKILL)
        for ward in list(self._wards.values()):
            self._lost(ward, "the worker died")
        main = tree.stat(self._main_pid)
        if main is None or main.dead:
            delegation.give_back(self._place)

    def _turn(self) -> None:
        deadline = min((ward.deadline for ward in self._wards.values()), default=float("inf"))
        timeout_ms = None if deadline == float("inf") else max(0, int((deadline - tree.boottime()) * 1000) + 1)
        # Connections before pidfds: what a pool child said before it died counts.
        for fd, _ in sorted(self._poll.poll(timeout_ms), key=lambda ready: self._is_pidfd(ready[0])):
            handler = self._on.get(fd)
            if handler is not None:
                handler()
        now = tree.boottime()
        for ward in [ward for ward in self._wards.values() if now >= ward.deadline]:
            # The child may have said "extend" or "end" while we did not run.
            self._read(ward)
            if now >= ward.deadline:
                self._expire(ward)

    def _is_pidfd(self, fd: int) -> bool:
        return any(ward.pidfd == fd for ward in self._wards.values())

    def _listen(self, fd: int, handler: Callable[[], None]) -> None:
        self._on[fd] = handler
        self._poll.register(fd, select.POLLIN)

    def _ignore(self, fd: int) -> None:
        if self._on.pop(fd, None) is not None:
            self._poll.unregister(fd)

    # The worker main

    def _on_life(self) -> None:
        try:
            data = self._life.recv(MESSAGE_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._main_died()

    def _main_died(self) -> None:
        self._over = True

    def _tell_main(self, message: dict[str, Any]) -> None:
        try:
            self._life.send(json.dumps(message).encode())
        except OSError:
            return

    # Pool children

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            ward = self._admit(pid, uid)
            if ward is None:
                self._dead_peer(connection, pid, uid)
                connection.close()
                continue
            if ward.connection is not None:
                self._ignore(ward.connection.fileno())
                ward.connection.close()
            connection.setblocking(False)
            ward.connection = connection
            self._listen(connection.fileno(), lambda ward=ward: self._read(ward))  # type: ignore[misc]
            self._read(ward)

    def _admit(self, pid: int, uid: int) -> Ward | None:
        """Return the ward of a peer, None unless it is a living child of the worker main.

        What attempts start could connect as well, and must not get a task released.
        """
        found = tree.stat(pid)
        if found is None or found.dead or uid != os.getuid() or found.ppid != self._main_pid:
            return None
        known = self._wards.get(pid)
        if known is not None and known.owner.starttime == found.starttime:
            return known
        try:
            ward = Ward(Owner.of(pid), os.pidfd_open(pid))
        except ProcessLookupError:
            return None
        self._wards[pid] = ward
        self._listen(ward.pidfd, lambda: self._died(ward))
        return ward

    def _dead_peer(self, connection: socket.socket, pid: int, uid: int) -> None:
        """Kill what a pool child started that died, or lost its worker main, before it was accepted.

        Whether it was a pool child can no longer be checked, so nothing is released: the lease runs out.
        """
        found = tree.stat(pid)
        lives = found is not None and not found.dead
        if uid != os.getuid() or (lives and not self._over):
            self._log("warning", "warden_refused_peer", pid=pid, uid=uid)
            return
        try:
            message = _receive(connection)
        except BlockingIOError:
            return
        parts = str(message.get("tag", "")).split(":", 3) if message else []
        if len(parts) == 4 and parts[1] == str(pid) and parts[2].isdigit():
            owner = Owner(parts[0], pid, int(parts[2]))
            tree.send(owner.process, signal.SIGKILL)
            self._kill(owner, "worker_lost", is_over=True)

    def _read(self, ward: Ward) -> None:
        while ward.connection is not None:
            try:
                message = _receive(ward.connection)
            except BlockingIOError:
                return
            if message is None:
                # Closed. Whether the process lives says its pidfd; its deadline stays in force.
                self._ignore(ward.connection.fileno())
                ward.connection.close()
                ward.connection = None
                return
            self._take(ward, message)

    def _take(self, ward: Ward, message: dict[str, Any]) -> None:
        op = message.get("op")
        if op == "begin" and str(message.get("tag", "")).startswith(ward.owner.prefix):
            ward.begun = message
        elif ward.begun is not None and message.get("token") == ward.begun["token"]:
            if op == "extend":
                ward.begun["deadline"] = message["deadline"]
            elif op == "end":
                ward.begun = None

    def _died(self, ward: Ward) -> None:
        self._read(ward)
        self._ignore(ward.pidfd)
        os.close(ward.pidfd)
        if ward.connection is not None:
            self._ignore(ward.connection.fileno())
            ward.connection.close()
            ward.connection = None
        if self._wards.get(ward.owner.pid) is ward:
            del self._wards[ward.owner.pid]
        self._lost(ward, "the worker process died under the attempt")

    # Killing

    def _lost(self, ward: Ward, why: str) -> None:
        begun, ward.begun = ward.begun, None
        if begun is None:
            return
        self._kill(ward.owner, "worker_lost", begun, is_over=True)
        self._release(begun, f"worker_lost: {why}")

    def _expire(self, ward: Ward) -> None:
        begun, ward.begun = ward.begun, None
        if begun is None:
            return
        if ward.connection is not None:
            # Said before the kill, so that the child never takes the death of its leader for a failure.
            try:
                named = {name: begun.get(name) for name in ("task", "token", "number")}
                ward.connection.send(json.dumps({"killed": "lease", **named}).encode())
            except OSError:
                self._log("warning", "warden_child_unreachable", pid=ward.owner.pid)
        self._kill(ward.owner, "lease", begun)

    def _kill(self, owner: Owner, why: str, begun: dict[str, Any] | None = None, *, is_over: bool = False) -> None:
        """Kill all that an owner started; ``is_over``: the owner itself is dead and clears nothing away."""
        groups = cgroups.owned_by(self._place, owner)
        cgroups.kill(groups)
        killed, left = tree.kill_all(lambda: owner.everything() | cgroups.members_of(groups))
        # Orphans are given to the worker main, which then has to collect them.
        self._tell_main({"reap": True})
        if is_over:
            cgroups.clear(groups)
        begun = begun or {}
        self._log(
            "warning",
            "warden_killed",
            reason=why,
            worker_pid=owner.pid,
            task=begun.get("task"),
            attempt=begun.get("attempt"),
            token=begun.get("token"),
            killed=len(killed),
            left=len(left),
        )


def _receive(connection: socket.socket) -> dict[str, Any] | None:
    """Return the next message, {} for one that is none, None at the end. Raises BlockingIOError."""
    try:
        data = connection.recv(MESSAGE_BYTES_MAX, socket.MSG_DONTWAIT)
    except BlockingIOError:
        raise
    except OSError:
        return None
    if not data:
        return None
    try:
        message = json.loads(data)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


class Releases:
    """Gives tasks back in threads of their own, until the service answered or the lease is over."""

    def __init__(self, tasks_url: str, token: str) -> None:
        self._tasks_url = tasks_url
        self._token = token
        self._threads: list[threading.Thread] = []

    def __call__(self, begun: dict[str, Any], reason: str) -> None:
        """Start giving one task back."""
        if not self._tasks_url:
            return
        thread = threading.Thread(target=self._work, args=(begun, reason), daemon=True)
        thread.start()
        self._threads = [each for each in self._threads if each.is_alive()] + [thread]

    def wait(self, seconds: float) -> None:
        """Wait for what is under way, at most so long."""
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _work(self, begun: dict[str, Any], reason: str) -> None:
        # Imported here: most wardens never release anything.
        from dispatch.runner import warden_release  # noqa: PLC0415

        status = warden_release.release(
            self._tasks_url, self._token, begun, reason, give_up_at=float(begun["deadline"])
        )
        log_line("warning", "warden_released", task=begun["task"], token=begun["token"], status=status)


def main() -> None:
    """Run the warden; see the module for the arguments."""
    main_pid, listen_fd, life_fd = map(int, sys.argv[1:4])
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    listener = socket.socket(fileno=listen_fd)
    life = socket.socket(fileno=life_fd)
    life.settimeout(10)
    setup = _hello(life)
    if setup is None:
        return
    releases = Releases(setup.get("tasks_url") or "", setup.get("token") or "")
    place = Place.of_json(setup.get("groups"))
    warden = Warden(listener, life, main_pid, releases, place=place)
    orphans = janitor.kill_orphans()
    if cgroups.clear(cgroups.stale(place)):
        log_line("warning", "limits_group_left")
    if orphans:
        log_line("warning", "orphans_killed", count=len(orphans))
    warden.run()
    releases.wait(_RELEASE_WAIT_S)


def _hello(life: socket.socket) -> dict[str, Any] | None:
    try:
        message = json.loads(life.recv(MESSAGE_BYTES_MAX) or b"null")
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None


if __name__ == "__main__":
    main()
