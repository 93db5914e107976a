"""Hold an attempt to what it may use: by the kernel where a place for control groups was found, else by looking.

``set_up`` is called once by the worker main, before its warden and its pool
exist; ``Holder.hold`` for each attempt in a pool child. An attempt without
limits gets ``Unlimited``, which does nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from dispatch.core import limits
from dispatch.core.limits import Allowance, Mechanism
from dispatch.core.retry import EndReason
from dispatch.errors import ConfigurationError
from dispatch.runner import cgroups, delegation, tree
from dispatch.runner.process import SpawnError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from dispatch.runner.cgroups import Place
    from dispatch.runner.owner import Owner

LOOK_S: Final = 0.25
"""How often the kernel's counters, or without it the attempt's processes, are looked at."""
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Unlimited:
    """What the loop asks about one attempt's limits; this one has none."""

    every_s = math.inf
    """Seconds between two looks."""
    doors: tuple[str, ...] = ()
    """Files through which its first process must go before it becomes the command."""
    said = ""
    """What the limits have to do with its end, for people; holds nothing of the task."""

    def look(self, living: Callable[[], Iterable[tree.Stat]]) -> EndReason | None:  # noqa: ARG002
        """Say whether it must be stopped now; ``living`` finds its processes."""
        return None

    def judge(self, reason: EndReason) -> EndReason:
        """Return the reason for an end of its own, in the light of the limits."""
        return reason

    def members(self) -> set[tree.Process]:
        """Return its living processes as far as the kernel keeps them together."""
        return set()

    def kill(self) -> None:
        """Have the kernel kill all of them, where it can."""


class Held(Unlimited):
    """Limits that the kernel holds by a control group."""

    every_s = LOOK_S

    def __init__(self, allowance: Allowance, group: cgroups.Group) -> None:
        self._allowance = allowance
        self._group = group
        self.doors = group.doors

    def look(self, living: Callable[[], Iterable[tree.Stat]]) -> EndReason | None:  # noqa: ARG002
        """Say whether the kernel killed one of its processes: the others are then not what they were meant to be."""
        return EndReason.OOM if self._is_oom(self._group.events()) else None

    def judge(self, reason: EndReason) -> EndReason:
        """See ``Unlimited``. Success and a "not now" stand, whatever happened on the way."""
        if reason not in (EndReason.EXIT, EndReason.SIGNAL, EndReason.TIMEOUT, EndReason.IDLE):
            return reason
        events = self._group.events()
        if reason not in (EndReason.TIMEOUT, EndReason.IDLE) and self._is_oom(events):
            return EndReason.OOM
        if events.refused_forks and not self.said:
            self.said = limits.refused_processes(self._allowance.processes)
        return reason

    def members(self) -> set[tree.Process]:
        """Return the processes in its group."""
        return self._group.members()

    def kill(self) -> None:
        """Kill its group."""
        self._group.kill()

    def _is_oom(self, events: cgroups.Events) -> bool:
        if not events.oom_kills:
            return False
        memory = self._allowance.memory
        self.said = (
            limits.over_memory(memory, by_kernel=True) if events.is_own_limit else limits.host_out_of_memory(memory)
        )
        return True


class Watched(Unlimited):
    """Limits that the loop holds, by looking: what happens between two looks is not seen."""

    every_s = LOOK_S

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance

    def look(self, living: Callable[[], Iterable[tree.Stat]]) -> EndReason | None:
        """Count processes and their memory: what is resident and not shared with files or other mappings."""
        memory, processes = self._allowance.memory, self._allowance.processes
        pids = [one.pid for one in living()]
        if processes.value and len(pids) > processes.value:
            self.said = limits.over_processes(processes)
            return EndReason.PROCESS_LIMIT
        if memory.value and sum(map(_own_bytes, pids)) > memory.value:
            self.said = limits.over_memory(memory, by_kernel=False)
            return EndReason.OOM
        return None


def _own_bytes(pid: int) -> int:
    """Return the resident memory of a process without what is shared, by one cheap read; 0 when it is gone."""
    fields = tree.read_proc(pid, "statm").split()
    return (int(fields[1]) - int(fields[2])) * _PAGE_BYTES if len(fields) > 2 else 0


@dataclass(slots=True)
class Holder:
    """How this worker holds limits. Without ``place`` it watches; ``is_strict`` forbids that."""

    place: Place | None = None
    is_strict: bool = False
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def mechanism(self) -> Mechanism:
        """Return what holds the limits."""
        if self.place is None:
            return Mechanism.WATCHED
        return Mechanism.CGROUP2 if self.place.version == 2 else Mechanism.CGROUP1

    @contextlib.contextmanager
    def hold(self, allowance: Allowance, who: Owner, log: Any) -> Iterator[Unlimited]:
        """Hold one attempt of this pool child to its allowance. Raises SpawnError where the kernel must and cannot."""
        needed = allowance.controllers()
        if not needed:
            yield Unlimited()
            return
        if self.place is None:
            yield Watched(allowance)
            return
        group = cgroups.Group(self.place, cgroups.name_of(who, next(self._numbers)), needed)
        try:
            try:
                group.make(allowance.memory.value, allowance.processes.value)
            except OSError as exc:
                if self.is_strict:
                    raise SpawnError(f"No control group could be made for the attempt: {exc}.") from exc
                log.warning("limits_only_watched", error=str(exc))
                yield Watched(allowance)
                return
            yield Held(allowance, group)
        finally:
            if not group.remove():
                log.warning("limits_group_left", doors=group.doors)


def set_up(needed: frozenset[str], demanded: str, log: Any) -> Holder:
    """Find the strongest mechanism for these controllers and take its place.

    Call it in the worker main before anything is started there. Raises
    ConfigurationError when the kernel is demanded and cannot hold them.
    """
    if not needed:
        return Holder()
    host = delegation.look()
    mechanism = limits.choose(needed, demanded, host.grounds)
    hindrance = limits.hindrance_of(host.grounds)
    if mechanism in (Mechanism.CGROUP1, Mechanism.CGROUP2):
        try:
            return Holder(delegation.take(mechanism, host, needed), is_strict=demanded == "kernel")
        except OSError as exc:
            hindrance = str(exc)
    if demanded == "kernel":
        raise ConfigurationError(
            f"DISPATCH_ATTEMPT_LIMITS is kernel, but the kernel cannot hold limits for this worker: {hindrance}."
            " Start it in a control group of its own that it may write (systemd: Delegate=memory pids), or set auto."
        )
    if demanded != "watched":
        log.warning("limits_only_watched", error=hindrance)
    return Holder()
