"""What an agent may begin now, the most urgent first. Every function is one transaction on a ``Tx``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import exists, false, func, or_, select

from dispatch.core.lifecycle import Status
from dispatch.errors import TaskError
from dispatch.service import locks, readiness
from dispatch.service.access import agent_uuid
from dispatch.service.rows import OWN_WORDS, Ref
from dispatch.service.schema import task_needs, tasks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import ColumnElement

    from dispatch.ats.model import Actor
    from dispatch.service.leases import Granted
    from dispatch.service.store import Tx

_c: Final = tasks.c
_TRIES: Final = 10


@dataclass(frozen=True, slots=True)
class Taste:
    """Which tasks an agent takes; empty tuples filter nothing, except that a task's needs must all be capabilities."""

    project_id: int
    channels: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()


def _fits(taste: Taste, agent: str) -> Iterator[ColumnElement[bool]]:
    yield _c.status == Status.TODO.value
    yield _c.project_id == taste.project_id
    yield _c.held == false()
    yield or_(_c.assigned_to.is_(None), _c.assigned_to == agent)
    if taste.channels:
        yield _c.channel.in_(taste.channels)
    if taste.types:
        yield _c.type.in_(taste.types)
    lacking = exists().where(task_needs.c.task_id == _c.id)
    if taste.capabilities:
        lacking = lacking.where(task_needs.c.name.not_in(taste.capabilities))
    yield ~lacking
    yield ~readiness.waits


def _ready(taste: Taste, agent: str, now_ms: int) -> Any:
    return (
        select(_c.id)
        .where(*_fits(taste, agent), or_(_c.not_before.is_(None), _c.not_before <= now_ms))
        .order_by(_c.priority.desc(), _c.position, _c.id)
        .limit(_TRIES)
    )


def next_at(tx: Tx, taste: Taste, actor: Actor) -> int | None:
    """Return when the first fitting task may be begun, in ms since the epoch (0: now), or None for no such time."""
    agent = agent_uuid(actor.type, actor.id)
    if tx.one(_ready(taste, agent, tx.now_ms)) is not None:
        return 0
    found = tx.one(select(func.min(_c.not_before)).where(*_fits(taste, agent), _c.not_before > tx.now_ms))
    return None if found[0] is None else int(found[0])


def begin_next(tx: Tx, taste: Taste, actor: Actor, *, lease_ms: int | None, note: str | None = None) -> Granted | None:
    """Lock and start the most urgent fitting task; None when there is none."""
    agent = agent_uuid(actor.type, actor.id)
    for row in tx.all(_ready(taste, agent, tx.now_ms)):
        try:
            granted, _ = locks.take_and_start(
                tx, Ref(row.id, words=OWN_WORDS), actor, lease_ms=lease_ms, claim_note=note
            )
        except TaskError:
            continue
        return granted
    return None
