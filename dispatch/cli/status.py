"""``dispatch status``: the whole fleet on one screen, whatever part of it is down."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from dispatch.ats.answers import FENCING_EXTENSIONS
from dispatch.ats.model import parse_time
from dispatch.cli import running as running_tasks
from dispatch.cli.fleet_view import is_orphaned, leases_of, look, runs_at
from dispatch.cli.options import State, common_options
from dispatch.cli.output import ago, duration
from dispatch.cli.stuck import look_for_stuck, shown
from dispatch.core.lifecycle import ATS_WORD
from dispatch.core.steering import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dispatch.ats.model import Task
    from dispatch.cli.fleet_view import Seen
    from dispatch.cli.stuck import HeldUp
    from dispatch.core.presence import WorkerPresence

EXIT_UNREACHABLE: Final = 69
NEAR_EXPIRY: Final = 0.25
"""A lease with less than this part of DISPATCH_LEASE_MS left is near its end: its holder did not renew it in time."""

WAITING_SHOWN: Final = 5
"""How many reasons of tasks that only wait a person is shown: nothing is to be done about them."""


@click.command()
@common_options
@click.pass_obj
def status(state: State) -> int:
    """Show service, queues, workers, and what is stuck and why.

    Works whatever is down, and exits 69 if service or Redis cannot be reached.

    \b
    Examples:
      dispatch status
      dispatch status --json | jq .stuck
    """  # noqa: D301 - click's mark
    seen = look(state)
    held = look_for_stuck(state, seen)
    held_tasks = [task for task in seen.running if not is_orphaned(task)]
    running = [] if seen.fleet.service_error else running_tasks.progress_of(state, held_tasks)
    if state.output.is_json:
        document = as_json(state, seen, held)
        if document["tasks"] is not None:
            document["tasks"]["running"] = running
        state.output.json(document)
    else:
        _print(state, seen, held, running)
    return EXIT_UNREACHABLE if seen.fleet.service_error or seen.fleet.redis_error else 0


def as_json(state: State, seen: Seen, held: HeldUp) -> dict[str, Any]:
    """Return what was seen as one document."""
    fleet = seen.fleet
    is_up, has_redis = not fleet.service_error, not fleet.redis_error
    queue = state.settings.broker.queue
    return {
        "service": {
            "url": fleet.service_url,
            "reachable": is_up,
            "fencing": seen.extensions >= FENCING_EXTENSIONS if is_up else None,
            "version": seen.version,
            "error": fleet.service_error or None,
        },
        "tasks": _tasks(seen),
        "redis": {
            "url": fleet.redis_url,
            "reachable": has_redis,
            "error": fleet.redis_error or None,
            "queue": queue,
            "queued": fleet.queues.get(queue),
            "being_delivered": seen.unacked,
        },
        "queues": dict(fleet.queues),
        "workers": [asdict(worker) for worker in fleet.workers] if has_redis else None,
        "hosts": _hosts(seen),
        "ingresses": [asdict(one) for one in fleet.ingresses] if has_redis else None,
        "leases": leases_of(seen.running, seen.now_at, _near_s(state)) if is_up else None,
        "ages": _ages(seen) if is_up else None,
        "classes": {name: asdict(use) for name, use in fleet.classes.items()},
        "steering": [
            {key: getattr(order, key) for key in ("kind", "name", "note", "by", "at", "until")}
            for order in fleet.steering.orders
        ],
        "stuck": shown(held.stuck),
        "waiting": shown(held.waiting),
    }


def _tasks(seen: Seen) -> dict[str, Any] | None:
    if seen.counts is None or seen.fleet.service_error:
        return None
    created = (seen.oldest.raw or {}).get("created_at") if seen.oldest else None
    oldest = {"id": seen.oldest.id, "created_at": created} if seen.oldest else None
    return {**seen.counts, "oldest_pending": oldest}


def _near_s(state: State) -> float:
    return state.settings.execution.lease_s * NEAR_EXPIRY


def _ages(seen: Seen) -> dict[str, float | None]:
    """Return the ages of the oldest pending task and of the oldest attempt that runs, seconds."""
    created = seen.oldest.created_at if seen.oldest else None
    first = oldest_running(seen)
    started = started_at(first) if first else None
    return {
        "oldest_pending_s": None if created is None else round((seen.now_at - created).total_seconds(), 3),
        "oldest_running_s": None if started is None else round((seen.now_at - started).total_seconds(), 3),
    }


def started_at(task: Task) -> Any:
    """Return when the running attempt began, as far as the service says."""
    return parse_time((task.raw or {}).get("started_at"))


def oldest_running(seen: Seen) -> Task | None:
    """Return the task whose attempt runs longest, or None."""
    begun = [task for task in seen.running if started_at(task) is not None]
    return min(begun, key=started_at, default=None)


def _hosts(seen: Seen) -> list[dict[str, Any]]:
    """Return the hosts with workers: slots, how many are busy as the service knows, whether they drain."""
    by_host: dict[str, list[WorkerPresence]] = {}
    for worker in seen.fleet.workers:
        by_host.setdefault(worker.host, []).append(worker)
    return [
        {
            "host": host,
            "workers": len(there),
            "slots": sum(worker.slots for worker in there),
            "busy": seen.fleet.busy.get(host, 0),
            "draining": all(worker.draining for worker in there),
        }
        for host, there in sorted(by_host.items())
    ]


def lines(state: State, seen: Seen) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of all that is one line each."""
    fleet = seen.fleet
    kind = "with fencing tokens" if seen.extensions >= FENCING_EXTENSIONS else "without fencing tokens"
    up = f"ok, {fleet.service_url}, {kind}"
    yield "service", f"error: {fleet.service_url}: {fleet.service_error}" if fleet.service_error else up
    if seen.counts is not None and not fleet.service_error:
        yield from _task_lines(state, seen, seen.counts)
    if fleet.redis_error:
        yield "redis", f"error: {fleet.redis_url}: {fleet.redis_error}"
        return
    yield "redis", f"ok, {fleet.redis_url}"
    yield "queues", ", ".join(f"{name} {length} queued" for name, length in fleet.queues.items())
    ingresses = ", ".join(f"{one.actor} on {one.host}{_trouble(one.trouble)}" for one in fleet.ingresses)
    yield "ingresses", ingresses or "none is running; start one with 'dispatch ingress'"
    yield "workers", _totals(seen) if fleet.workers else "none are running; start one with 'dispatch worker'"
    for order in fleet.steering.orders:
        yield "drained" if order.kind == HOST else "paused", f"{order.kind} {order.name}{order.words}"


