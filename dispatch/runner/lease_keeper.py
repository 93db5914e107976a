"""Keep the lease of the running attempt alive, from a thread of its own.

The thread exists once per process and only from the first attempt on that
lives longer than a moment. It renews, listens for wake-ups, and writes what it
learns into the attempt's ``Lease``; the main thread reads it and decides.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from dispatch import metrics
from dispatch.core import lease as arithmetic
from dispatch.errors import GatewayError, GatewayUnavailableError, LeaseLostError
from dispatch.runner import tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatch.ats.gateway import AttemptRef, TaskGateway

HEARTBEAT_S: Final = 60.0
"""Least time between two heartbeat messages on a task's thread."""
_WAKE_CHECK_S: Final = 5.0
"""How often a wake source that has no connection is asked again."""


class WakeSource(Protocol):
    """Tells that something may have happened to a task. Used by the keeper's thread alone; may raise anything."""

    def fileno(self) -> int:
        """Return what to poll for reading, -1 while there is no connection."""
        ...

    def read(self) -> set[str] | None:
        """Return the ids of woken tasks without blocking; None when wake-ups may have been missed."""
        ...

    def check(self, task_id: str, token: int) -> bool:
        """Say whether a wake-up for this attempt was left behind."""
        ...


class Lease:
    """What is known about one attempt's lease. Written by the keeper, read by the main thread.

    ``trusted_until`` is a reading of the boot clock; the attempt must be dead by then.
    """

    def __init__(self, sent_at: float, ttl_s: float, *, clock: Callable[[], float] = tree.boottime) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self.sent_at = sent_at
        self.ttl_s = ttl_s
        self.trusted_until = arithmetic.trusted_until(sent_at, ttl_s)
        self.cancelled = False
        self.lost = ""
        """Why the lease is gone, "" while it is not known to be."""
        self.refused = False
        """The service itself said that the lease is not ours: nothing more is to be reported."""

    def over(self, now: float) -> bool:
        """Say whether the attempt must stop for want of a lease."""
        return bool(self.lost) or now >= self.trusted_until

    @property
    def warden_deadline(self) -> float:
        """Return when the warden kills: after the holder should have, before the lease ends (boot clock)."""
        return (self.trusted_until + self.sent_at + self.ttl_s) / 2

    def renewed(self, sent_at: float, ttl_s: float) -> bool:
        """Count a successful renewal. False if trust had ended before the answer came: then it stays ended."""
        with self._lock:
            if self.over(self._clock()):
                self.lost = self.lost or "the renewal came too late"
                return False
            self.sent_at, self.ttl_s = sent_at, ttl_s
            self.trusted_until = arithmetic.trusted_until(sent_at, ttl_s)
            return True

    def lose(self, why: str) -> None:
        """Note that the lease is gone for good."""
        with self._lock:
            self.lost = self.lost or why

    def refuse(self, why: str, *, cancelled: bool) -> None:
        """Note that the service said so; ``cancelled`` when the task was cancelled."""
        self.refused = True
        self.cancelled = cancelled
        if not cancelled:
            self.lose(why)


@dataclass(slots=True)
class _Watch:
    ref: AttemptRef
    lease: Lease
    started_at: float
    renew_at: float
    notify: Callable[[], None]
    on_renewed: Callable[[float], object]
    said_at: float
    failures: int = 0
    adopted: bool = False


