"""Looking at service, Redis and presence at once, for status, why and top; whatever is down is part of what is seen."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import redis

from dispatch.ats import answers, orders, protocol
from dispatch.broker import CLASS_KEY, KEY_PREFIX, shown_url
from dispatch.core.dependencies import UUID
from dispatch.core.lifecycle import ATS_WORD, Status
from dispatch.core.routing import TaskTraits, choose, traits_of
from dispatch.core.standing import ClassUse, Fleet, Way
from dispatch.core.steering import EXTENSION, steering_of
from dispatch.errors import AuthenticationError, DispatchError, GatewayError
from dispatch.preflight.broker import ingresses_seen, open_redis, trouble_of, try_write, workers_seen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dispatch.ats.model import Task
    from dispatch.cli.options import State
    from dispatch.settings import Settings

RUNNING_MAX: Final = 1_000
"""How many tasks in progress are looked at."""
_PENDING: Final = ATS_WORD[Status.TODO]
_IN_PROGRESS: Final = ATS_WORD[Status.IN_PROGRESS]
_FIELDS: Final = (
    "id,uuid,title,channel,type,status,runner,attempts,lease_expires,lease_ttl_ms,started_at,created_at,updated_at,"
    "assignee_id,assignee_name,sealed,fencing_token"
)
_LOOK_S: Final = 5.0
"""How long one call to the service may take: who looks wants an answer, even that there is none."""


@dataclass(slots=True)
class Seen:
    """What was seen. ``now`` is a reading of the monotonic clock, ``now_at`` the service's time."""

    fleet: Fleet
    now: float
    now_at: datetime
    extensions: frozenset[str] = frozenset()
    version: str | None = None
    counts: dict[str, Any] | None = None
    """The service's counts by ATS word, and ``total``; None when it does not answer."""
    oldest: Task | None = None
    """The pending task that was created first."""
    running: list[Task] = field(default_factory=list)
    """Tasks in progress, at most RUNNING_MAX."""
    unacked: int = 0
    """Messages between two hands."""


def look(state: State, *, at_tasks: bool = True) -> Seen:
    """Look at everything; raises ConfigurationError only. ``at_tasks`` False leaves the tasks out."""
    seen = Seen(Fleet(service_url=state.endpoint.base_url), time.monotonic(), datetime.now(UTC))
    rows = _look_at_service(state, seen, at_tasks=at_tasks)
    _look_at_redis(state, seen, rows)
    seen.now = time.monotonic()
    busy = Counter(host_of(task) for task in seen.running if task.runner)
    seen.fleet = replace(seen.fleet, busy=busy)
    return seen


def _look_at_service(state: State, seen: Seen, *, at_tasks: bool) -> list[Any] | None:
    """Return the orders; None where the service keeps none."""
    client = state.client
    try:
        health = client.send(protocol.health(), deadline_s=_LOOK_S)
        seen.extensions = answers.extensions_of(health)
        seen.version = health.get("version") if isinstance(health, dict) else None
        rows = None
        if EXTENSION in seen.extensions:
            found = client.send(orders.ask(), deadline_s=_LOOK_S)
            rows = found.get("steering") if isinstance(found, dict) else None
        if at_tasks:
            seen.counts = _counts(client.send(protocol.stats(), deadline_s=_LOOK_S))
            first = protocol.list_tasks(status=_PENDING, sort_by="created_at", sort_dir="asc", limit=1)
            seen.oldest = next(iter(answers.tasks_of(client.send(first, deadline_s=_LOOK_S))), None)
        seen.running = running_tasks(state, seen.extensions)
    except AuthenticationError as exc:
        seen.fleet = replace(seen.fleet, service_error=_bare(exc), is_key_refused=True)
        return None
    except GatewayError as exc:
        seen.fleet = replace(seen.fleet, service_error=_cause(exc))
        return None
    seen.now_at = datetime.fromtimestamp(time.time() + client.clock_offset_s(), UTC)
    return rows


def running_tasks(state: State, extensions: frozenset[str]) -> list[Task]:
    """Return tasks in progress, those that changed first, first. Raises the GatewayError family."""
    fields = {"fields": _FIELDS} if "fields" in extensions else {}
    request = protocol.list_tasks(
        status=_IN_PROGRESS, sort_by="updated_at", sort_dir="asc", limit=RUNNING_MAX, channel=state.channels, **fields
    )
    return answers.tasks_of(state.client.send(request, deadline_s=_LOOK_S))


