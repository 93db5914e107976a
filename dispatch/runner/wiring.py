"""What the loop of one attempt is given: its durations, and what it listens to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dispatch.runner.idle import IdleWatch
from dispatch.runner.limits import Unlimited
from dispatch.runner.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatch.runner.lease_keeper import Lease
    from dispatch.runner.signals import Inbox
    from dispatch.runner.warden_client import WardenClient


@dataclass(frozen=True, slots=True)
class Limits:
    """Durations of one attempt, seconds, and its output cap."""

    timeout_s: float
    grace_s: float
    drain_s: float
    output_bytes_max: int


@dataclass(slots=True)
class Wiring:
    """What the loop listens to besides the child; ``baseline`` are children of this process that are not touched."""

    inbox: Inbox
    lease: Lease
    stop_fd: int | None = None
    warden: WardenClient | None = None
    start_keeper: Callable[[], None] = lambda: None
    baseline: frozenset[int] = field(default_factory=frozenset)
    streams: Streams = field(default_factory=lambda: Streams(progress=False))
    bounds: Unlimited = field(default_factory=Unlimited)
    """What the attempt may use of the host."""
    idle: IdleWatch = field(default_factory=IdleWatch)
    """Whether it hangs."""
