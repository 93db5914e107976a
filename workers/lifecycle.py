"""The life of a worker process: from preflight to drain, and what each pool child gets.

The main process owns the warden, the stop pipe and the presence; a pool child
owns its gateway and its connection to the warden. Celery's signals call the
functions at the bottom; nothing else does.
"""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn

from celery import signals
from celery.worker import state as celery_state

from dispatch import __version__, metrics
from dispatch import log as logging_setup
from dispatch.ats import protocol
from dispatch.ats.choose import has_fencing
from dispatch.ats.client import Client
from dispatch.ats.fenced import FencedGateway
from dispatch.ats.model import Actor
from dispatch.ats.plain import PlainGateway
from dispatch.broker import connect
from dispatch.core.presence import WorkerPresence
from dispatch.core.routing import DEFAULT
from dispatch.crypto.files import key_files
from dispatch.errors import DispatchError
from dispatch.preflight import preflight
from dispatch.runner import attempt_log, janitor, spool, tree
from dispatch.runner.context import RunnerContext
from dispatch.runner.execution import execute
from dispatch.runner.executors import controllers_of
from dispatch.runner.limits import Holder, set_up
from dispatch.runner.redaction import secrets_of
from dispatch.runner.warden_client import WardenClient
from dispatch.runner.warden_process import WardenProcess
from dispatch.settings import load
from dispatch.traces import recorder
from workers.late_reports import deliver_late
from workers.presence import PresenceThread
from workers.wake import RedisWakes

if TYPE_CHECKING:
    from dispatch.ats.gateway import AttemptRef, TaskGateway
    from dispatch.core.retry import EndReason
    from dispatch.settings import Settings

log = logging_setup.get_logger("worker")
_TIDY_EVERY_S: Final = 3_600.0


@dataclass(slots=True)
class Main:
    """What the main process holds. Pool children inherit it by fork and use ``settings``, ``fenced`` and the pipe."""

    settings: Settings
    fenced: bool
    warden: WardenProcess
    warden_address: bytes
    stop_r: int
    stop_w: int
    holder: Holder
    """What holds the limits of attempts."""
    limits: str = ""
    """Its name; "" when no attempt has any."""
    presence: PresenceThread | None = None
    draining: bool = False
    over: bool = False
    """All pool children are gone."""


class Slot:
    """A pool child's side: runs one attempt at a time."""

    def __init__(self, context: RunnerContext) -> None:
        self._context = context

    def run(self, ref: AttemptRef, queue: str) -> EndReason | None:
        """Run one attempt, which came from ``queue``, to its end and report it; None when it was dropped."""
        began = time.monotonic()
        end = execute(ref, self._context, queue)
        reason = end.reason if end is not None else None
        metrics.count("dispatch_attempts_total", outcome="dropped" if reason is None else reason.value)
        if reason is not None:
            metrics.observe("dispatch_attempt_seconds", time.monotonic() - began)
        return reason


_main: Main | None = None
_slot: Slot | None = None


def slot() -> Slot:
    """Return this pool child's slot."""
    if _slot is None:
        raise DispatchError("This process is no pool child: run tasks with the prefork pool (celery's default).")
    return _slot


def _gateway(settings: Settings, *, fenced: bool) -> TaskGateway:
    ats, execution = settings.ats, settings.execution
    client = Client(protocol.endpoint_of(ats), Actor("agent", ats.actor_id, ats.actor_name))
    if fenced:
        return FencedGateway(client, lease_s=execution.lease_s, actor_name=ats.actor_name)
    return PlainGateway(client, connect(settings.broker), lease_s=execution.lease_s, actor_name=ats.actor_name)


def _exit_with(exc: DispatchError) -> NoReturn:
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


@signals.worker_init.connect
def _start_main(sender: Any, **_: Any) -> None:
    """Before the pool exists: preflight, warden, stop pipe. Ends the process with its exit code if it cannot run."""
    global _main  # noqa: PLW0603 - Celery's signals have no other place to keep state
    try:
        settings = load()
        logging_setup.configure(settings.local.log_level)
        checks = preflight(settings, ("executor", "user", "data_dir", "service", "redis"))
        for check in checks:
            if check.state == "warning":
                log.warning("preflight_warning", check=check.name, sentence=check.sentence, advice=check.advice)
        fenced = any(has_fencing(check.extensions) for check in checks)
        key_files(settings).trust()
        controllers = controllers_of(settings.routing, settings.execution)
        # Before anything is started: what a process starts is in its control group.
        holder = set_up(controllers, settings.execution.attempt_limits, log)
        recorder.begin(recorder.WORKER, settings, log, ats_url=protocol.endpoint_of(settings.ats).base_url)
    except DispatchError as exc:
        _exit_with(exc)
    if settings.metrics.worker_port:
        metrics.begin(metrics.WORKER, directory=settings.local.data_dir / "metrics")
    # Orphans of a dead pool child come to this process, where the warden finds them.
    tree.set_child_subreaper()
    stop_r, stop_w = os.pipe2(os.O_CLOEXEC)
    where = protocol.endpoint_of(settings.ats)
    tasks_url = f"{where.base_url}{where.scope}/tasks" if fenced else None
    warden = WardenProcess(tasks_url=tasks_url, token=where.token, log=log, place=holder.place)
    warden.start()
    _main = Main(
        settings,
        fenced,
        warden,
        warden.address,
        stop_r,
        stop_w,
        holder,
        limits=str(holder.mechanism) if controllers else "",
    )
    log.info(
        "worker_starting",
        node=sender.hostname,
        executor=settings.routing.executors[DEFAULT].called(),
        fenced=fenced,
        limits=_main.limits,
    )


