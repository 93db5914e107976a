"""What an answer of a task service means, without I/O: its JSON, or the error to raise."""

from __future__ import annotations

import json
import os
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from dispatch.ats.model import Task, parse_task, parse_time
from dispatch.errors import (
    AuthenticationError,
    GatewayError,
    GatewayRejectedError,
    GatewayUnavailableError,
    LeaseLostError,
    SealReplayedError,
    UnknownTaskError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

RETRY_AFTER_MAX_S: Final = 3_600.0
"""A longer ``Retry-After`` is cut to this."""

FENCING_EXTENSIONS: Final = frozenset({"fencing", "start", "renew", "release", "claim.many", "claimable"})
"""What ``/health`` must announce before the fleet relies on fencing tokens of the service."""

_LEASE_LOST_CODES: Final = frozenset({"STALE_LEASE", "LEASE_HELD", "ILLEGAL_MOVE"})
_SENTENCE_CHARS_MAX: Final = 500


def interpret(status: int, answer_headers: Mapping[str, str], body: bytes, *, leased: bool = False) -> Any:
    """Return the JSON of a successful answer, or raise what the answer means.

    ``leased`` is the request's: then a conflict about the lease is LeaseLostError.
    Raises GatewayUnavailableError, AuthenticationError, UnknownTaskError,
    LeaseLostError or GatewayRejectedError, each with the service's own sentence.
    """
    parsed, is_json = _parse_body(body)
    if 200 <= status < 300:
        if is_json:
            return parsed
        if status == 204:
            return {}
        raise GatewayUnavailableError(f"The task service answered {status} with something that is not JSON.")
    facts = parsed if isinstance(parsed, dict) else {}
    sentence = _sentence(facts, status)
    if status in (401, 403):
        raise AuthenticationError(sentence)
    if status == 413:
        raise GatewayRejectedError(sentence, status=status, code=_code(facts), facts=facts)
    if status in (408, 425, 429) or status >= 500 or status < 400 or not is_json:
        if 300 <= status < 400:
            place = _lower(answer_headers).get("location", "elsewhere")
            sentence = f"The task service sends its callers to {place}; set DISPATCH_ATS_URL to that address."
        raise GatewayUnavailableError(sentence, retry_after_s=retry_after_s(answer_headers, facts))
    raise _refusal(status, sentence, facts, leased=leased)


def retry_after_s(answer_headers: Mapping[str, str], facts: Mapping[str, Any]) -> float | None:
    """Read how long the service asks to wait, in seconds; None when it does not say."""
    millis = facts.get("retry_after_ms")
    if isinstance(millis, int | float) and not isinstance(millis, bool):
        return min(max(millis / 1000.0, 0.0), RETRY_AFTER_MAX_S)
    found = _lower(answer_headers)
    value = found.get("retry-after", "").strip()
    if not value:
        return None
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), RETRY_AFTER_MAX_S)
    try:
        # The service's own Date is the only clock that a date of the service may be compared with.
        wait = parsedate_to_datetime(value) - parsedate_to_datetime(found.get("date", ""))
    except (ValueError, TypeError):
        return None
    return min(max(wait.total_seconds(), 0.0), RETRY_AFTER_MAX_S)


def cause_of(exc: BaseException) -> str:
    """Say in a few words why no answer came."""
    exc = getattr(exc, "os_error", exc)
    if isinstance(exc, TimeoutError):
        return "the time was up"
    if isinstance(exc, ConnectionError) and exc.errno:
        return os.strerror(exc.errno).lower()
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror.lower()
    return str(exc) or type(exc).__name__


def date_offset_s(date: str, local_s: float) -> float:
    """Return a service's clock minus ours, in seconds; ``date`` is its header, ``local_s`` our wall clock then."""
    try:
        offset = parsedate_to_datetime(date).timestamp() - local_s
    except (ValueError, TypeError, OverflowError):
        return 0.0
    # The header has whole seconds: what is below two is rounding and travel, no difference of clocks.
    return offset if abs(offset) >= 2.0 else 0.0


def tasks_of(answer: Any) -> list[Task]:
    """Read a list of tasks, in its envelope or bare; entries that are no tasks are left out."""
    rows = answer.get("tasks") if isinstance(answer, dict) else answer
    if not isinstance(rows, list):
        raise GatewayUnavailableError("The task service answered something that is not a list of tasks.")
    found = []
    for row in rows:
        try:
            found.append(parse_task(row))
        except GatewayUnavailableError:
            continue
    return found


