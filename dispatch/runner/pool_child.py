"""What one pool child keeps between its attempts: marks, self-pipe, lease keeper, live output, work directories."""

from __future__ import annotations

import contextlib
import os
import select
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dispatch.runner import janitor, tree
from dispatch.runner.lease_keeper import LeaseKeeper
from dispatch.runner.live import LiveOutput
from dispatch.runner.owner import Owner
from dispatch.runner.process import SpawnError
from dispatch.runner.signals import Inbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dispatch.ats.gateway import TaskGateway
    from dispatch.runner.lease_keeper import WakeSource


@dataclass(slots=True)
class PoolChild:
    """The state of this process as a runner of attempts, one at a time."""

    work_root: Path
    owner: Owner = field(default_factory=Owner.current)
    inbox: Inbox = field(default_factory=Inbox)
    baseline: frozenset[int] = field(default_factory=lambda: frozenset(tree.children(os.getpid())))
    """Children that were here before the first attempt: never touched."""
    _keeper: LeaseKeeper | None = None
    _live: LiveOutput | None = None
    _directories: int = 0

    def prepare(self) -> None:
        """Make this process the reaper and the marked owner of what it will start."""
        tree.set_child_subreaper()
        self.owner.set_mark()
        self.work_root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def keeper(self, gateway: TaskGateway, wake: WakeSource | None, rand: Callable[[], float], log: Any) -> LeaseKeeper:
        """Return the lease keeper, made at the first need."""
        if self._keeper is None:
            self._keeper = LeaseKeeper(gateway, wake=wake, rand=rand, log=log)
        return self._keeper

    def live(self, gateway: TaskGateway, every_s: float, log: Any) -> LiveOutput:
        """Return what shows output while an attempt runs, made at the first need."""
        if self._live is None:
            self._live = LiveOutput(gateway, every_s=every_s, log=log)
        return self._live

    def stop_watching(self) -> None:
        """Let the keeper and the live output, if there are any, forget the attempt."""
        if self._live is not None:
            self._live.unwatch()
        if self._keeper is not None:
            self._keeper.unwatch()

    def stopping(self, stop_fd: int | None) -> bool:
        """Say whether this process was asked to drain or to stop."""
        if self.inbox.terms:
            return True
        if stop_fd is None:
            return False
        poll = select.poll()
        poll.register(stop_fd, select.POLLIN)
        return bool(poll.poll(0))

    def wait(self, seconds: float) -> None:
        """Sleep, but not through a message to the inbox."""
        poll = select.poll()
        poll.register(self.inbox.read_fd, select.POLLIN)
        if poll.poll(max(0, int(seconds * 1000))):
            self.inbox.drain()

    @contextlib.contextmanager
    def work_directory(self) -> Iterator[str]:
        """Make a private directory for one attempt, and remove it with everything in it. Raises SpawnError."""
        self._directories += 1
        owner = self.owner
        path = f"{self.work_root}/{owner.host}-{owner.pid}-{owner.starttime}-{self._directories}"
        try:
            try:
                os.mkdir(path, 0o700)  # noqa: PTH102 - on the hot path
            except FileNotFoundError:
                self.work_root.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.mkdir(path, 0o700)  # noqa: PTH102
        except OSError as exc:
            raise SpawnError(f"The work directory {path} cannot be made: {exc.strerror}.") from exc
        try:
            yield path
        finally:
            janitor.remove_tree(path)


_current: PoolChild | None = None


def current(data_dir: Path) -> PoolChild:
    """Return this process's state, made at its first attempt; a forked process has its own."""
    global _current  # noqa: PLW0603 - one process is one runner
    if _current is None or _current.owner.pid != os.getpid():
        made = PoolChild(data_dir / "work")
        made.prepare()
        _current = made
    return _current
