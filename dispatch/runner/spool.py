"""Deliver the report about an attempt, through a file where the service does not take it at once.

Nothing is written when the first try succeeds. Otherwise the report survives
this process in ``spool/`` until it was accepted, or refused for good: then a
copy of what was done stays in ``spool/refused/`` for people. Whoever delivers
a report holds a lock on its file, which ends with its process at the latest,
so that of several workers on a host only one does.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol

from dispatch.ats.gateway import AttemptRef, TaskGateway
from dispatch.errors import (
    AuthenticationError,
    GatewayRejectedError,
    GatewayUnavailableError,
    LeaseLostError,
    UnknownTaskError,
)
from dispatch.runner.output import HeadTail

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BACKOFF_FIRST_S: Final = 0.25
BACKOFF_MAX_S: Final = 15.0
REFUSED_KEPT_MAX: Final = 200
_SHRUNK_BYTES: Final = 65_536
_PARTIAL_S: Final = 3600.0
"""Nobody writes one file for so long."""


class Kind(StrEnum):
    """What is reported."""

    COMPLETE = "complete"
    FAIL = "fail"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Report:
    """One report; which fields count depends on the kind.

    ``smaller`` are outputs for a service that finds the first too large. ``note``
    is said on the thread before the report is made. ``review``: a result waits for approval.
    """

    kind: Kind
    ref: AttemptRef
    outputs: list[Any] | None = None
    reason: str = ""
    counted: bool = False
    delay_s: float = 0.0
    smaller: list[Any] | None = None
    note: str = ""
    review: bool = False

    def send(self, gateway: TaskGateway) -> None:
        """Make the call. Raises what the gateway raises."""
        if self.kind is Kind.COMPLETE:
            gateway.complete(self.ref, self.outputs or [], review=self.review)
        elif self.kind is Kind.FAIL:
            gateway.fail(self.ref, self.reason)
        else:
            gateway.release(self.ref, counted=self.counted, delay_s=self.delay_s, reason=self.reason)

    def as_json(self) -> dict[str, Any]:
        """Return the report as what ``from_json`` reads."""
        ref = self.ref
        return {
            "version": 1,
            "kind": self.kind.value,
            "ref": {"task_id": ref.task_id, "attempt": ref.attempt, "token": ref.token, "actor_id": ref.actor_id},
            "outputs": self.outputs,
            "reason": self.reason,
            "counted": self.counted,
            "delay_s": self.delay_s,
            "smaller": self.smaller,
            "note": self.note,
            "review": self.review,
        }

    @classmethod
    def from_json(cls, body: Any) -> Report:
        """Read a report; raises ValueError, KeyError or TypeError when it is none."""
        return cls(
            kind=Kind(body["kind"]),
            ref=AttemptRef(**body["ref"]),
            outputs=body["outputs"],
            reason=str(body["reason"]),
            counted=bool(body["counted"]),
            delay_s=float(body["delay_s"]),
            smaller=body.get("smaller"),
            note=str(body.get("note", "")),
            review=bool(body.get("review", False)),
        )


class Outcome(StrEnum):
    """What became of a report."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    LEFT = "left"
    """It lies in the spool; any worker on this host that runs, or starts, tries it again."""


class Wait(Protocol):
    """Waits between two tries."""

    def __call__(self, seconds: float) -> bool:
        """Wait at most so long; False means: stop trying."""
        ...


@dataclass(frozen=True, slots=True)
class Kept:
    """A report on disk that this process delivers: while it holds it nobody else does. None: it cannot be read."""

    path: Path
    report: Report | None
    fd: int

    def let_go(self) -> None:
        """Leave it to others. Call it once."""
        # Closing is not enough: a process that was forked meanwhile has the descriptor too.
        with contextlib.suppress(OSError):
            fcntl.flock(self.fd, fcntl.LOCK_UN)
        os.close(self.fd)


