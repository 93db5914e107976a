"""Who owns a process: the marks that every process of an attempt carries.

Two marks, both inherited by everything an attempt starts:

- ``DISPATCH_ATTEMPT=<host>:<pid>:<starttime>:<task>:<token>`` in the
  environment, readable for people, lost when a program clears its environment;
- the soft limit RLIMIT_RTTIME, which bounds the processor time of *real-time*
  scheduled processes only. Its value is a number that names the pool child, far
  too large to bound anything. It survives cleared environments, new sessions,
  double forks, changes of user and of directory, and it is there from the
  fork on, before the new program's environment exists.

``<host>`` is the boot id and the pid namespace: pids mean nothing outside both.
The standard library only: the warden imports this module.
"""

from __future__ import annotations

import os
import resource
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dispatch.runner import tree

if TYPE_CHECKING:
    from collections.abc import Iterator

TAG_NAME: Final = "DISPATCH_ATTEMPT"
_TAG_PREFIX: Final = f"{TAG_NAME}=".encode()
_MARK_BASE: Final = 1 << 62
_LIMIT_LINE: Final = b"Max realtime timeout"


def host_id() -> str:
    """Return what names this boot and this pid namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")[:8]
    return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116


@dataclass(frozen=True, slots=True)
class Owner:
    """A pool child, as it is named in the marks of what it started."""

    host: str
    pid: int
    starttime: int

    @classmethod
    def current(cls) -> Owner:
        """Return the owner that this process is."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Owner:
        """Return the owner that a living process of this pid namespace is; ProcessLookupError if there is none."""
        started = tree.starttime(pid)
        if started is None:
            raise ProcessLookupError(f"There is no process {pid}.")
        return cls(host_id(), pid, started)

    @property
    def process(self) -> tree.Process:
        """Return the owner as a process."""
        return tree.Process(self.pid, self.starttime)

    @property
    def prefix(self) -> str:
        """Return what the tags of all its attempts begin with."""
        return f"{self.host}:{self.pid}:{self.starttime}:"

    def tag(self, task_id: str, token: int) -> str:
        """Return the tag of one attempt."""
        return f"{self.prefix}{task_id}:{token}"

    @property
    def mark(self) -> int:
        """Return the number that stands in RLIMIT_RTTIME of everything it starts."""
        host = zlib.crc32(self.host.encode()) & 0xFFFF
        return _MARK_BASE | host << 44 | (self.pid & 0x3FFFFF) << 22 | (self.starttime & 0x3FFFFF)

    def set_mark(self) -> bool:
        """Put the mark on this process, so that it is inherited; False where the system does not allow it."""
        try:
            _, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
            resource.setrlimit(resource.RLIMIT_RTTIME, (self.mark, hard))
        except (OSError, ValueError):
            # A finite hard limit, or a sandbox without this limit: the tag in the environment remains.
            return False
        return True

    def owns(self, pid: int) -> bool:
        """Say whether a process carries one of this owner's marks."""
        return mark_of(pid) == self.mark or tag_of(pid).startswith(self.prefix)

    def marked(self) -> Iterator[tree.Process]:
        """Yield every living process that carries one of this owner's marks, without the owner."""
        for pid in tree.all_pids():
            if pid != self.pid and self.owns(pid):
                found = tree.stat(pid)
                if found is not None and not found.dead:
                    yield found.process

    def everything(self) -> set[tree.Process]:
        """Return its living descendants, whatever else carries its marks, and what that started.

        The last matters for a worker that an attempt runs: its own attempts carry its marks.
        """
        found: set[tree.Process] = set()
        if tree.starttime(self.pid) == self.starttime:
            found |= {child.process for child in tree.descendants(self.pid)}
        for process in self.marked():
            found.add(process)
            found |= {child.process for child in tree.descendants(process.pid)}
        return found


def tag_of(pid: int) -> str:
    """Return the tag in a process's environment, "" if there is none or it cannot be read."""
    environ = tree.read_proc(pid, "environ")
    at = 0 if environ.startswith(_TAG_PREFIX) else environ.find(b"\0" + _TAG_PREFIX) + 1
    if not environ.startswith(_TAG_PREFIX, at):
        return ""
    end = environ.find(b"\0", at)
    return environ[at + len(_TAG_PREFIX) : end if end >= 0 else None].decode("utf-8", "replace")


def mark_of(pid: int) -> int | None:
    """Return the number in a process's RLIMIT_RTTIME, None if it is no mark."""
    limits = tree.read_proc(pid, "limits")
    at = limits.find(_LIMIT_LINE)
    if at < 0:
        return None
    soft = limits[at + len(_LIMIT_LINE) :].split(None, 1)[0]
    number = int(soft) if soft.isdigit() else 0
    return number if number & _MARK_BASE else None


def is_orphan(pid: int) -> bool:
    """Say whether a process, alive or dead, was started by a pool child and is none itself."""
    mark = mark_of(pid)
    return mark is not None and _pid_in(mark) != pid & 0x3FFFFF


def _pid_in(mark: int) -> int:
    return (mark >> 22) & 0x3FFFFF


def owner_dead(pid: int, host: str) -> bool:
    """Say whether a process carries a mark of an owner on this host that no longer lives."""
    parts = tag_of(pid).split(":", 3)
    if len(parts) == 4 and parts[1].isdigit() and parts[2].isdigit():
        return parts[0] == host and not tree.alive(tree.Process(int(parts[1]), int(parts[2])))
    mark = mark_of(pid)
    if mark is None or (mark >> 44) & 0xFFFF != zlib.crc32(host.encode()) & 0xFFFF:
        return False
    owner_pid = _pid_in(mark)
    if owner_pid == pid:
        return False
    found = tree.stat(owner_pid)
    return found is None or found.dead or found.starttime & 0x3FFFFF != mark & 0x3FFFFF
