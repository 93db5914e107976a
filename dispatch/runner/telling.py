"""What is reported about an attempt that ended: in the open, or sealed for the task's sender.

Of a sealed task nothing that it or its command says is in a report, but in the
box: the output is the answer, and what a failed attempt said on stderr is a
message on the thread. Both are cut before they are sealed, because afterwards
nobody but the sender can.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dispatch.core.retry import EndReason
from dispatch.crypto import opening
from dispatch.runner import attempt
from dispatch.runner.output import HeadTail

if TYPE_CHECKING:
    from dispatch.crypto.opening import Opened
    from dispatch.runner.attempt import AttemptEnd

SEALED_BYTES_MAX: Final = 4_194_304 - 256
"""A sealed answer with its flags, as JSON: what the task service takes as outputs."""
SMALLER_BYTES_MAX: Final = 98_304
"""The same for a service that refuses the first as too large."""
NOTE_CHARS_MAX: Final = 8_000
"""A message on a thread."""
_ALWAYS_TOLD: Final = frozenset({EndReason.SPAWN_ERROR, EndReason.WORKER_LOST})
"""Ends whose sentence is about the host, not about the task."""


@dataclass(frozen=True, slots=True)
class Told:
    """What is reported: ``outputs`` of a success, else ``reason``.

    ``smaller`` are outputs for a service that finds the first too large; ``note``
    is a message for the thread, "" for none.
    """

    reason: str = ""
    outputs: list[Any] | None = None
    smaller: list[Any] | None = None
    note: str = ""


def in_the_open(end: AttemptEnd) -> Told:
    """Return what everybody may read."""
    if end.reason is EndReason.SUCCESS:
        return Told(outputs=[{"response": end.stdout.text, **_flags(end, cut=end.stdout.truncated)}])
    return Told(end.detail)


def without_content(end: AttemptEnd, timeout_s: float) -> Told:
    """Return what may be said of a sealed task that was not opened, or before it was."""
    if end.reason in _ALWAYS_TOLD:
        return Told(end.detail)
    code = -end.signal if end.signal is not None else end.exit_code
    return Told(attempt.describe(end.reason, code, "", timeout_s=timeout_s, limit=end.limit))


def sealed(end: AttemptEnd, opened: Opened, *, task_id: str, attempt_number: int, timeout_s: float) -> Told:
    """Return what may be said of a sealed task, with the rest in a box for its sender."""
    if end.reason is EndReason.SUCCESS:
        box = _Box(opened, task_id, attempt_number, "completed")
        outputs = [box.output(end, SEALED_BYTES_MAX)]
        is_large = len(outputs[0]["encrypted_response"]["ciphertext"]) > SMALLER_BYTES_MAX
        return Told(outputs=outputs, smaller=[box.output(end, SMALLER_BYTES_MAX)] if is_large else None)
    told = without_content(end, timeout_s)
    if end.detail in ("", told.reason):
        return told
    answer, _ = _Box(opened, task_id, attempt_number, "failed").of(end.detail, NOTE_CHARS_MAX)
    return Told(told.reason, note=_dumps(answer))


@dataclass(frozen=True, slots=True)
class _Box:
    opened: Opened
    task_id: str
    attempt: int
    status: str

    def output(self, end: AttemptEnd, bytes_max: int) -> dict[str, Any]:
        answer, cut = self.of(end.stdout.text, bytes_max)
        return {**answer, **_flags(end, cut=cut or end.stdout.truncated)}

    def of(self, text: str, bytes_max: int) -> tuple[dict[str, Any], bool]:
        """Return the text sealed, in at most so many bytes of JSON, and whether it had to be cut for that."""
        cut = False
        while True:
            answer: dict[str, Any] = opening.answer(
                self.opened,
                text,
                task_id=self.task_id,
                attempt=self.attempt,
                status=self.status,
                now_s=time.time(),
                random=os.urandom(28),
            )
            size = len(_dumps(answer))
            if size <= bytes_max:
                return answer, cut
            raw = text.encode("utf-8", "replace")
            kept = HeadTail(int(len(raw) * bytes_max / size * 0.97))
            kept.feed(raw)
            text, cut = kept.result().text, True


def _flags(end: AttemptEnd, *, cut: bool) -> dict[str, Any]:
    flags: dict[str, Any] = {"truncated": True, "output_bytes": end.stdout.total_bytes} if cut else {}
    return {**flags, "binary": True} if end.stdout.binary else flags


def _dumps(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
