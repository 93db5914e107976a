"""Prometheus metrics: what there is, counting it, and serving it on loopback.

Every metric is declared in METRICS, once. ``count`` and ``observe`` do nothing
while metrics are off, which they are unless a port is set, so that the library
is not even imported. Gauges are read when somebody scrapes.

The pool children of a worker count into files in a directory that the main
process adds up (the library's multi-process mode); a child's counts stay when
it dies. Attempts' own processes never see any of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from dispatch.core.retention import KINDS
from dispatch.core.retry import EndReason

SERVICE: Final = "service"
INGRESS: Final = "ingress"
WORKER: Final = "worker"

_SHORT_S: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)
_LAG_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)

Values = float | Mapping[tuple[str, ...], float]
"""What a gauge shows: one value, or one for each combination of its labels."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. ``name`` is what is scraped; a histogram has ``_bucket``, ``_sum`` and ``_count`` behind it."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    process: str
    meaning: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    values: tuple[str, ...] = ()
    """What the one label of a counter may say: all are 0 from the start, so that the first of a kind is an increase."""


METRICS: Final = (
    Metric("dispatch_tasks", "gauge", SERVICE, "tasks, by state (the nine of the lifecycle)", ("status",)),
    Metric(
        "dispatch_queue_age_seconds",
        "gauge",
        SERVICE,
        "age of the oldest task that is ready, by channel; of at most 100 channels",
        ("channel",),
    ),
    Metric("dispatch_waiting_tasks", "gauge", SERVICE, "pending tasks that wait for others"),
    Metric("dispatch_leases_overdue", "gauge", SERVICE, "leases that have run out and are about to be taken back"),
    Metric("dispatch_oldest_attempt_seconds", "gauge", SERVICE, "age of the attempt that runs longest; 0: none runs"),
    Metric("dispatch_database_bytes", "gauge", SERVICE, "size of the database, pages that are free again included"),
    Metric(
        "dispatch_removed_total",
        "counter",
        SERVICE,
        "rows that were kept long enough: events, log_messages, tasks and so on",
        ("kind",),
        values=KINDS,
    ),
    Metric(
        "dispatch_pickup_seconds",
        "histogram",
        SERVICE,
        "from a task's creation to the start of its first attempt",
        buckets=_SHORT_S,
    ),
    Metric(
        "dispatch_claims_total",
        "counter",
        INGRESS,
        "tries to claim",
        ("result",),
        values=("granted", "refused", "error"),
    ),
    Metric("dispatch_in_flight_tasks", "gauge", INGRESS, "claims of this ingress that have not ended"),
    Metric("dispatch_backlog_tasks", "gauge", INGRESS, "claimable tasks that this ingress knows of"),
    Metric("dispatch_fleet_slots", "gauge", INGRESS, "slots of the workers that take tasks"),
    Metric("dispatch_redis_up", "gauge", INGRESS, "1 while Redis answers this ingress"),
    Metric(
        "dispatch_steering_orders",
        "gauge",
        INGRESS,
        "orders in force, by what they name: channel and queue are paused, host is drained",
        ("kind",),
    ),
    Metric("dispatch_graph_waiting_tasks", "gauge", INGRESS, "tasks that this ingress keeps back for what they need"),
    Metric(
        "dispatch_feed_lag_seconds",
        "histogram",
        INGRESS,
        "from a change of a task to its event's arrival; needs clocks that agree",
        buckets=_LAG_S,
    ),
    Metric(
        "dispatch_deliveries_total",
        "counter",
        INGRESS,
        "tries to deliver a callback; empty: the task named no address any more",
        ("outcome",),
        values=("delivered", "retry", "failed", "empty"),
    ),
    Metric(
        "dispatch_attempts_total",
        "counter",
        WORKER,
        "attempts that ended, by how; dropped: never begun, because the message was stale",
        ("outcome",),
        values=(*(reason.value for reason in EndReason), "dropped"),
    ),
    Metric("dispatch_attempt_seconds", "histogram", WORKER, "how long attempts took", buckets=_SHORT_S),
    Metric(
        "dispatch_renewals_total",
        "counter",
        WORKER,
        "renewals of leases",
        ("result",),
        values=("ok", "failed", "lost"),
    ),
    Metric(
        "dispatch_renewal_seconds", "histogram", WORKER, "how long the service took to renew a lease", buckets=_LAG_S
    ),
    Metric(
        "dispatch_spool_reports",
        "gauge",
        WORKER,
        "reports in the data directory, of all workers that share it, that the service has not taken yet",
    ),
    Metric("dispatch_worker_slots", "gauge", WORKER, "attempts that this worker can run at once"),
    Metric("dispatch_worker_draining", "gauge", WORKER, "1 while it takes nothing new"),
)

_FILE_BYTES: Final = 1 << 16
"""The size that the library gives a file; ours never need more, for their labels are known."""
_live: Final[dict[str, Any]] = {}
_readers: Final[dict[str, Callable[[], Values]]] = {}
_registry: list[Any] = []


