"""What is inside a sealed message: read strictly, written in one way. Pure.

Version 1 is what existing senders use: the task as ``{title, description?,
payload?}``, the answer as its text. Version 2 says inside the box who sealed
it for whom, for which channel and when, so that nothing of it can be used in
another place.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from dispatch.core.dependencies import DEPENDENCIES_MAX, named_in
from dispatch.crypto.refusal import Refusal, SealError

if TYPE_CHECKING:
    from collections.abc import Mapping

PLAIN_BYTES_MAX: Final = 1_048_576
TITLE_CHARS_MAX: Final = 512
DEPTH_MAX: Final = 64
FRESH_S: Final = 300
"""By how much the clocks of sender and service may differ, seconds; also the age of a message at creation."""
_HEAD: Final = frozenset({"v", "typ", "mid", "from", "to", "chan", "iat", "body"})
_ANSWER_HEAD: Final = frozenset({"v", "typ", "mid", "re", "task", "attempt", "from", "to", "iat", "body"})
_V1_FIELDS: Final = frozenset({"title", "description", "payload"})
_V2_FIELDS: Final = _V1_FIELDS | {"callback_url", "depends_on", "quiet"}


@dataclass(frozen=True, slots=True)
class Content:
    """A task as its sender wrote it. ``payload`` has no fields that steer dispatch."""

    title: str
    description: str = ""
    payload: dict[str, Any] = field(default_factory=dict)
    callback_url: str | None = None
    depends_on: tuple[str, ...] = ()
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Head:
    """What version 2 binds. Times are seconds since 1970."""

    message_id: str
    sender_kid: str
    recipient_kid: str
    channel: str
    sealed_at_s: int
    expires_at_s: int | None = None


def _bad(detail: str) -> SealError:
    return SealError(Refusal.CONTENT, detail)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field stands there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        level = [
            item
            for one in level
            for item in (one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())
        ]
    return deepest


def _read(plain: bytes) -> dict[str, Any]:
    if len(plain) > PLAIN_BYTES_MAX:
        raise _bad(f"{len(plain)} bytes; at most {PLAIN_BYTES_MAX} are read")
    try:
        value = json.loads(plain.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")  # half characters, numbers out of range
    except (ValueError, RecursionError) as exc:
        raise _bad(f"not read as JSON: {type(exc).__name__}") from None
    if not isinstance(value, dict):
        raise _bad("a JSON object is expected")
    if _depth(value) > DEPTH_MAX:
        raise _bad(f"nested deeper than {DEPTH_MAX}")
    return value


def _text(body: Mapping[str, Any], name: str, chars_max: int) -> str:
    value = body.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > chars_max or "\0" in value:
        raise _bad(f"{name} must be text of at most {chars_max} characters")
    return value


def _content(body: dict[str, Any], steering: dict[str, Any]) -> Content:
    payload = body.get("payload")
    if payload is None:
        payload = {}
    if not isinstance(payload, dict):
        raise _bad("payload must be an object")
    title = _text(body, "title", TITLE_CHARS_MAX)
    if not title.strip():
        raise _bad("title is missing")
    callback_url, quiet = steering.get("callback_url"), steering.get("quiet", False)
    if callback_url is not None and not isinstance(callback_url, str):
        raise _bad("callback_url must be text")
    if not isinstance(quiet, bool):
        raise _bad("quiet must be true or false")
    names = named_in(steering) or ()
    if len(names) > DEPENDENCIES_MAX:
        raise _bad(f"depends_on names {len(names)} tasks; at most {DEPENDENCIES_MAX}")
    return Content(
        title=title,
        description=_text(body, "description", PLAIN_BYTES_MAX),
        payload={name: value for name, value in payload.items() if name not in ("callback_url", "depends_on", "quiet")},
        callback_url=callback_url or None,
        depends_on=tuple(str(name) for name in names),
        quiet=quiet,
    )


def read_v1(plain: bytes) -> Content:
    """Read a task of version 1; what steers dispatch stands in its payload. Raises SealError."""
    body = _read(plain)
    if "v" in body or "typ" in body:
        raise SealError(Refusal.VERSION, "a later version inside an envelope of version 1")
    payload = body.get("payload")
    return _content(body, payload if isinstance(payload, dict) else {})


def refuse_later_version(plain: bytes) -> None:
    """Raise SealError for an answer of version 1 that is a message of version 2, which binds more than it would."""
    try:
        body = json.loads(plain)
    except (ValueError, RecursionError):
        return
    if isinstance(body, dict) and body.get("v") == 2 and body.get("typ") in ("task", "result"):
        raise SealError(Refusal.VERSION, "a message of version 2, shown as an answer of version 1")


def write_v1(content: Content) -> bytes:
    """Write what ``read_v1`` reads."""
    steering: dict[str, Any] = {}
    if content.callback_url:
        steering["callback_url"] = content.callback_url
    if content.depends_on:
        steering["depends_on"] = list(content.depends_on)
    if content.quiet:
        steering["quiet"] = True
    body: dict[str, Any] = {"title": content.title}
    if content.description:
        body["description"] = content.description
    if content.payload or steering:
        body["payload"] = {**content.payload, **steering}
    return _write(body)


def _write(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def read_v2(plain: bytes) -> tuple[Head, Content]:
    """Read a task of version 2. Raises SealError; REFLECTION for an answer."""
    body = _read(plain)
    if body.get("typ") == "result":
        raise SealError(Refusal.REFLECTION, "an answer, not a task")
    if not _HEAD <= body.keys() <= _HEAD | {"exp"} or body["v"] != 2 or body["typ"] != "task":
        raise _bad("not the fields of a task of version 2")
    texts = [body[name] for name in ("mid", "from", "to", "chan")]
    if not all(isinstance(text, str) and text for text in texts) or len(body["mid"]) > 64:
        raise _bad("mid, from, to and chan must be text")
    expires = body.get("exp")
    if not _whole(body["iat"]) or not (expires is None or _whole(expires)):
        raise _bad("iat and exp must be whole seconds")
    inner = body["body"]
    if not isinstance(inner, dict) or not inner.keys() <= _V2_FIELDS:
        raise _bad("body must be an object with the fields of a task")
    head = Head(body["mid"], body["from"], body["to"], body["chan"], body["iat"], expires)
    return head, _content(inner, inner)


def write_v2(head: Head, content: Content) -> bytes:
    """Write what ``read_v2`` reads."""
    inner: dict[str, Any] = {
        "title": content.title,
        "description": content.description,
        "payload": content.payload,
        "depends_on": list(content.depends_on),
        "quiet": content.quiet,
    }
    if content.callback_url:
        inner["callback_url"] = content.callback_url
    body: dict[str, Any] = {
        "v": 2,
        "typ": "task",
        "mid": head.message_id,
        "from": head.sender_kid,
        "to": head.recipient_kid,
        "chan": head.channel,
        "iat": head.sealed_at_s,
        "body": inner,
    }
    if head.expires_at_s is not None:
        body["exp"] = head.expires_at_s
    return _write(body)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of version 2: ``re`` names the message answered, ``text`` is the response or the reason."""

    message_id: str
    re: str
    task_id: str
    attempt: int
    sender_kid: str
    recipient_kid: str
    sealed_at_s: int
    status: str
    text: str