def messages_of(answer: Any) -> list[dict[str, Any]]:
    """Read a thread, in its envelope or bare; entries that are no messages are left out."""
    rows = answer.get("messages") if isinstance(answer, dict) else answer
    if not isinstance(rows, list):
        raise GatewayUnavailableError("The task service answered something that is not a list of messages.")
    return [row for row in rows if isinstance(row, dict)]


SAID_AMONG: Final = 20
"""How many messages at the end of a thread are looked at by ``was_said``."""


def message_id_of(answer: Any) -> str:
    """Read the id of a message that was appended, in its envelope or bare; "" when there is none."""
    message = answer.get("message", answer) if isinstance(answer, dict) else None
    found = message.get("id") if isinstance(message, dict) else None
    return str(found) if isinstance(found, int | str) else ""


def was_said(messages: Sequence[dict[str, Any]], text: str, *, after: str) -> bool:
    """Say whether a thread has this text behind the message ``after``; without one, as its newest message."""
    for message in reversed(messages[-(SAID_AMONG if after else 1) :]):
        if after and str(message.get("id")) == after:
            return False
        parts = message.get("parts")
        if isinstance(parts, list) and any(isinstance(part, dict) and part.get("content") == text for part in parts):
            return True
    return False


def progress_of(messages: Iterable[Any], task: Task) -> tuple[int, str] | None:
    """Return how far the running attempt of a task is, percent and words, from its thread; None when it did not say."""
    newest = None
    for message in messages:
        if not isinstance(message, dict) or message.get("kind") != "log":
            continue
        meta = message.get("meta")
        percent = meta.get("progress") if isinstance(meta, dict) else None
        if isinstance(percent, int) and not isinstance(percent, bool):
            newest = message, percent, _text(meta.get("text") if isinstance(meta, dict) else None)
    if newest is None or task.status != "in_progress":
        return None
    said_at, started_at = parse_time(newest[0].get("created_at")), parse_time((task.raw or {}).get("started_at"))
    if said_at is not None and started_at is not None and said_at < started_at:
        return None
    return newest[1], newest[2]


def extensions_of(answer: Any) -> frozenset[str]:
    """Read which extensions ``/health`` or ``connected`` announces; a plain ATS announces none."""
    found = answer.get("extensions") if isinstance(answer, dict) else None
    return frozenset(name for name in found if isinstance(name, str)) if isinstance(found, list) else frozenset()


def me_of(answer: Any) -> tuple[str, str]:
    """Read (actor id, access) from the answer about ourselves; "" for what is not said."""
    found = answer if isinstance(answer, dict) else {}
    actor = found.get("actor")
    return _text(actor.get("id")) if isinstance(actor, dict) else "", _text(found.get("access"))


def _lower(found: Mapping[str, str]) -> dict[str, str]:
    return {key.lower(): value for key, value in found.items()}


def _parse_body(body: bytes) -> tuple[Any, bool]:
    # NaN and infinity are no JSON, but one odd task must not make a whole list unreadable.
    try:
        parsed = json.loads(body, parse_constant=lambda _: None)
        if b"\\u" in body:
            parsed = _without_surrogates(parsed)
    except (ValueError, RecursionError):
        return None, False
    return parsed, True


def _without_surrogates(parsed: Any) -> Any:
    text = json.dumps(parsed, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.loads(text.encode("utf-8", "replace"))
    return parsed


def _sentence(facts: Mapping[str, Any], status: int) -> str:
    said = facts.get("error") or facts.get("message")
    if not isinstance(said, str) or not said.strip():
        return f"The task service answered HTTP {status}."
    return said.strip()[:_SENTENCE_CHARS_MAX]


def _code(facts: Mapping[str, Any]) -> str:
    return _text(facts.get("code"))


def _refusal(status: int, sentence: str, facts: dict[str, Any], *, leased: bool) -> GatewayError:
    kind = GatewayRejectedError
    if status == 404:
        kind = UnknownTaskError
    elif status == 409 and leased and _code(facts) in _LEASE_LOST_CODES:
        kind = LeaseLostError
    elif status == 409 and _code(facts) == "SEAL_REPLAYED":
        kind = SealReplayedError
    return kind(sentence, status=status, code=_code(facts), facts=facts)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
