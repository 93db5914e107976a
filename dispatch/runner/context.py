"""What an attempt needs of the process that runs it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dispatch.runner.limits import Holder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dispatch.ats.gateway import TaskGateway
    from dispatch.core.routing import Routing
    from dispatch.runner.lease_keeper import WakeSource
    from dispatch.runner.unsealing import TrustSource
    from dispatch.runner.warden_client import WardenClient
    from dispatch.settings import Execution


@dataclass(frozen=True, slots=True)
class RunnerContext:
    """What an attempt needs of its process; made once per pool child.

    ``gateway`` is used by two threads at once (reports and renewals).
    ``stop_fd`` is the read end of the worker's stop pipe: closing the write end
    asks for a drain, a byte ``C`` written before that for a stop at once. It is
    shared by all pool children and never read. ``rand`` returns numbers in [0, 1).
    Without ``keys`` nobody is trusted, and tasks in the open are run.
    """

    gateway: TaskGateway
    execution: Execution
    data_dir: Path
    ats_url: str
    runner: str
    """Name of this worker, shown to people; a nonce per attempt is appended."""
    log: Any
    actor_name: str = "dispatch"
    warden: WardenClient | None = None
    wake: WakeSource | None = None
    stop_fd: int | None = None
    keys: TrustSource | None = None
    routing: Routing | None = None
    """Which executor does what; without it the command of the settings does everything."""
    holder: Holder = field(default_factory=Holder)
    """How what an attempt may use is held."""
    stream_s: float = 1.0
    """Least time between two messages with what a running attempt writes; 0: it is not shown."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """What is not shown in them."""
    rand: Callable[[], float] = field(default=random.random)