def count(name: str, amount: float = 1.0, **labels: str) -> None:
    """Add to a counter."""
    metric = _live.get(name)
    if metric is not None:
        (metric.labels(**labels) if labels else metric).inc(amount)


def observe(name: str, seconds: float) -> None:
    """Add to a histogram; less than nothing, which clocks that differ make, counts as nothing."""
    metric = _live.get(name)
    if metric is not None:
        metric.observe(max(0.0, seconds))


def watch(name: str, read: Callable[[], Values]) -> None:
    """Have a gauge read, in the thread of whoever scrapes. What ``read`` raises leaves the gauge out."""
    _readers[name] = read


def reserved(file: str) -> str:
    """Make a file that processes count into, with room on the disk for all of it, and return its path.

    The library maps such a file into memory and takes room page by page: on a full disk the kernel ends whoever counts
    (SIGBUS), and with a pool child its attempt. Without room what is counted goes into memory, and is not shown.
    """
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, _FILE_BYTES)
        finally:
            os.close(descriptor)
    except OSError:
        with suppress(OSError):
            Path(file).unlink()
        descriptor = os.memfd_create("metrics", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _FILE_BYTES)
        return f"/proc/self/fd/{descriptor}"
    return file


def _count_into_reserved_files(values: Any) -> None:
    """Have the library's module take ``reserved`` files for what it writes."""

    class Reserved(values.MmapedDict):  # type: ignore[misc]
        def __init__(self, filename: str, read_mode: bool = False) -> None:  # noqa: FBT001, FBT002 - the library's
            super().__init__(filename if read_mode else reserved(filename), read_mode)

    values.MmapedDict = Reserved


def begin(process: str, *, directory: Path | None = None) -> None:
    """Start to count. ``directory`` is for a process whose children count too: call it before they are forked.

    Raises OSError when the directory cannot be made.
    """
    if directory is not None:
        shared = _fresh(directory)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(shared)
    import prometheus_client as library  # noqa: PLC0415 - only who serves metrics pays for it
    from prometheus_client import multiprocess, values  # noqa: PLC0415

    library.disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = library.CollectorRegistry()
    if directory is not None:
        _count_into_reserved_files(values)
        # The library looks at the environment when it is imported, which Celery's commands (flower) did before us.
        values.ValueClass = values.get_value_class()  # type: ignore[no-untyped-call]
        multiprocess.MultiProcessCollector(registry, str(shared))  # type: ignore[no-untyped-call]
    into: dict[str, Any] = {"registry": None if directory is not None else registry}
    for one in METRICS:
        if one.process != process:
            continue
        if one.kind == "counter":
            _live[one.name] = library.Counter(one.name, one.meaning, one.labels, **into)
            for value in one.values:
                _live[one.name].labels(value)
        elif one.kind == "histogram":
            _live[one.name] = library.Histogram(one.name, one.meaning, one.labels, buckets=one.buckets, **into)
    registry.register(_Gauges(process))
    _registry[:] = [registry]


def serve(bind: str, port: int, log: Any) -> None:
    """Answer scrapes at ``http://bind:port/metrics`` in a thread, until the process ends. ``begin`` comes first.

    A port that is taken is a warning: a fleet that cannot be watched still works.
    """
    from prometheus_client import start_http_server  # noqa: PLC0415 - see begin

    try:
        start_http_server(port, bind, _registry[0])
    except OSError as exc:
        log.warning("metrics_not_served", bind=f"{bind}:{port}", reason=exc.strerror or str(exc))
        return
    log.info("metrics_served", url=f"http://{bind}:{port}/metrics")


def end() -> None:
    """Remove what a process whose children count too left on disk."""
    shared = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if shared and Path(shared).name == str(os.getpid()):
        shutil.rmtree(shared, ignore_errors=True)


class _Gauges:
    """All gauges of a process, read when somebody scrapes."""

    def __init__(self, process: str) -> None:
        self._declared = [one for one in METRICS if one.process == process and one.kind == "gauge"]

    def collect(self) -> Any:
        """Yield what can be read."""
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415 - see begin

        for one in self._declared:
            read = _readers.get(one.name)
            if read is None:
                continue
            try:
                found = read()
            except Exception:  # noqa: BLE001, S112  One that cannot be read must not hide the others.
                continue
            family = GaugeMetricFamily(one.name, one.meaning, labels=one.labels)
            for labels, value in found.items() if isinstance(found, Mapping) else [((), found)]:
                family.add_metric(labels, value)
            yield family

    def describe(self) -> list[Any]:
        """Say nothing: what is read is not known before."""
        return []


def _fresh(directory: Path) -> Path:
    """Return an empty directory for this process, and clear those of processes that are gone."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for other in directory.iterdir():
        if other.name.isdigit() and not Path(f"/proc/{other.name}").exists():
            shutil.rmtree(other, ignore_errors=True)
    mine = directory / str(os.getpid())
    with suppress(FileNotFoundError):
        shutil.rmtree(mine)
    mine.mkdir(mode=0o700)
    return mine