def _task_lines(state: State, seen: Seen, counts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    counted = [f"{counts[word]} {word}" for word in ATS_WORD.values() if counts[word]]
    yield "tasks", ", ".join(counted) or "none"
    if seen.oldest is not None:
        yield "oldest pending", f"#{seen.oldest.id}, created {ago(seen.oldest.created_at, seen.now_at)}"
    if (first := oldest_running(seen)) is not None:
        where = f" on {runs_at(first)}" if first.runner else ""
        yield "oldest running", f"#{first.id}, for {duration((seen.now_at - started_at(first)).total_seconds())}{where}"
    leases = leases_of(seen.running, seen.now_at, _near_s(state))
    shown_leases = [f"{count} {name.replace('_', ' ')}" for name, count in leases.items() if count]
    yield "leases", ", ".join(shown_leases)


def _trouble(word: str) -> str:
    return f" ({word.replace('_', ' ')})" if word else ""


def _totals(seen: Seen) -> str:
    slots = sum(worker.slots for worker in seen.fleet.workers if not worker.draining)
    claimed = f"; tasks claimed: {seen.counts['in_progress']}" if seen.counts is not None else ""
    return f"{len(seen.fleet.workers)} with {slots} {'slot' if slots == 1 else 'slots'}{claimed}"


def _print(state: State, seen: Seen, held: HeldUp, running: list[dict[str, Any]]) -> None:
    output = state.output
    output.fields(lines(state, seen))
    if not output.is_terminal:
        parts = (("stuck", held.stuck), ("waiting", held.waiting))
        rows = [(word, one.code, f"{one.text}{_names(one.tasks)}") for word, part in parts for one in part]
        output.table(("", "code", "why"), rows)
    if output.is_terminal and held.stuck:
        output.heading("Stuck")
        for one in held.stuck:
            output.prose(f"{one.text}{_names(one.tasks)}")
            output.advice(one.next)
    if output.is_terminal and held.waiting:
        output.heading("Waiting for others")
        for one in held.waiting[:WAITING_SHOWN]:
            output.prose(f"{one.text}{_names(one.tasks)}")
        if len(held.waiting) > WAITING_SHOWN:
            output.prose(f"... and {sum(len(one.tasks) for one in held.waiting[WAITING_SHOWN:])} more tasks.")
    if running:
        output.heading("Running")
        output.table(running_tasks.COLUMNS, [running_tasks.row(one) for one in running])
    if seen.fleet.workers:
        output.heading("Workers")
        output.table(WORKER_COLUMNS, worker_rows(seen, people=output.is_terminal), styled=4)


def _names(tasks: list[str]) -> str:
    named = ", ".join(f"#{ident}" for ident in tasks[:5])
    more = f" and {len(tasks) - 5} more" if len(tasks) > 5 else ""
    return f" ({named}{more})" if tasks else ""


WORKER_COLUMNS: Final = ("WORKER", "HOST", "PID", "SLOTS", "STATE", "STARTED", "QUEUES", "BUSY")


def worker_rows(seen: Seen, *, people: bool) -> list[tuple[Any, ...]]:
    """Return a row a worker. What is busy is known by host, and shown where a host has one worker."""
    on_host = Counter(worker.host for worker in seen.fleet.workers)
    return [
        (
            worker.node,
            worker.host,
            worker.pid,
            worker.slots,
            "draining" if worker.draining else "ok",
            ago(parse_time(worker.started_at)) if people else worker.started_at,
            ",".join(worker.queues),
            seen.fleet.busy.get(worker.host, 0) if on_host[worker.host] == 1 else "",
        )
        for worker in sorted(seen.fleet.workers, key=lambda worker: (worker.host, worker.node))
    ]