def write_answer(answer: Answer) -> bytes:
    """Write an answer of version 2."""
    return _write(
        {
            "v": 2,
            "typ": "result",
            "mid": answer.message_id,
            "re": answer.re,
            "task": answer.task_id,
            "attempt": answer.attempt,
            "from": answer.sender_kid,
            "to": answer.recipient_kid,
            "iat": answer.sealed_at_s,
            "body": {"status": answer.status, "text": answer.text},
        }
    )


def read_answer(plain: bytes) -> Answer:
    """Read an answer of version 2. Raises SealError."""
    body = _read_answer_fields(plain)
    inner = body["body"]
    texts = [body[name] for name in ("mid", "re", "task", "from", "to")] + [inner.get("status"), inner.get("text")]
    if not all(isinstance(text, str) for text in texts) or not _whole(body["attempt"]) or not _whole(body["iat"]):
        raise _bad("not the fields of an answer of version 2")
    return Answer(
        body["mid"],
        body["re"],
        body["task"],
        body["attempt"],
        body["from"],
        body["to"],
        body["iat"],
        inner["status"],
        inner["text"],
    )


def _read_answer_fields(plain: bytes) -> dict[str, Any]:
    # An answer may be longer than a task: results are bounded by the worker's settings, not by ours.
    try:
        body = json.loads(plain)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or body.keys() != _ANSWER_HEAD or not isinstance(body["body"], dict):
        raise _bad("not the fields of an answer of version 2")
    if body["v"] != 2 or body["typ"] != "result":
        raise _bad("not an answer")
    return body