class Spool:
    """The directory. Files are private, written whole or not at all."""

    def __init__(self, data_dir: Path) -> None:
        self._directory = data_dir / "spool"
        self._refused = self._directory / "refused"

    def _name(self, report: Report) -> str:
        return f"{re.sub(r'[^A-Za-z0-9_-]', '_', report.ref.task_id)[:80]}-{report.ref.token}-{report.kind}.json"

    def put(self, report: Report, *, refused: str = "") -> Path:
        """Write a report; ``refused`` says why the service did not want it. Raises OSError (disk full)."""
        directory = self._refused if refused else self._directory
        body = report.as_json() | ({"refused": refused} if refused else {})
        path, fd = _write(directory, self._name(report), body)
        os.close(fd)
        if refused:
            self._drop_oldest_refused()
        return path

    def keep(self, report: Report) -> Kept:
        """Write a report that this process goes on delivering. Raises OSError (disk full)."""
        path, fd = _write(self._directory, self._name(report), report.as_json())
        return Kept(path, report, fd)

    def take(self, path: Path) -> Kept | None:
        """Take a report to deliver it; None when somebody else does, or has. Raises OSError."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            is_current = _lock(fd) and os.fstat(fd).st_ino == path.stat().st_ino
        except FileNotFoundError:
            is_current = False
        if not is_current:
            os.close(fd)
            return None
        try:
            report = Report.from_json(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            report = None
        return Kept(path, report, fd)

    def remove(self, report: Report) -> None:
        """Forget a report that was accepted or refused."""
        (self._directory / self._name(report)).unlink(missing_ok=True)

    def waiting(self) -> int:
        """Return how many reports lie here."""
        return sum(1 for _ in self._directory.glob("*.json"))

    def leftovers(self, rand: float) -> Iterator[Kept]:
        """Yield what nobody delivers, each taken for the caller.

        ``rand``, in [0, 1), says where to begin, so that one that the service never takes does not hide the others.
        """
        paths = sorted(self._directory.glob("*.json"))
        first = int(rand * len(paths))
        for path in (*paths[first:], *paths[:first]):
            kept = self.take(path)
            if kept is not None:
                yield kept

    def clear_partial(self) -> int:
        """Remove what was never written whole, by processes that were killed meanwhile; return how many files."""
        count = 0
        for path in (*self._directory.glob("*.part"), *self._refused.glob("*.part")):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _PARTIAL_S:
                    path.unlink()
                    count += 1
        return count

    def _drop_oldest_refused(self) -> None:
        kept = sorted(self._refused.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in kept[:-REFUSED_KEPT_MAX]:
            path.unlink(missing_ok=True)


def deliver(
    report: Report,
    gateway: TaskGateway,
    spool: Spool,
    *,
    wait: Wait,
    rand: Callable[[], float],
    log: Any,
    kept: Kept | None = None,
    on_kept: Callable[[], None] = lambda: None,
) -> Outcome:
    """Report until the service accepts or refuses, or ``wait`` says to stop.

    The first try costs nothing but the call. ``rand`` returns a number in [0, 1).
    ``kept`` is the report where it lies in the spool already; it is let go. ``on_kept``
    is called when the report has come to lie there: from then on it outlives this process.
    """
    failures = 0
    delayed = log.warning if kept is None else log.debug  # of one that was left everything was said before
    fields = {"task": report.ref.task_id, "token": report.ref.token, "kind": report.kind.value}
    try:
        while True:
            try:
                report = _said(report, gateway, log)
                report.send(gateway)
            except (GatewayUnavailableError, AuthenticationError) as exc:
                failures += 1
                delayed("report_delayed", failures=failures, error=str(exc), **fields)
                kept = _store(report, kept, spool, log)
                if kept is not None:
                    on_kept()
                if not wait(_pause_s(failures, exc, rand())):
                    delayed("report_left_in_spool", stored=kept is not None, **fields)
                    return Outcome.LEFT
            except GatewayRejectedError as exc:
                instead = _instead(report, exc)
                if instead is None:
                    return _refused(report, spool, exc, log)
                log.warning("report_changed", error=str(exc), instead=instead.kind.value, **fields)
                spool.remove(report)
                _let_go(kept)
                kept, report = None, instead
            else:
                if kept is not None:
                    spool.remove(report)
                if failures:
                    log.info("report_delivered", failures=failures, **fields)
                return Outcome.ACCEPTED
    finally:
        _let_go(kept)


def replay(gateway: TaskGateway, spool: Spool, *, rand: Callable[[], float], log: Any) -> int:
    """Try once what was left in the spool and nobody delivers, up to the first that finds the service away.

    Return how many reports are there afterwards. Raises OSError.
    """
    for kept in spool.leftovers(rand()):
        path, report = kept.path, kept.report
        if report is None:
            log.warning("spool_unreadable", path=str(path))
            path.replace(path.with_suffix(".bad"))
            kept.let_go()
            continue
        outcome = deliver(report, gateway, spool, wait=lambda _seconds: False, rand=rand, log=log, kept=kept)
        if outcome is Outcome.LEFT:
            break
        path.unlink(missing_ok=True)
        facts = {"task": report.ref.task_id, "token": report.ref.token, "kind": report.kind.value}
        if outcome is Outcome.REFUSED:
            log.warning("report_too_late", **facts)
        else:
            log.info("spool_replayed", outcome=outcome.value, **facts)
    return spool.waiting()


def _write(directory: Path, name: str, body: dict[str, Any]) -> tuple[Path, int]:
    """Write a file whole or not at all; return it with a descriptor that holds its lock."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / name
    partial = path.with_suffix(f".{os.getpid()}.part")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _lock(fd)
        with os.fdopen(os.dup(fd), "w", encoding="utf-8") as file:
            json.dump(body, file)
            file.flush()
            os.fsync(fd)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        os.close(fd)
        raise
    return path, fd


