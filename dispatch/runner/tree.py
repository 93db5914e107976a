"""Find and kill process trees, with /proc and nothing else.

A pid alone never names a process here: a ``Process`` carries its start time
too, and signals go through a pidfd whose start time was checked, so a pid that
was given to somebody else in between is never hit.

The standard library only: the warden imports this module and must stay small.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_PR_SET_CHILD_SUBREAPER: Final = 36
_FIRST_PAUSE_S: Final = 0.0005
_PAUSE_MAX_S: Final = 0.02
KILL_BOUND_S: Final = 5.0
"""How long ``kill_all`` tries. Only a process in an uninterruptible sleep survives that."""


TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    """One process, safe against reuse of its pid. ``starttime`` is in clock ticks since boot."""

    pid: int
    starttime: int


class Stat(NamedTuple):
    """What /proc/PID/stat says: ``state`` is one letter, Z and X mean dead, T and t stopped.

    ``ticks`` is the processor time of all its threads and of the children that it has reaped, in TICKS_PER_S.
    """

    pid: int
    state: str
    ppid: int
    session: int
    starttime: int
    ticks: int

    @property
    def dead(self) -> bool:
        """Say whether the process has ended and only waits to be reaped."""
        return self.state in "ZX"

    @property
    def process(self) -> Process:
        """Return the process without what changes."""
        return Process(self.pid, self.starttime)


def boottime() -> float:
    """Return seconds since boot, time asleep included: the one clock of leases and deadlines on a host."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def set_child_subreaper() -> None:
    """Make this process the new parent of every descendant that loses its own.

    So what an attempt starts stays a descendant of the pool child, whatever
    sessions and double forks it uses. Raises OSError when the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def read_proc(pid: int, name: str) -> bytes:
    """Return the content of /proc/PID/name; empty when the process is gone or not ours to read."""
    try:
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        parts = []
        while part := os.read(fd, 65_536):
            parts.append(part)
    except OSError:
        return b""
    finally:
        os.close(fd)
    return b"".join(parts)


def stat(pid: int) -> Stat | None:
    """Return what /proc says about a pid now, None when there is no such process."""
    text = read_proc(pid, "stat")
    if not text:
        return None
    # The command stands in parentheses and may itself contain any byte.
    fields = text[text.rindex(b")") + 2 :].split()
    return Stat(pid, fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19]), sum(map(int, fields[11:15])))


def starttime(pid: int) -> int | None:
    """Return a process's start time in clock ticks since boot, None when there is no such process."""
    found = stat(pid)
    return found.starttime if found else None


def alive(process: Process) -> bool:
    """Say whether exactly this process exists and has not ended."""
    found = stat(process.pid)
    return found is not None and found.starttime == process.starttime and not found.dead


def all_pids() -> Iterator[int]:
    """Yield the pids of every process that this one can see."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - a thousand Path objects for a thousand pids
        if name.isdigit():
            yield int(name)


def children(pid: int) -> list[int]:
    """Return the direct children of a process, of all its threads."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208
    except OSError:
        return []
    found: list[int] = []
    for thread in threads:
        found += map(int, read_proc(pid, f"task/{thread}/children").split())
    return found


def descendants(pid: int, *, without: frozenset[int] = frozenset()) -> list[Stat]:
    """Return the living descendants of a process, not itself; children in ``without`` and theirs are left out."""
    found: dict[int, Stat] = {}
    waiting = [child for child in children(pid) if child not in without]
    while waiting:
        child = waiting.pop()
        if child in found:
            continue
        what = stat(child)
        if what is None:
            continue
        found[child] = what
        waiting += children(child)
    return [what for what in found.values() if not what.dead]


def send(process: Process, number: int) -> bool:
    """Send a signal to exactly this process; False when it is gone or not ours to signal."""
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        if starttime(process.pid) != process.starttime:
            return False
        signal.pidfd_send_signal(fd, number)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def terminate(processes: Iterable[Process]) -> int:
    """Ask processes to end (TERM, then CONT so that a stopped one hears it); return how many were asked."""
    count = 0
    for process in processes:
        if send(process, signal.SIGTERM):
            send(process, signal.SIGCONT)
            count += 1
    return count


def kill_all(
    find: Callable[[], Iterable[Process]],
    *,
    reap: Callable[[], None] | None = None,
    bound_s: float = KILL_BOUND_S,
) -> tuple[set[Process], set[Process]]:
    """Kill what ``find`` finds until it finds nothing: what forks meanwhile is found by the next round.

    ``find`` returns living processes only. ``reap`` collects the caller's own
    dead children between rounds. Returns (killed, left over after ``bound_s``
    seconds); the second is empty unless a process sleeps uninterruptibly.
    """
    killed: set[Process] = set()
    end = time.monotonic() + bound_s
    pause_s = _FIRST_PAUSE_S
    while True:
        found = set(find())
        fresh = found - killed
        for process in found:
            if send(process, signal.SIGKILL):
                killed.add(process)
        if reap is not None:
            reap()
        if not found:
            return killed, set()
        if time.monotonic() >= end:
            return killed, found
        if not fresh:
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, _PAUSE_MAX_S)


def reaped_s() -> float:
    """Return the processor time of all children that this process has reaped, and of what these had reaped."""
    times = os.times()
    return times.children_user + times.children_system


def reap(pids: Iterable[int]) -> int:
    """Collect those of the pids that are dead children of this process; return how many there were."""
    count = 0
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == pid:
                count += 1
    return count