class LeaseKeeper:
    """The thread. ``gateway.renew`` is called from it while the main thread may use the gateway as well."""

    def __init__(
        self,
        gateway: TaskGateway,
        *,
        wake: WakeSource | None,
        rand: Callable[[], float],
        log: Any,
        clock: Callable[[], float] = tree.boottime,
    ) -> None:
        self._gateway = gateway
        self._wake = wake
        self._rand = rand
        self._log = log
        self._clock = clock
        self._watch: _Watch | None = None
        self._control_r, self._control_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._closing = False
        self._thread: threading.Thread | None = None

    def watch(
        self,
        ref: AttemptRef,
        lease: Lease,
        *,
        started_at: float,
        notify: Callable[[], None],
        on_renewed: Callable[[float], object],
    ) -> None:
        """Keep this lease until ``unwatch``.

        ``notify`` wakes the main thread after the lease was lost or the task
        cancelled; ``on_renewed`` gets the warden's new deadline (boot clock). Both
        are called in the keeper's thread.
        """
        renew_at = arithmetic.renew_at(lease.sent_at, lease.ttl_s)
        self._watch = _Watch(ref, lease, started_at, renew_at, notify, on_renewed, said_at=started_at)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)
            self._thread.start()
        else:
            self._poke()

    def unwatch(self) -> None:
        """Stop keeping the lease. A renewal under way may still reach the service; its answer is ignored."""
        self._watch = None

    def close(self) -> None:
        """End the thread."""
        self._closing = True
        self._watch = None
        self._poke()
        if self._thread is not None:
            self._thread.join()
        os.close(self._control_r)
        os.close(self._control_w)

    def _poke(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._control_w, b"\0")

    def _run(self) -> None:
        while not self._closing:
            try:
                self._turn()
            except Exception:  # noqa: BLE001
                # A bug here must not end the renewals of a running attempt.
                self._log.exception("lease_keeper_error")
                threading.Event().wait(0.2)

    def _turn(self) -> None:
        watch = self._watch
        # A renewal that is due comes first: asking a wake source may take as long as its connection's timeouts.
        woken = watch is not None and self._clock() >= watch.renew_at
        woken = woken or self._wait(watch)
        watch = self._watch
        if watch is None:
            return
        if not watch.adopted:
            # Wake-ups that came before this attempt was watched are lost; ask once.
            watch.adopted = True
            woken = woken or self._left_behind(watch)
        if woken or self._clock() >= watch.renew_at:
            self._renew(watch)

    def _wait(self, watch: _Watch | None) -> bool:
        """Sleep until something is to be done; return whether a wake-up concerns the watched task."""
        poll = select.poll()
        poll.register(self._control_r, select.POLLIN)
        wake_fd = self._wake.fileno() if self._wake is not None else -1
        if wake_fd >= 0:
            poll.register(wake_fd, select.POLLIN)
        timeouts = []
        if watch is not None:
            timeouts.append(watch.renew_at - self._clock() if watch.adopted else 0.0)
        if self._wake is not None and wake_fd < 0:
            timeouts.append(_WAKE_CHECK_S)
        ready = dict(poll.poll(max(0, int(min(timeouts) * 1000) + 1) if timeouts else None))
        if self._control_r in ready:
            os.read(self._control_r, 4096)
        if self._wake is None or (wake_fd >= 0 and wake_fd not in ready):
            return False
        return self._read_wake()

    def _read_wake(self) -> bool:
        wake, watch = self._wake, self._watch
        if wake is None:
            return False
        try:
            ids = wake.read()
            if watch is None:
                return False
            return wake.check(watch.ref.task_id, watch.ref.token) if ids is None else watch.ref.task_id in ids
        except Exception as exc:  # noqa: BLE001 - whatever the source raises, renewals go on
            self._wake_failed(exc)
            return False

    def _left_behind(self, watch: _Watch) -> bool:
        try:
            return self._wake is not None and self._wake.check(watch.ref.task_id, watch.ref.token)
        except Exception as exc:  # noqa: BLE001 - whatever the source raises, renewals go on
            self._wake_failed(exc)
            return False

    def _wake_failed(self, exc: Exception) -> None:
        # Wake-ups only save time: renewals carry the truth. Slow down, so that a broken source does not spin.
        self._log.warning("wake_source_failed", error=str(exc))
        threading.Event().wait(0.05)

    def _heartbeat(self, watch: _Watch, now: float) -> str | None:
        if now - watch.said_at < HEARTBEAT_S:
            return None
        return f"Still processing (attempt {watch.ref.attempt}, {now - watch.started_at:.0f}s)"

    def _renew(self, watch: _Watch) -> None:
        sent_at = self._clock()
        if watch.lease.over(sent_at):
            self._end(watch, "not renewed in time")
            return
        message = self._heartbeat(watch, sent_at)
        try:
            grant = self._gateway.renew(watch.ref, message=message)
        except LeaseLostError as exc:
            metrics.count("dispatch_renewals_total", result="lost")
            if self._watch is watch:
                watch.lease.refuse(str(exc) or "refused", cancelled=exc.task_status == "cancelled")
                self._end(watch, "")
        except GatewayError as exc:
            self._retry(watch, exc)
        else:
            metrics.count("dispatch_renewals_total", result="ok")
            metrics.observe("dispatch_renewal_seconds", self._clock() - sent_at)
            if self._watch is not watch:
                return
            if not watch.lease.renewed(sent_at, grant.ttl_s):
                self._end(watch, "the renewal came too late")
                return
            watch.failures = 0
            watch.renew_at = arithmetic.renew_at(sent_at, grant.ttl_s)
            if message is not None:
                watch.said_at = sent_at
            watch.on_renewed(watch.lease.warden_deadline)

    def _retry(self, watch: _Watch, exc: GatewayError) -> None:
        metrics.count("dispatch_renewals_total", result="failed")
        watch.failures += 1
        now = self._clock()
        watch.renew_at = arithmetic.retry_renewal_at(now, watch.failures, watch.lease.ttl_s, self._rand())
        asked_s = exc.retry_after_s if isinstance(exc, GatewayUnavailableError) else None
        if asked_s is not None:
            left_s = watch.lease.trusted_until - now
            watch.renew_at = max(watch.renew_at, now + min(asked_s, left_s / 2))
        self._log.warning(
            "lease_renewal_failed",
            task=watch.ref.task_id,
            token=watch.ref.token,
            failures=watch.failures,
            trusted_s=round(watch.lease.trusted_until - now, 3),
            error=str(exc),
        )

    def _end(self, watch: _Watch, why: str) -> None:
        if self._watch is not watch:
            return
        if why:
            watch.lease.lose(why)
        self._watch = None
        watch.notify()
