"""The life of a worker process: from preflight to drain, and what each pool child gets.

The main process owns the warden, the stop pipe and the presence; a pool child
owns its gateway and its connection to the warden. Celery's signals call the
functions at the bottom; nothing else does.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from celery import signals
from dispatch.runner.execution import RunnerContext, execute
from dispatch.runner.warden_client import WardenProcess

from dispatch import log as logging_setup
from dispatch.ats import protocol
from dispatch.ats.client import Client
from dispatch.ats.fenced import FencedGateway
from dispatch.ats.model import Actor
from dispatch.ats.plain import PlainGateway
from dispatch.broker import connect
from dispatch.errors import DispatchError
from dispatch.settings import load
from workers.presence import PresenceThread

if TYPE_CHECKING:
    from dispatch.ats.gateway import AttemptRef, TaskGateway
    from dispatch.core.retry import EndReason
    from dispatch.settings import Settings

log = logging_setup.get_logger("worker")


@dataclass(slots=True)
class Main:
    """What the main process holds. Pool children inherit it by fork and use ``settings``, ``fenced`` and the pipe."""

    settings: Settings
    fenced: bool
    warden: WardenProcess
    stop_r: int
    stop_w: int
    presence: PresenceThread | None = None
    draining: bool = False


class Slot:
    """A pool child's side: runs one attempt at a time."""

    def __init__(self, context: RunnerContext) -> None:
        self._context = context

    def run(self, ref: AttemptRef) -> EndReason | None:
        """Run one attempt to its end and report it; None when it was dropped."""
        end = execute(ref, self._context)
        return end.reason if end is not None else None


_main: Main | None = None
_slot: Slot | None = None


def slot() -> Slot:
    """Return this pool child's slot."""
    if _slot is None:
        raise DispatchError("This process is no pool child: run tasks with the prefork pool (celery's default).")
    return _slot


def _gateway(settings: Settings, *, fenced: bool) -> TaskGateway:
    ats, execution = settings.ats, settings.execution
    where = protocol.endpoint(
        ats.url, org=ats.org, project=ats.project, token=ats.token.reveal() if ats.token else None
    )
    client = Client(where, Actor("agent", ats.actor_id, ats.actor_name))
    if fenced:
        return FencedGateway(client, lease_s=execution.lease_s, actor_name=ats.actor_name)
    return PlainGateway(client, connect(settings.broker), lease_s=execution.lease_s, actor_name=ats.actor_name)


def _exit_with(exc: DispatchError) -> None:
    log.critical("worker_cannot_start", reason=str(exc))
    sys.stderr.write(f"{exc}\n")
    sys.stderr.flush()
    raise SystemExit(exc.exit_code) from exc


@signals.setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    """Take logging over from Celery: JSON lines, like every process of ours."""
    try:
        logging_setup.configure(load().local.log_level)
    except DispatchError as exc:
        _exit_with(exc)
