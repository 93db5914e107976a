"""When a callback is tried, what its answer means, and what it says. Pure.

The form is that of Standard Webhooks 1.0; ``task_id status result completed_at``
stand at the top level as well, for receivers that know nothing of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from dispatch.core.results import text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEDULE_S: Final = (0.0, 5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""How long each try waits after the one before it."""
RETRY_AFTER_MAX_S: Final = 86_400.0
JITTER: Final = 0.1
"""A pause is longer than the schedule says by up to this share, so that what failed together is not tried together."""
RESULT_BYTES_MAX: Final = 65_536
TITLE_CHARS_MAX: Final = 512
_GONE: Final = 410
_SLOW_DOWN: Final = frozenset({429, 502, 503, 504})
"""Answers whose ``Retry-After`` is honoured."""
_MARK: Final = "\n[truncated]"


@dataclass(frozen=True, slots=True)
class Answer:
    """How a try ended.

    ``status`` is the HTTP status, or None when no answer came; then ``error``
    is a short word. ``is_final``: trying again cannot help.
    """

    status: int | None = None
    error: str = ""
    retry_after_s: float | None = None
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from an answer; ``delay_s`` only for a retry."""

    outcome: Literal["delivered", "retry", "failed"]
    delay_s: float = 0.0
    error: str | None = None


def pause_s(tries: int, rand: float) -> float | None:
    """Return how long to wait after this many tries (from 1), or None when that was the last.

    ``rand`` is uniform in [0, 1).
    """
    if tries >= len(SCHEDULE_S):
        return None
    return SCHEDULE_S[max(tries, 1)] * (1.0 + JITTER * rand)


def judge(answer: Answer, tries: int, rand: float) -> Verdict:
    """Say what follows from the answer to try number ``tries`` (from 1)."""
    status = answer.status
    if status is not None and 200 <= status < 300:
        return Verdict("delivered")
    error = answer.error or f"http_{status}"
    delay_s = pause_s(tries, rand)
    if answer.is_final or status == _GONE or delay_s is None:
        return Verdict("failed", error=error)
    if status in _SLOW_DOWN and answer.retry_after_s is not None:
        delay_s = max(delay_s, min(answer.retry_after_s, RETRY_AFTER_MAX_S))
    return Verdict("retry", delay_s, error)


@dataclass(frozen=True, slots=True)
class Ended:
    """A task that ended, as its callback tells it. ``is_stale``: it was reopened since, so what it holds is another's.

    ``settled_at`` is the time of the end, as ISO 8601; ``status`` the ATS word.
    """

    task_id: str
    status: str
    settled_at: str
    title: str = ""
    channel: str = ""
    outputs: Any = None
    reason: str | None = None
    is_encrypted: bool = False
    is_stale: bool = False


def result_of(ended: Ended) -> tuple[str | None, bool]:
    """Return the response, or why there is none, and whether it was cut. Nothing of it for an encrypted task."""
    if ended.is_encrypted or ended.is_stale:
        return None, False
    text = ended.reason if ended.status != "completed" else None
    if text is None:
        text = text_of(ended.outputs) if ended.outputs is not None else None
    if text is None:
        return None, False
    raw = text.encode("utf-8", "replace")
    if len(raw) <= RESULT_BYTES_MAX:
        return raw.decode(), False
    return raw[: RESULT_BYTES_MAX - len(_MARK)].decode("utf-8", "ignore") + _MARK, True


def body(ended: Ended) -> bytes:
    """Return the body of a callback: the bytes that are signed and sent, the same for each try."""
    result, truncated = result_of(ended)
    facts: dict[str, Any] = {
        "task_id": int(ended.task_id) if ended.task_id.isascii() and ended.task_id.isdigit() else ended.task_id,
        "status": ended.status,
        "result": result,
        "completed_at": ended.settled_at,
    }
    data: dict[str, Any] = {**facts, "channel": ended.channel}
    if ended.is_encrypted:
        data["encrypted"] = True
    else:
        data["title"] = ended.title[:TITLE_CHARS_MAX]
    if truncated:
        data["truncated"] = True
    if ended.is_stale:
        data["reopened"] = True
    whole: Mapping[str, Any] = {**facts, "type": f"task.{ended.status}", "timestamp": ended.settled_at, "data": data}
    if ended.is_encrypted:
        whole = {**whole, "encrypted": True}
    if truncated:
        whole = {**whole, "truncated": True}
    return json.dumps(whole, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
