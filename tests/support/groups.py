"""What of control groups this machine offers to tests, and what is left of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dispatch.core import limits
from dispatch.runner import delegation

if TYPE_CHECKING:
    from collections.abc import Iterable

_HOST: Final = delegation.look()
MECHANISM: Final = limits.choose(frozenset((limits.MEMORY, limits.PIDS)), "auto", _HOST.grounds)
"""What holds limits in a worker that a test starts as a child of its own: never version 2, where the test itself is."""
BY_KERNEL: Final = MECHANISM is limits.Mechanism.CGROUP1


def groups_of(pid: int) -> list[str]:
    """Return the directories of the groups that a pool child or its trials have left."""
    found: list[str] = []
    for base in _HOST.bases1.values():
        found += [name for name in os.listdir(base) if name.startswith("dispatch-") and f"-{pid}-" in f"{name}-"]
    return found


def is_in_group_of(pids: Iterable[int], owner: int) -> bool:
    """Say whether all of these processes are in groups of a pool child."""
    return all(f"-{owner}-" in Path(f"/proc/{pid}/cgroup").read_text() for pid in pids)
