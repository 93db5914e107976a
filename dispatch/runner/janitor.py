"""Clear away what dead workers of this host left behind: processes and work directories.

The standard library only: the warden imports this module.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from typing import TYPE_CHECKING, Final

from dispatch.runner import owner, tree

if TYPE_CHECKING:
    from pathlib import Path

STALE_S: Final = 8 * 86_400.0
"""Age after which a work directory of another boot or container is stale: no attempt may last longer than a week."""


def orphans() -> set[tree.Process]:
    """Return the living processes on this host that belong to attempts of dead pool children."""
    host = owner.host_id()
    found: set[tree.Process] = set()
    for pid in tree.all_pids():
        if pid != os.getpid() and owner.owner_dead(pid, host):
            what = tree.stat(pid)
            if what is not None and not what.dead:
                found.add(what.process)
    return found


def kill_orphans() -> set[tree.Process]:
    """Kill them until none is left; return what was killed."""
    return tree.kill_all(orphans)[0]


def stale_directories(work_root: Path) -> list[Path]:
    """Return the work directories whose pool child is dead, or too old to belong to anything that lives."""
    host = owner.host_id()
    found = []
    for path in work_root.glob("*"):
        try:
            boot, namespace, pid, started, _ = path.name.split("-")
            process = tree.Process(int(pid), int(started))
            is_old = time.time() - path.stat().st_mtime > STALE_S
        except (ValueError, OSError):
            continue
        if is_old or (f"{boot}-{namespace}" == host and not tree.alive(process)):
            found.append(path)
    return found


def clear_directories(work_root: Path) -> int:
    """Remove stale work directories; return how many. Call it when a worker starts, and now and then."""
    stale = stale_directories(work_root)
    for path in stale:
        remove_tree(str(path))
    return len(stale)


def clear_logs(log_root: Path, keep_s: float) -> int:
    """Remove logs of attempts that nothing was written to for so long; return how many."""
    count = 0
    for path in log_root.glob("*-*.log"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > keep_s:
                path.unlink()
                count += 1
    return count


def remove_tree(path: str) -> None:
    """Remove a directory with all that is in it; what cannot be removed is left to the next start of a worker."""
    try:
        os.rmdir(path)  # noqa: PTH106 - mostly empty, and on the hot path of every attempt
    except OSError:
        with contextlib.suppress(OSError):
            for directory, _, _ in os.walk(path):
                os.chmod(directory, 0o700)  # noqa: PTH101 - the child may have closed it to everybody
        shutil.rmtree(path, ignore_errors=True)
