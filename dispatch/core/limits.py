"""What an attempt may use of its host, and by which means that is held. Pure.

An operator limits memory and processes of an attempt. The kernel holds such
limits where the worker may make control groups; elsewhere the worker watches
the attempt's processes and stops it, which is later and can be outrun.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MEMORY: Final = "memory"
PIDS: Final = "pids"
"""The kernel's controllers, under their own names."""


class Mechanism(StrEnum):
    """What holds the limits of attempts."""

    CGROUP2 = "cgroup2"
    """The kernel, by a control group of version 2 for each attempt."""
    CGROUP1 = "cgroup1"
    """The kernel, by a control group of version 1 in the hierarchy of each controller."""
    WATCHED = "watched"
    """The worker, which looks at the attempt's processes again and again."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit; 0 is none. ``name`` is the setting that an operator would change."""

    value: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What one attempt may use: bytes of memory and processes (threads count where the kernel counts)."""

    memory: Limit = Limit()
    processes: Limit = Limit()

    def controllers(self) -> frozenset[str]:
        """Return the controllers that are needed to hold it; none when there is no limit."""
        found = ((MEMORY, self.memory.value), (PIDS, self.processes.value))
        return frozenset(name for name, value in found if value)


@dataclass(frozen=True, slots=True)
class Grounds:
    """What a look at the host found.

    ``version2`` and ``version1`` are the controllers that this process could use there for groups of its own;
    ``hindrance`` says why version 2 offers none, or "".
    """

    version2: frozenset[str] = frozenset()
    version1: frozenset[str] = frozenset()
    hindrance: str = ""


def choose(needed: frozenset[str], demanded: str, grounds: Grounds) -> Mechanism | None:
    """Return the strongest mechanism for these controllers, None where ``demanded`` cannot be met.

    ``demanded`` is ``auto``, ``kernel`` or ``watched``. Version 2 comes first: a group there is killed as a whole.
    """
    if demanded == "watched":
        return Mechanism.WATCHED
    for mechanism, offered in ((Mechanism.CGROUP2, grounds.version2), (Mechanism.CGROUP1, grounds.version1)):
        if needed <= offered:
            return mechanism
    return None if demanded == "kernel" else Mechanism.WATCHED


def hindrance_of(grounds: Grounds) -> str:
    """Return why the kernel cannot hold limits here, as the end of a sentence."""
    return f"{grounds.hindrance}, and the hierarchies of version 1 cannot be written"


def finding(needed: frozenset[str], demanded: str, grounds: Grounds) -> tuple[bool, str, str]:
    """Return what a worker that is started from where one looks would make of its limits.

    First whether that is as it should be, then a sentence, then an advice or "".
    """
    mechanism = choose(needed or frozenset((MEMORY, PIDS)), demanded, grounds)
    advice = "Start workers in a control group of their own: systemd's Delegate=memory pids (docs/executors.md#limits)."
    if mechanism in (Mechanism.CGROUP1, Mechanism.CGROUP2):
        who = f"the kernel can hold limits here ({mechanism})"
    else:
        who = f"from here the kernel cannot hold limits: {hindrance_of(grounds)}"
    if not needed:
        return True, f"Nothing limits what an attempt may use; {who}.", ""
    if mechanism is None:
        return False, f"A worker started from here would not start: {who}.", advice
    if mechanism is Mechanism.WATCHED and demanded != "watched":
        return False, f"Limits of attempts would only be watched: {who}.", advice
    held = "watched by the worker, as the settings want it" if mechanism is Mechanism.WATCHED else f"{who}"
    return True, f"Attempts have limits; {held}.", ""


def shown_bytes(count: int) -> str:
    """Return a number of bytes for people, exact: 512 MiB, 1000 bytes."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size and count % size == 0:
            return f"{count // size} {unit}"
    return f"{count} bytes"


def over_memory(limit: Limit, *, by_kernel: bool) -> str:
    """Return the sentence about an attempt that needed too much memory."""
    who = "killed by the kernel" if by_kernel else "stopped by the worker, which watches it"
    return f"it needed more than its {shown_bytes(limit.value)} of memory ({limit.name}); {who}"


def host_out_of_memory(limit: Limit) -> str:
    """Return the sentence about an attempt that was killed within its own limit."""
    own = f"; it was within its own {shown_bytes(limit.value)} ({limit.name})" if limit.value else ""
    return f"killed by the kernel: its host, or the group of its worker, was out of memory{own}"


def over_processes(limit: Limit) -> str:
    """Return the sentence about an attempt that the worker stopped for its number of processes."""
    return f"it had more than its {limit.value} processes ({limit.name}); stopped by the worker, which watches it"


def refused_processes(limit: Limit) -> str:
    """Return what is said of a failed attempt to which the kernel refused a process."""
    if not limit.value:
        return "it was refused a process: its host, or the group of its worker, had as many as it may"
    return f"it was refused more than its {limit.value} processes and threads ({limit.name})"