@signals.worker_before_create_process.connect
def _freeze(**_: Any) -> None:
    """Before each fork: what lives now lives for ever, so that children do not copy it when they collect."""
    gc.collect()
    gc.freeze()


@signals.worker_process_init.connect
def _start_slot(**_: Any) -> None:
    """In each new pool child."""
    global _slot  # noqa: PLW0603
    if _main is None:
        return
    settings = _main.settings
    os.close(_main.stop_w)
    _slot = Slot(
        RunnerContext(
            gateway=_gateway(settings, fenced=_main.fenced),
            execution=settings.execution,
            data_dir=settings.local.data_dir,
            ats_url=settings.ats.url,
            runner=socket.gethostname(),
            log=log,
            actor_name=settings.ats.actor_name,
            warden=WardenClient(_main.warden_address),
            wake=RedisWakes(settings.broker),
            stop_fd=_main.stop_r,
            keys=key_files(settings),
            routing=settings.routing,
            holder=_main.holder,
            # On a foreign service every line would be a message among people's, and twice the calls.
            stream_s=1.0 if _main.fenced else 10.0,
            secrets=secrets_of(settings),
        )
    )


@signals.worker_process_shutdown.connect
def _end_slot(**_: Any) -> None:
    """In each pool child, at its end."""
    recorder.end()


def _running() -> tuple[str, ...]:
    """Return what this worker runs now, each as ``<task id>.<fencing token>``."""
    # A copy made by C code in one step: the worker's own thread changes the set.
    return tuple(sorted(str(request.id) for request in tuple(celery_state.active_requests)))


@signals.worker_ready.connect
def _show(sender: Any, **_: Any) -> None:
    """When the worker consumes: show it, have reports delivered and directories cleared that were left behind."""
    if _main is None:
        return
    presence = WorkerPresence(
        node=sender.hostname,
        host=socket.gethostname(),
        pid=os.getpid(),
        slots=sender.controller.concurrency,
        queues=tuple(sender.app.amqp.queues.consume_from),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        limits=_main.limits,
    )
    _main.presence = PresenceThread(
        _main.settings.broker,
        presence,
        log,
        running=_running,
        consume=lambda wanted: _consume(sender, presence.queues, wanted=wanted),
    )
    _main.presence.start()
    _serve_metrics(_main, presence.slots)
    for name, work in (("tidy", _tidy), ("late-reports", _deliver_late)):
        threading.Thread(target=work, args=(_main,), name=name, daemon=True).start()
    log.info("worker_ready", node=presence.node, slots=presence.slots, queues=list(presence.queues))
    idle = _main.settings.routing.without_route(presence.queues)
    if idle:
        log.warning("worker_queues_unknown", node=presence.node, queues=list(idle))


def _serve_metrics(main: Main, slots: int) -> None:
    """After the fork: pool children must not inherit the socket."""
    wanted = main.settings.metrics
    if not wanted.worker_port:
        return
    metrics.watch("dispatch_worker_slots", lambda: slots)
    metrics.watch("dispatch_worker_draining", lambda: float(main.presence is not None and main.presence.is_draining))
    metrics.watch("dispatch_spool_reports", spool.Spool(main.settings.local.data_dir).waiting)
    metrics.serve(wanted.bind, wanted.worker_port, log)


def _consume(consumer: Any, queues: tuple[str, ...], *, wanted: bool) -> None:
    """Have Celery's consumer take from the queues, or from none of them; what it has taken goes on. From any thread."""
    change = consumer.add_task_queue if wanted else consumer.cancel_task_queue
    for queue in queues:
        consumer.call_soon(change, queue)


def _deliver_late(main: Main) -> None:
    store, lease_s = spool.Spool(main.settings.local.data_dir), main.settings.execution.lease_s
    store.clear_partial()
    gateway = _gateway(main.settings, fenced=main.fenced)
    deliver_late(gateway, store, lease_s=lease_s, is_over=lambda: main.over, log=log)


def _tidy(main: Main) -> None:
    logs, keep_s = main.settings.local.data_dir / attempt_log.DIRECTORY, main.settings.execution.attempt_log_keep_s
    while not main.draining:
        # Pool children that were killed leave theirs behind, also while their worker runs on.
        janitor.clear_directories(main.settings.local.data_dir / "work")
        janitor.clear_logs(logs, keep_s)
        time.sleep(min(keep_s, _TIDY_EVERY_S))


@signals.worker_shutting_down.connect
def _drain(how: str = "", **_: Any) -> None:
    """In the signal handler: tell every pool child by closing the pipe. Celery calls this again for each signal.

    Nothing here takes a lock; the presence thread logs and tells Redis.
    """
    if _main is None or _main.draining:
        return
    _main.draining = True
    if how.lower() == "cold":
        os.write(_main.stop_w, b"C")
    os.close(_main.stop_w)
    if _main.presence is not None:
        _main.presence.drain()


@signals.worker_shutdown.connect
def _end(**_: Any) -> None:
    """When all pool children are gone."""
    if _main is None:
        return
    _main.over = True
    if _main.presence is not None:
        _main.presence.leave()
    _main.warden.stop()
    metrics.end()
    log.info("worker_stopped")
