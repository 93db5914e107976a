"""Deliver the report about an attempt, through a file where the service does not take it at once.

Nothing is written when the first try succeeds. Otherwise the report survives
this process in ``spool/`` until it was accepted, or refused for good: then a
copy of what was done stays in ``spool/refused/`` for people.
"""

from __future__ import annotations

import contextlib
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
    """It lies in the spool; the next start of a worker on this host tries it again."""


class Wait(Protocol):
    """Waits between two tries."""

    def __call__(self, seconds: float) -> bool:
        """Wait at most so long; False means: stop trying."""
        ...


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
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / self._name(report)
        body = report.as_json() | ({"refused": refused} if refused else {})
        partial = path.with_suffix(f".{os.getpid()}.part")
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump(body, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
        if refused:
            self._drop_oldest_refused()
        return path

    def remove(self, report: Report) -> None:
        """Forget a report that was accepted or refused."""
        (self._directory / self._name(report)).unlink(missing_ok=True)

    def waiting(self) -> int:
        """Return how many reports lie here."""
        return sum(1 for _ in self._directory.glob("*.json"))

    def leftovers(self) -> Iterator[tuple[Path, Report | None]]:
        """Yield what earlier processes left, oldest name first; None where a file cannot be read as a report."""
        for path in sorted(self._directory.glob("*.json")):
            try:
                yield path, Report.from_json(json.loads(path.read_text("utf-8")))
            except (OSError, ValueError, KeyError, TypeError):
                yield path, None

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
    report: Report, gateway: TaskGateway, spool: Spool, *, wait: Wait, rand: Callable[[], float], log: Any
) -> Outcome:
    """Report until the service accepts or refuses, or ``wait`` says to stop.

    The first try costs nothing but the call. ``rand`` returns a number in [0, 1).
    """
    failures = 0
    stored = False
    fields = {"task": report.ref.task_id, "token": report.ref.token, "kind": report.kind.value}
    while True:
        try:
            report = _said(report, gateway, log)
            report.send(gateway)
        except (GatewayUnavailableError, AuthenticationError) as exc:
            failures += 1
            log.warning("report_delayed", failures=failures, error=str(exc), **fields)
            stored = stored or _store(report, spool, log)
            if not wait(_pause_s(failures, exc, rand())):
                log.warning("report_left_in_spool", stored=stored, **fields)
                return Outcome.LEFT
        except GatewayRejectedError as exc:
            instead = _instead(report, exc)
            if instead is None:
                return _refused(report, spool, exc, log)
            log.warning("report_changed", error=str(exc), instead=instead.kind.value, **fields)
            if stored:
                spool.remove(report)
                stored = False
            report = instead
        else:
            if stored:
                spool.remove(report)
                log.info("report_delivered", failures=failures, **fields)
            return Outcome.ACCEPTED


def replay(gateway: TaskGateway, spool: Spool, *, rand: Callable[[], float], log: Any) -> int:
    """Try once what earlier processes left in the spool; return how many reports remain there."""
    remaining = 0
    for path, report in spool.leftovers():
        if report is None:
            log.warning("spool_unreadable", path=str(path))
            path.replace(path.with_suffix(".bad"))
            continue
        outcome = deliver(report, gateway, spool, wait=lambda _seconds: False, rand=rand, log=log)
        log.info("spool_replayed", task=report.ref.task_id, token=report.ref.token, outcome=outcome.value)
        if outcome is Outcome.LEFT:
            remaining += 1
        else:
            path.unlink(missing_ok=True)
    return remaining


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


def _store(report: Report, spool: Spool, log: Any) -> bool:
    try:
        spool.put(report)
    except OSError as exc:
        log.exception("spool_write_failed", task=report.ref.task_id, error=str(exc))
        return False
    return True


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
