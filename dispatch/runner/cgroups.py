"""Control groups of attempts: where they can be made, making, reading, killing and removing them.

A group is a directory, in version 2 one, in version 1 one in the hierarchy of
each controller. It lies below the group that the worker is in, so that what
limits the worker limits its attempts as well, and its name says whose it is::

    dispatch-<boot>-<pid namespace>-<pid>-<starttime>-<number>

The standard library only: the warden imports this module.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dispatch.runner import owner, tree

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from dispatch.runner.owner import Owner

_PREFIX: Final = "dispatch-"
LEAF: Final = "dispatch-worker"
"""Version 2: the group in which the worker itself is, beside those of its attempts."""
CONTROLLERS: Final = ("memory", "pids")
_SLACK_BYTES: Final = 1_048_576
"""The kernel counts memory in batches for each processor: a limit that was reached may be so far from the peak."""
_REMOVE_S: Final = 1.0
"""How long a group that is still busy is tried to be removed: its dead are not collected yet."""


class Place(NamedTuple):
    """Where groups are made: a directory for each controller in version 1, one under the name "" in version 2."""

    version: int
    bases: Mapping[str, str]

    @classmethod
    def of_json(cls, value: Any) -> Place | None:
        """Return what ``list(place)`` was made of, None for anything else."""
        if not isinstance(value, list) or len(value) != 2 or not isinstance(value[1], dict):
            return None
        return cls(int(value[0]), {str(name): str(path) for name, path in value[1].items()})


class Events(NamedTuple):
    """What the kernel counted in a group. ``is_own_limit``: its own limit of memory was reached, not another one."""

    oom_kills: int = 0
    is_own_limit: bool = False
    refused_forks: int = 0


class Group:
    """The group of one attempt."""

    def __init__(self, place: Place, name: str, controllers: Collection[str]) -> None:
        self._version = place.version
        self._paths = {
            controller: f"{base}/{name}"
            for controller, base in place.bases.items()
            if controller in controllers or place.version == 2
        }

    @property
    def doors(self) -> tuple[str, ...]:
        """Return the files through which a process enters."""
        return tuple(f"{path}/cgroup.procs" for path in self._paths.values())

    def make(self, memory_bytes_max: int, processes_max: int) -> None:
        """Make it with its limits, 0 meaning none. Raises OSError; ``remove`` clears away what was made."""
        for path in self._paths.values():
            os.mkdir(path, 0o755)  # noqa: PTH102 - on the hot path
        if processes_max:
            write_file(f"{self._path_of('pids')}/pids.max", processes_max)
        if not memory_bytes_max:
            return
        path = self._path_of("memory")
        if self._version == 2:
            write_file(f"{path}/memory.max", memory_bytes_max)
            # Memory that is swapped out is memory, and what is killed is killed as a whole. Not every kernel has both.
            for name, value in (("memory.swap.max", 0), ("memory.oom.group", 1)):
                with contextlib.suppress(FileNotFoundError):
                    write_file(f"{path}/{name}", value)
            return
        write_file(f"{path}/memory.limit_in_bytes", memory_bytes_max)
        with contextlib.suppress(OSError):
            write_file(f"{path}/memory.memsw.limit_in_bytes", memory_bytes_max)

    def _path_of(self, controller: str) -> str:
        return self._paths["" if self._version == 2 else controller]

    def events(self) -> Events:
        """Return what the kernel counted; nothing when the group is gone."""
        if self._version == 2:
            path = self._paths[""]
            memory = _numbers(f"{path}/memory.events")
            is_own, pids = memory.get("oom", 0) > 0, f"{path}/pids.events"
        else:
            path = self._paths.get("memory", "")
            memory = _numbers(f"{path}/memory.oom_control") if path else {}
            # Not failcnt, which newer kernels no longer count.
            peak, limit = (read_file(f"{path}/memory.{name}_in_bytes").strip() for name in ("max_usage", "limit"))
            is_own = peak.isdigit() and limit.isdigit() and int(peak) + _SLACK_BYTES >= int(limit)
            pids = f"{self._paths['pids']}/pids.events" if "pids" in self._paths else ""
        return Events(memory.get("oom_kill", 0), is_own, _numbers(pids).get("max", 0) if pids else 0)

    def members(self) -> set[tree.Process]:
        """Return the living processes in it, and in groups that they made below it."""
        return {process for path in self._paths.values() for process in _members(path)}

    def kill(self) -> None:
        """Have the kernel kill all of it at once, forks under way included, where it can (version 2)."""
        if self._version == 2:
            _kill(self._paths[""])

    def remove(self) -> bool:
        """Remove it; False when it is still busy after a second."""
        left = [path for path in self._paths.values() if not _remove(path)]
        return not left


def write_file(path: str, value: object) -> None:
    """Write a value into a file of a group. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def read_file(path: str) -> str:
    """Return what is in a file, "" when it is gone or not ours to read."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:  # noqa: PTH123 - on the hot path
            return file.read()
    except OSError:
        return ""


def _numbers(path: str) -> dict[str, int]:
    """Return the lines ``name number`` of a file."""
    pairs = [line.split() for line in read_file(path).splitlines()]
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def pids_in(path: str) -> list[int]:
    """Return the pids in a group, without those in groups below it."""
    return [int(pid) for pid in read_file(f"{path}/cgroup.procs").split()]


def _members(path: str) -> Iterator[tree.Process]:
    for directory, _, _ in os.walk(path):
        for pid in pids_in(directory):
            found = tree.stat(pid)
            if found is not None and not found.dead:
                yield found.process


def _kill(path: str) -> None:
    with contextlib.suppress(OSError):
        write_file(f"{path}/cgroup.kill", 1)


def _remove(path: str) -> bool:
    end, pause_s = time.monotonic() + _REMOVE_S, 0.001
    while True:
        for directory, _, _ in os.walk(path, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)  # noqa: PTH106
        if not os.path.isdir(path):  # noqa: PTH112
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.02)


# Whose groups


def name_of(who: Owner, number: int) -> str:
    """Return the name of a pool child's group."""
    return f"{_PREFIX}{who.host}-{who.pid}-{who.starttime}-{number}"


