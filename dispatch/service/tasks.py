"""Create, read, change and list tasks. Every function is one transaction on a ``Tx``."""

from __future__ import annotations

import json
import operator
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import BigInteger, bindparam, false, func, insert, literal, or_, select, true, update

from dispatch.core.lifecycle import ATS_WORD, FINISHED, Status
from dispatch.core.routing import traits_of
from dispatch.service import dependencies, moves, seals, tenants, wire
from dispatch.service.collation import bytewise, fold, folded
from dispatch.service.readiness import waits
from dispatch.service.rows import ALL, Ref, Scope, fetch, lock
from dispatch.service.schema import POSITION_LAST, tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from dispatch.ats.model import Actor
    from dispatch.service.store import Tx

_NEW: Final = (
    "uuid",
    "project_id",
    "title",
    "description",
    "type",
    "channel",
    "priority",
    "status",
    "needs_review",
    "payload",
    "sealed",
    "traits",
    "parent_id",
    "run_id",
    "order_index",
    "position",
    "assigned_to",
    "meta_json",
    "depends_on",
    "source_type",
    "source_id",
    "source_name",
    "created_at",
    "updated_at",
    "entered_at",
    "completed_at",
)
_INSERT: Final = insert(tasks).values({name: bindparam(name) for name in _NEW}).returning(*ALL)

_DAY_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class NewTask:
    """What a client says about a task that it creates. ``payload`` is JSON text."""

    title: str
    description: str = ""
    type: str = "task"
    channel: str = "default"
    priority: int = 5
    payload: str | None = None
    needs_review: bool = False
    status: Status = Status.TODO
    uuid: str | None = None
    parent_id: int | None = None
    run_id: str | None = None
    order_index: float | None = None
    assigned_to: str | None = None
    meta_json: str | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """What a list asks for. Times are ms since the epoch; empty tuples and None filter nothing."""

    scope: Scope | None = None
    within: frozenset[int] | None = None
    project_id: int | None = None
    ids: tuple[int, ...] | None = None
    status: tuple[Status, ...] = ()
    type: tuple[str, ...] = ()
    channel: tuple[str, ...] = ()
    assignee_id: str | None = None
    created_after: int | None = None
    updated_after: int | None = None
    min_priority: int | None = None
    max_priority: int | None = None
    search: str | None = None
    waiting: bool = False
    """Only tasks in todo that wait for what they depend on."""
    dependent: bool = False
    """Only tasks that depend on others."""
    claimable_by: str | None = None
    """The agent (UUID) that wants to claim: only what is unlocked, waits for nothing, and is not kept for others."""
    sort_by: str = "created_at"
    descending: bool = True
    limit: int = 100
    offset: int = 0
    after: int | None = None
    """Only what comes after the task of this number, in a list by creation: a page's last task leads to the next."""
    fields: tuple[str, ...] | None = None


def create(
    tx: Tx,
    scope: Scope | None,
    actor: Actor,
    new: NewTask,
    within: frozenset[int] | None = None,
    wish: dependencies.Asked | None = None,
) -> Any:
    """Create a task in todo and return its row. ``within`` holds the projects that the caller may see, None for all.

    Raises NotFoundError for an unknown project, ForbiddenError when none is named and the default is not the
    caller's, InvalidInputError for what it cannot depend on.
    """
    project_id = tenants.home(tx, within) if scope is None else tenants.project_id(tx, scope, within)
    found = dependencies.Found() if wish is None else dependencies.find(tx, project_id, wish)
    row = insert_row(tx, project_id, actor, new, found)
    tx.emit("task.created", row, actor, moved=(None, row.status))
    if dependencies.arrived(tx, row, actor) and wish is not None and wish.is_strict:
        dependencies.check_circle(tx, row.id)
    return row


def insert_row(tx: Tx, project_id: int, actor: Actor, new: NewTask, found: dependencies.Found | None = None) -> Any:
    """Insert a task into a project, with its dependencies, and return its row.

    The caller tells of it, and of those who waited for it (``dependencies.arrived``).
    """
    row = tx.one(
        _INSERT,
        {
            "uuid": new.uuid or str(uuid.uuid4()),
            "project_id": project_id,
            "title": new.title,
            "description": new.description,
            "type": new.type,
            "channel": new.channel,
            "priority": new.priority,
            "status": new.status.value,
            "needs_review": new.needs_review or _asks_for_review(new.payload),
            "payload": new.payload,
            **_of_payload(new.payload),
            "parent_id": new.parent_id,
            "run_id": new.run_id,
            "order_index": new.order_index,
            "position": position_of(new.order_index),
            "assigned_to": new.assigned_to,
            "meta_json": new.meta_json,
            "depends_on": None if found is None else found.text(),
            "source_type": actor.type,
            "source_id": actor.id,
            "source_name": actor.name,
            "created_at": tx.now_ms,
            "updated_at": tx.now_ms,
            "entered_at": tx.now_ms,
            "completed_at": tx.now_ms if new.status in FINISHED else None,
        },
    )
    if found is not None:
        dependencies.connect(tx, row.id, found)
    return row


def _of_payload(payload: str | None) -> dict[str, Any]:
    """Return the columns that repeat what the fleet needs to see of a payload, given as JSON text."""
    sealed = seals.is_sealed_text(payload)
    traits = {} if sealed or payload is None else traits_of(json.loads(payload))
    return {"sealed": sealed, "traits": wire.dumps(traits) if traits else None}


def _asks_for_review(payload: str | None) -> bool:
    """Say whether a payload has ``review: true`` at its top."""
    if payload is None or '"review"' not in payload:
        return False
    said = json.loads(payload)
    return isinstance(said, dict) and said.get("review") is True