def _lock(fd: int) -> bool:
    """Lock a file; False when somebody else has. On a file system without locks nobody has: a report may go twice."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _let_go(kept: Kept | None) -> None:
    if kept is not None:
        kept.let_go()


def _said(report: Report, gateway: TaskGateway, log: Any) -> Report:
    """Say what is to be said before the report. A service that does not want it gets the report without it."""
    if report.note:
        try:
            gateway.say(report.ref, report.note)
        except LeaseLostError:
            raise
        except GatewayRejectedError as exc:
            log.warning("note_refused", task=report.ref.task_id, token=report.ref.token, error=str(exc))
    return replace(report, note="") if report.note else report


def _store(report: Report, kept: Kept | None, spool: Spool, log: Any) -> Kept | None:
    """Have the report on disk as it is now; return what is there, None when it cannot be written."""
    if kept is not None and kept.report == report:
        return kept
    try:
        found = spool.keep(report)
    except OSError as exc:
        log.exception("spool_write_failed", task=report.ref.task_id, error=str(exc))
        return kept
    _let_go(kept)
    return found


def _refused(report: Report, spool: Spool, exc: GatewayRejectedError, log: Any) -> Outcome:
    fields = {"task": report.ref.task_id, "token": report.ref.token, "kind": report.kind.value}
    log.warning("report_refused", error=str(exc), status=exc.status, **fields)
    if report.kind is not Kind.RELEASE:
        try:
            spool.put(report, refused=str(exc) or f"status {exc.status}")
        except OSError as failed:
            log.exception("spool_write_failed", task=report.ref.task_id, error=str(failed))
    spool.remove(report)
    return Outcome.REFUSED


def _pause_s(failures: int, exc: Exception, rand: float) -> float:
    pause_s = min(BACKOFF_FIRST_S * 2.0 ** min(failures - 1, 10), BACKOFF_MAX_S) * (0.5 + 0.5 * rand)
    asked_s = exc.retry_after_s if isinstance(exc, GatewayUnavailableError) else None
    return max(pause_s, min(asked_s or 0.0, 60.0))


def _instead(report: Report, exc: GatewayRejectedError) -> Report | None:
    """Return what to report when the service refuses a result for what it is, None when it refuses the caller."""
    if report.kind is not Kind.COMPLETE or isinstance(exc, LeaseLostError | UnknownTaskError) or exc.status == 409:
        return None
    if exc.status == 413 and report.smaller is not None:
        return replace(report, outputs=report.smaller, smaller=None)
    output = (report.outputs or [{}])[0]
    text = output.get("response", "")
    if exc.status == 413 and len(text.encode()) > _SHRUNK_BYTES:
        kept = HeadTail(_SHRUNK_BYTES)
        kept.feed(text.encode())
        return replace(report, outputs=[{**output, "response": kept.result().text, "truncated": True}])
    return replace(report, kind=Kind.FAIL, outputs=None, reason=f"The task service refused the result: {exc}"[:4_000])
