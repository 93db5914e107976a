"""``dispatch status``: the whole fleet on one screen, whatever part of it is down."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click
import redis

from dispatch.ats import answers, protocol
from dispatch.ats.model import parse_time
from dispatch.cli.options import State, common_options
from dispatch.cli.output import ago
from dispatch.core.lifecycle import ATS_WORD
from dispatch.errors import DispatchError
from dispatch.preflight import open_redis, workers_seen
from dispatch.settings import masked_url

if TYPE_CHECKING:
    from dispatch.settings import Settings

EXIT_UNREACHABLE: Final = 69
_PRIORITY_SEPARATOR: Final = "\x06\x16"
_PRIORITIES: Final = range(10)


@click.command()
@common_options
@click.pass_obj
def status(state: State) -> int:
    """Show service, queue and workers; exits 69 if the service or Redis cannot be reached.

    \b
    Examples:
      dispatch status
      dispatch status --json | jq .tasks.pending
    """  # noqa: D301 - click's mark
    settings = state.settings
    service, tasks = service_state(state)
    broker, workers = broker_state(settings)
    if state.output.is_json:
        state.output.json({"service": service, "tasks": tasks, "redis": broker, "workers": workers})
    else:
        _print(state, service, tasks, broker, workers)
    return 0 if service["reachable"] and broker["reachable"] else EXIT_UNREACHABLE


def service_state(state: State) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return what the task service says about itself, and its counts; None when it does not answer."""
    found: dict[str, Any] = {"url": state.endpoint.base_url, "reachable": False, "fencing": None, "error": None}
    try:
        health = state.client.send(protocol.health())
        stats = state.client.send(protocol.stats())
        oldest = answers.tasks_of(
            state.client.send(protocol.list_tasks(status="pending", sort_by="created_at", sort_dir="asc", limit=1))
        )
    except DispatchError as exc:
        return {**found, "error": str(exc)}, None
    extensions = answers.extensions_of(health)
    version = health.get("version") if isinstance(health, dict) else None
    found |= {"reachable": True, "version": version, "fencing": extensions >= answers.FENCING_EXTENSIONS}
    counts = stats.get("stats", stats) if isinstance(stats, dict) else {}
    by_status = counts.get("by_status") if isinstance(counts.get("by_status"), dict) else {}
    created = (oldest[0].raw or {}).get("created_at") if oldest else None
    return found, {
        **{word: by_status.get(word, 0) for word in ATS_WORD.values()},
        "total": counts.get("total"),
        "oldest_pending": {"id": oldest[0].id, "created_at": created} if oldest else None,
    }


def broker_state(settings: Settings) -> tuple[dict[str, Any], list[dict[str, Any]] | None]:
    """Return what Redis holds, and the workers that show themselves there; None when it does not answer."""
    found: dict[str, Any] = {"url": masked_url(settings.broker.url), "reachable": False, "queued": None, "error": None}
    queue = settings.broker.queue
    names = [queue, *(f"{queue}{_PRIORITY_SEPARATOR}{step}" for step in _PRIORITIES)]
    try:
        with contextlib.closing(open_redis(settings.broker)) as client:
            pipeline = client.pipeline(transaction=False)
            for name in names:
                pipeline.llen(name)
            pipeline.hlen("unacked")
            *lengths, unacked = pipeline.execute()
            workers = workers_seen(client)
    except (redis.RedisError, DispatchError) as exc:
        return {**found, "error": " ".join(str(exc).split())[:300]}, None
    return {**found, "reachable": True, "queue": queue, "queued": sum(lengths), "being_delivered": unacked}, workers


def _print(
    state: State,
    service: dict[str, Any],
    tasks: dict[str, Any] | None,
    broker: dict[str, Any],
    workers: list[dict[str, Any]] | None,
) -> None:
    output = state.output
    kind = "with fencing tokens" if service["fencing"] else "without fencing tokens"
    up = f"ok, {service['url']}, {kind}"
    pairs = [("service", up if service["reachable"] else f"error: {service['error']}")]
    if tasks is not None:
        counted = [f"{tasks[word]} {word}" for word in ATS_WORD.values() if tasks[word]]
        pairs.append(("tasks", ", ".join(counted) or "none"))
        if tasks["oldest_pending"]:
            created = parse_time(tasks["oldest_pending"]["created_at"])
            pairs.append(("oldest pending", f"#{tasks['oldest_pending']['id']}, created {ago(created)}"))
    queued = f"ok, {broker['url']}, {broker['queued']} queued"
    pairs.append(("redis", queued if broker["reachable"] else f"error: {broker['url']}: {broker['error']}"))
    if workers is not None:
        pairs.append(("workers", _totals(workers) if workers else "none are running; start one with 'dispatch worker'"))
    output.fields(pairs)
    if workers:
        output.heading("Workers")
        output.table(
            ["NAME", "HOST", "SLOTS", "BUSY", "STATE", "STARTED", "QUEUES"],
            [_worker_row(worker, people=output.is_terminal) for worker in workers],
            styled=4,
        )


def _totals(workers: list[dict[str, Any]]) -> str:
    slots = sum(_count(worker.get("slots")) for worker in workers)
    busy = sum(_count(_busy(worker)) for worker in workers)
    return f"{len(workers)} with {slots} slots, {busy} busy"


def _busy(worker: dict[str, Any]) -> Any:
    return next((worker[key] for key in ("busy", "running", "active") if key in worker), None)


def _count(value: Any) -> int:
    if isinstance(value, list | dict):
        return len(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _worker_row(worker: dict[str, Any], *, people: bool) -> tuple[Any, ...]:
    queues = worker.get("queues", worker.get("queue", ""))
    started = worker.get("started_at")
    if isinstance(started, int | float) and not isinstance(started, bool):
        with contextlib.suppress(OverflowError, ValueError, OSError):
            started = datetime.fromtimestamp(started, UTC).isoformat()
    return (
        worker["name"],
        worker.get("host", worker.get("hostname", "")),
        worker.get("slots", ""),
        _count(_busy(worker)),
        "draining" if worker.get("draining") else "ok",
        ago(parse_time(started)) if people else started or "",
        ",".join(map(str, queues)) if isinstance(queues, list) else queues,
    )