def position_of(order_index: float | None) -> float:
    """Return where a task stands in its list: without an ``order_index`` after all that have one."""
    return float(POSITION_LAST) if order_index is None else order_index


def get(tx: Tx, ref: Ref) -> Any:
    """Return the task's row. Raises NotFoundError."""
    return fetch(tx, ref)


def patch(
    tx: Tx,
    ref: Ref,
    actor: Actor,
    *,
    fields: Mapping[str, Any],
    status: Status | None,
    default_lease_ms: int,
    wish: dependencies.Asked | None = None,
) -> Any:
    """Change columns and dependencies and, with ``status``, move the task, all or nothing. Return its row.

    Raises IllegalMoveError, LeaseHeldError, NotReadyError, NotFoundError,
    UnexpectedStatusError, InvalidInputError.
    """
    row = lock(tx, ref)
    if "payload" in fields and (wish is None or not wish.is_strict):
        wish = dependencies.changed_by_payload(row.payload, fields["payload"])
    named = sorted({*fields, *(("depends_on",) if wish is not None else ())})
    if wish is not None:
        row = dependencies.replace(tx, ref, row, wish)
    if "payload" in fields:
        fields = {**fields, **_of_payload(fields["payload"])}
    if fields:
        row = tx.one(update(tasks).where(tasks.c.id == row.id).values(**fields, updated_at=tx.now_ms).returning(*ALL))
    if status is not None:
        return moves.move(tx, ref, row, status, actor, default_lease_ms=default_lease_ms)
    if named:
        tx.emit("task.updated", row, actor, note="changed " + ", ".join(named))
    return row


def _conditions(tx: Tx, query: Query) -> Iterator[Any]:
    c = tasks.c
    if query.scope is not None:
        yield c.project_id == tenants.project_id(tx, query.scope, query.within)
    if query.within is not None:
        yield c.project_id.in_(query.within)
    if query.ids is not None:
        yield c.id.in_(query.ids)
    choices = ((c.status, query.status), (c.type, query.type), (c.channel, query.channel))
    yield from (column.in_([str(word) for word in words]) for column, words in choices if words)
    tests: tuple[tuple[Callable[[Any, Any], Any], Any, Any], ...] = (
        (operator.eq, c.project_id, query.project_id),
        (operator.eq, c.holder_id, query.assignee_id),
        (operator.gt, c.created_at, query.created_after),
        (operator.gt, c.updated_at, query.updated_after),
        (operator.ge, c.priority, query.min_priority),
        (operator.le, c.priority, query.max_priority),
    )
    yield from (compare(column, value) for compare, column, value in tests if value is not None)
    if query.waiting:
        yield c.status == Status.TODO.value
        yield waits
    if query.dependent:
        yield c.depends_on.is_not(None)
    if query.claimable_by is not None:
        yield c.held == false()
        yield or_(c.assigned_to.is_(None), c.assigned_to == query.claimable_by)
        yield ~waits
    if query.after is not None:
        yield c.id < query.after if query.descending else c.id > query.after
    if query.search:
        part = fold(query.search)
        yield or_(*(folded(text).contains(part, autoescape=True) for text in (c.title, c.description)))


def find(tx: Tx, query: Query) -> Sequence[Any]:
    """Return the rows that match, with only the columns that ``query.fields`` needs.

    Equal sort keys are in order of creation. Raises NotFoundError for an unknown project.
    """
    # Tasks are numbered in the order of their creation, and by their number they are found without sorting.
    key: Any = tasks.c.id if query.sort_by == "created_at" else tasks.c[query.sort_by]
    if query.sort_by == "title":
        key = bytewise(key)
    order = [key.desc() if query.descending else key.asc(), *([] if key is tasks.c.id else [tasks.c.id])]
    columns = ALL if query.fields is None else [tasks.c[name] for name in wire.columns_of(query.fields)]
    return tx.all(
        select(*columns)
        .where(*_conditions(tx, query))
        .order_by(*order)
        .limit(query.limit)
        .offset(literal(query.offset, BigInteger))
    )


def stats(tx: Tx, within: frozenset[int] | None = None) -> dict[str, Any]:
    """Count the tasks of all projects, or of those in ``within``, by status (ATS words) and channel.

    Say how fast they complete as well.
    """
    c = tasks.c
    seen = true() if within is None else c.project_id.in_(within)

    def count_by(column: Any) -> Sequence[Any]:
        return tx.all(select(column, func.count()).where(seen).group_by(column))

    by_status = {ATS_WORD[Status(row[0])]: row[1] for row in count_by(c.status)}
    by_channel = {row[0]: row[1] for row in count_by(c.channel)}
    done = c.status == Status.COMPLETED.value
    average = tx.one(select(func.avg(c.completed_at - c.created_at)).where(done, seen))[0]

    def since(column: Any, days: int, *also: Any) -> int:
        after = column > tx.now_ms - days * _DAY_MS
        return int(tx.one(select(func.count()).select_from(tasks).where(after, seen, *also))[0])

    return {
        "total": sum(by_status.values()),
        "by_status": by_status,
        "by_channel": by_channel,
        "avg_completion_seconds": None if average is None else round(float(average) / 1000, 3),
        "completed_count": by_status.get("completed", 0),
        "recent": {
            "created_24h": since(c.created_at, 1),
            "completed_24h": since(c.completed_at, 1, done),
            "created_7d": since(c.created_at, 7),
            "completed_7d": since(c.completed_at, 7, done),
        },
    }
