"""``dispatch status``: the whole fleet on one screen, whatever part of it is down."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click
import redis

from dispatch.ats import answers, protocol
from dispatch.ats.model import parse_time
from dispatch.broker import KEY_PREFIX, shown_url
from dispatch.cli.options import State, common_options
from dispatch.cli.output import ago
from dispatch.core.lifecycle import ATS_WORD
from dispatch.errors import DispatchError
from dispatch.preflight import cause_of, open_redis, workers_seen

if TYPE_CHECKING:
    from dispatch.core.presence import WorkerPresence
    from dispatch.settings import Settings

EXIT_UNREACHABLE: Final = 69


@click.command()
@common_options
@click.pass_obj
def status(state: State) -> int:
    """Show service, queue and workers at a glance.

    Works whatever is down, and exits 69 if service or Redis cannot be reached.

    \b
    Examples:
      dispatch status
      dispatch status --json | jq .tasks.pending
    """  # noqa: D301 - click's mark
    settings = state.seen_settings
    service, tasks = service_state(state)
    broker, workers = broker_state(settings)
    if state.output.is_json:
        shown = None if workers is None else [asdict(worker) for worker in workers]
        state.output.json({"service": service, "tasks": tasks, "redis": broker, "workers": shown})
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
    counts = counts if isinstance(counts, dict) else {}
    by_status = counts.get("by_status")
    by_status = by_status if isinstance(by_status, dict) else {}
    created = (oldest[0].raw or {}).get("created_at") if oldest else None
    return found, {
        **{word: by_status.get(word, 0) for word in ATS_WORD.values()},
        "total": counts.get("total"),
        "oldest_pending": {"id": oldest[0].id, "created_at": created} if oldest else None,
    }


def broker_state(settings: Settings) -> tuple[dict[str, Any], list[WorkerPresence] | None]:
    """Return what Redis holds, and the workers that show themselves there; None when it does not answer."""
    found: dict[str, Any] = {"url": shown_url(settings.broker), "reachable": False, "error": None}
    queue = settings.broker.queue
    try:
        with contextlib.closing(open_redis(settings.broker)) as client:
            pipeline = client.pipeline(transaction=False)
            pipeline.llen(KEY_PREFIX + queue)
            pipeline.hlen(KEY_PREFIX + "unacked")
            queued, unacked = pipeline.execute()
            workers = workers_seen(client)
    except redis.RedisError as exc:
        return {**found, "error": cause_of(exc)}, None
    except DispatchError as exc:
        return {**found, "error": str(exc)}, None
    return {**found, "reachable": True, "queue": queue, "queued": queued, "being_delivered": unacked}, workers


def _print(
    state: State,
    service: dict[str, Any],
    tasks: dict[str, Any] | None,
    broker: dict[str, Any],
    workers: list[WorkerPresence] | None,
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
    if broker["reachable"]:
        pairs.append(("redis", f"ok, {broker['url']}, {broker['queued']} queued"))
    else:
        pairs.append(("redis", f"error: {broker['url']}: {broker['error']}"))
    if workers is not None:
        pairs.append(
            ("workers", _totals(workers, tasks) if workers else "none are running; start one with 'dispatch worker'")
        )
    output.fields(pairs)
    if workers:
        output.heading("Workers")
        output.table(
            ["WORKER", "HOST", "PID", "SLOTS", "STATE", "STARTED", "QUEUES"],
            [_worker_row(worker, people=output.is_terminal) for worker in workers],
            styled=4,
        )


def _totals(workers: list[WorkerPresence], tasks: dict[str, Any] | None) -> str:
    slots = sum(worker.slots for worker in workers if not worker.draining)
    running = f", {tasks['in_progress']} tasks claimed" if tasks is not None else ""
    return f"{len(workers)} with {slots} slots{running}"


def _worker_row(worker: WorkerPresence, *, people: bool) -> tuple[Any, ...]:
    return (
        worker.node,
        worker.host,
        worker.pid,
        worker.slots,
        "draining" if worker.draining else "ok",
        ago(parse_time(worker.started_at)) if people else worker.started_at,
        ",".join(worker.queues),
    )
