"""Find out whether this process may make control groups, and take the place where it may.

Version 2 has a rule: a group with controllers for the groups below it holds no
processes itself. So the worker moves into a leaf below its group first, and it
can do that only for itself: a group with other processes in it is of no use.

The standard library only: the warden imports this module.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Final, NamedTuple

from dispatch.core.limits import Grounds, Mechanism
from dispatch.runner import cgroups
from dispatch.runner.cgroups import CONTROLLERS, LEAF, Place

_OTHERS_SHOWN: Final = 3
_LEAVE_S: Final = 1.0
"""How long pool children may take to be gone when their worker died."""
_TRIAL_BYTES: Final = 1 << 30
_TRIAL_PROCESSES: Final = 100


class Host(NamedTuple):
    """What was found: the group of this process in version 2, "" for none, and its groups in version 1."""

    grounds: Grounds
    group2: str
    bases1: dict[str, str]


def look(mounts: str | None = None, groups: str | None = None) -> Host:
    """Look where this process may make groups; changes nothing. The arguments replace two files of /proc."""
    found = _own(
        cgroups.read_file("/proc/self/mountinfo") if mounts is None else mounts,
        cgroups.read_file("/proc/self/cgroup") if groups is None else groups,
    )
    bases1 = {name: path for name, path in found.items() if name in CONTROLLERS and _is_ours(path)}
    group2 = found.get("", "")
    offered, hindrance = _offer_of(group2) if group2 else (frozenset(), "control groups of version 2 are not mounted")
    return Host(Grounds(offered, frozenset(bases1), hindrance), group2, bases1)


def _own(mounts: str, groups: str) -> dict[str, str]:
    """Return the directory of this process's group in each hierarchy, by controller; version 2 under ""."""
    paths = {}
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    found: dict[str, str] = {}
    for line in mounts.splitlines():
        fields, _, tail = line.partition(" - ")
        kind, _, options = (*tail.split(" "), "", "")[:3]
        if kind not in ("cgroup", "cgroup2"):
            continue
        root, mount = (part.encode().decode("unicode_escape") for part in fields.split(" ")[3:5])
        for name in [""] if kind == "cgroup2" else options.split(","):
            if name not in paths or name in found:
                continue
            path = paths[name]
            if path == root or path.startswith(f"{root.rstrip('/')}/"):
                found[name] = mount + path[len(root.rstrip("/")) :].rstrip("/")
    return found


def _is_ours(path: str) -> bool:
    return os.access(path, os.W_OK | os.X_OK)


def _parent(group: str) -> str:
    """Return below which group those of attempts are made: beside the leaf, if systemd put us into it at once."""
    return os.path.dirname(group) if os.path.basename(group) == LEAF else group  # noqa: PTH119, PTH120


def _is_root(path: str) -> bool:
    """Say whether this is the top of the hierarchy, where the rule about processes does not hold."""
    return not os.path.exists(f"{path}/cgroup.type")  # noqa: PTH110


def _offer_of(group: str) -> tuple[frozenset[str], str]:
    """Return the controllers for groups of ours in version 2, and what is in the way."""
    base = _parent(group)
    there = frozenset(cgroups.read_file(f"{base}/cgroup.controllers").split()) & set(CONTROLLERS)
    if not there:
        return frozenset(), f"{base} has neither of the controllers memory and pids"
    if not (_is_ours(base) and os.access(f"{base}/cgroup.subtree_control", os.W_OK)):
        return frozenset(), f"{base} is not delegated to this user"
    others = [pid for pid in cgroups.pids_in(base) if pid != os.getpid()]
    if others and not _is_root(base):
        shown = ", ".join(map(str, others[:_OTHERS_SHOWN]))
        return frozenset(), f"other processes are in {base} (pid {shown})"
    return there, ""


def take(mechanism: Mechanism, host: Host, needed: frozenset[str]) -> Place:
    """Take the place for groups. Raises OSError where it cannot be had after all; then nothing was changed."""
    if mechanism is Mechanism.CGROUP1:
        place = Place(1, {name: host.bases1[name] for name in sorted(needed)})
    else:
        base = _parent(host.group2)
        place = Place(2, {"": base})
        if base == host.group2 and not _is_root(base):
            _move(f"{base}/{LEAF}")
    trial = cgroups.Group(place, f"dispatch-trial-{os.getpid()}", needed)
    try:
        if mechanism is Mechanism.CGROUP2:
            _enable(place.bases[""], "+", needed)
        trial.make(_TRIAL_BYTES if "memory" in needed else 0, _TRIAL_PROCESSES if "pids" in needed else 0)
    except OSError:
        trial.remove()
        give_back(place)
        _return(place)
        raise
    trial.remove()
    return place


def _move(leaf: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(leaf, 0o755)  # noqa: PTH102
    cgroups.write_file(f"{leaf}/cgroup.procs", 0)


def _enable(base: str, sign: str, controllers: frozenset[str]) -> None:
    cgroups.write_file(f"{base}/cgroup.subtree_control", " ".join(f"{sign}{name}" for name in sorted(controllers)))


def _return(place: Place) -> None:
    """Go back to where this process was, as far as that goes."""
    if place.version != 2:
        return
    base = place.bases[""]
    with contextlib.suppress(OSError):
        cgroups.write_file(f"{base}/cgroup.procs", 0)
        os.rmdir(f"{base}/{LEAF}")  # noqa: PTH106


def give_back(place: Place | None) -> None:
    """Let the place be as it was found, unless another process of ours has come: the unit's next start needs it.

    systemd puts the next worker into the group itself, which the rule forbids
    as long as there are controllers for groups below.
    """
    if place is None or place.version != 2:
        return
    base = place.bases[""]
    end = time.monotonic() + _LEAVE_S
    while any(pid != os.getpid() for pid in cgroups.pids_in(f"{base}/{LEAF}")):
        if time.monotonic() >= end:
            return
        time.sleep(0.02)
    with contextlib.suppress(OSError):
        _enable(base, "-", frozenset(cgroups.read_file(f"{base}/cgroup.subtree_control").split()) & set(CONTROLLERS))