def owned_by(place: Place | None, who: Owner) -> list[str]:
    """Return the directories of a pool child's groups."""
    return _found(place, lambda name: name.startswith(name_of(who, 0)[:-1]))


def stale(place: Place | None) -> list[str]:
    """Return the directories of groups whose pool child is dead."""
    host = owner.host_id()

    def is_stale(name: str) -> bool:
        parts = name.removeprefix(_PREFIX).split("-")
        if len(parts) != 5 or "-".join(parts[:2]) != host or not all(part.isdigit() for part in parts[2:]):
            return False
        return not tree.alive(tree.Process(int(parts[2]), int(parts[3])))

    return _found(place, is_stale)


def _found(place: Place | None, is_wanted: Callable[[str], bool]) -> list[str]:
    found = []
    for base in place.bases.values() if place is not None else ():
        with contextlib.suppress(OSError):
            found += [f"{base}/{name}" for name in os.listdir(base) if is_wanted(name)]  # noqa: PTH208
    return found


def members_of(paths: Collection[str]) -> set[tree.Process]:
    """Return the living processes in these groups."""
    return {process for path in paths for process in _members(path)}


def kill(paths: Collection[str]) -> None:
    """Have the kernel kill these groups, where it can; ``members_of`` says who is left."""
    for path in paths:
        _kill(path)


def clear(paths: Collection[str]) -> int:
    """Kill what is in these groups and remove them; return how many could not be removed."""
    if not paths:
        return 0
    kill(paths)
    tree.kill_all(lambda: members_of(paths))
    return sum(not _remove(path) for path in paths)