def _counts(stats: Any) -> dict[str, Any]:
    counts = stats.get("stats", stats) if isinstance(stats, dict) else {}
    counts = counts if isinstance(counts, dict) else {}
    by_status = counts.get("by_status")
    by_status = by_status if isinstance(by_status, dict) else {}
    return {**{word: by_status.get(word, 0) for word in ATS_WORD.values()}, "total": counts.get("total")}


def _look_at_redis(state: State, seen: Seen, rows: list[Any] | None) -> None:
    settings = state.seen_settings
    seen.fleet = replace(seen.fleet, redis_url=shown_url(settings.broker))
    try:
        with contextlib.closing(open_redis(settings.broker)) as client:
            try_write(client)
            _read_redis(client, settings, seen)
            if rows is None and seen.extensions.isdisjoint({EXTENSION}) and not seen.fleet.service_error:
                values: Any = client.hvals(orders.orders_key(state.endpoint.base_url))
                rows = orders.rows_of(values, time.time())
    except redis.RedisError as exc:
        seen.fleet = replace(seen.fleet, redis_error=trouble_of(exc))
    except DispatchError as exc:
        seen.fleet = replace(seen.fleet, redis_error=f"cannot be used: {_bare(exc)}")
    seen.fleet = replace(seen.fleet, steering=steering_of(rows or [], time.monotonic()))


def _read_redis(client: redis.Redis, settings: Settings, seen: Seen) -> None:
    workers = workers_seen(client)
    ingresses = ingresses_seen(client)
    queues = sorted({*settings.routing.queues(), *(queue for worker in workers for queue in worker.queues)})
    pipeline = client.pipeline(transaction=False)
    for queue in queues:
        pipeline.llen(KEY_PREFIX + queue)
    for name in settings.routing.classes:
        pipeline.hgetall(CLASS_KEY + name)
    pipeline.hlen(KEY_PREFIX + "unacked")
    *found, seen.unacked = pipeline.execute(raise_on_error=False)
    lengths, held = found[: len(queues)], found[len(queues) :]
    seen.fleet = replace(
        seen.fleet,
        workers=tuple(workers),
        ingresses=tuple(ingresses),
        queues={queue: length for queue, length in zip(queues, lengths, strict=True) if isinstance(length, int)},
        classes={
            name: ClassUse(len(holders), limit, tuple(sorted(holders, key=lambda one: (len(one), one))))
            for (name, limit), holders in zip(settings.routing.classes.items(), held, strict=True)
            if isinstance(holders, dict)
        },
    )


def host_of(task: Task) -> str:
    """Return the host that runs a task, "" when none does: a runner's name may go on behind a slash."""
    return (task.runner or "").partition("/")[0]


def is_orphaned(task: Task) -> bool:
    """Say whether nobody holds a task in progress: its lock was released, or it was created so."""
    return task.assignee_id is None and task.lease_expires_at is None


def runs_at(task: Task) -> str:
    """Return the host whose worker runs a task, or the name of the agent that does; "" when nobody does."""
    host = host_of(task)
    name = (task.raw or {}).get("assignee_name")
    # The runner of an agent is its UUID, and stays when the agent lets the lock go.
    return (name if isinstance(name, str) else "") if UUID.fullmatch(host) else host


def way_of(settings: Settings, task: Task) -> Way:
    """Return the way that a task takes, by our settings; of a sealed one only its channel and type are seen."""
    traits: Mapping[str, Any] = {} if task.sealed else traits_of(task.payload)
    choice = choose(settings.routing, TaskTraits(task.channel, task.type, "" if task.sealed else None, traits))
    return Way(task.channel, choice.queue, choice.classes)


def leases_of(running: Sequence[Task], now_at: datetime, near_s: float) -> dict[str, int]:
    """Count leases: live, of these near their end (less than ``near_s`` left), overdue, and without an end."""
    found = {"live": 0, "near_expiry": 0, "overdue": 0, "endless": 0}
    for task in running:
        if task.lease_expires_at is None:
            found["endless"] += not is_orphaned(task)
            continue
        left_s = (task.lease_expires_at - now_at).total_seconds()
        found["live" if left_s > 0 else "overdue"] += 1
        found["near_expiry"] += 0 < left_s < near_s
    return found


def _bare(exc: Exception) -> str:
    return str(exc).rstrip(".")


def _cause(exc: GatewayError) -> str:
    """Return what happened, without the address that stands beside it anyway."""
    return _bare(exc).rpartition(" gave no answer: ")[2].partition("; nothing was changed")[0]
