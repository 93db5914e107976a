"""The fields of every body and query of the REST face, with their limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from dispatch.core.dependencies import DEPENDENCIES_MAX, ident_of
from dispatch.core.lifecycle import STATUS_OF_ATS_WORD
from dispatch.errors import InvalidInputError
from dispatch.service import strict, wire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TITLE_CHARS_MAX: Final = 512
DESCRIPTION_CHARS_MAX: Final = 65_536
NAME_CHARS_MAX: Final = 128
REASON_CHARS_MAX: Final = 4_000
MESSAGE_CHARS_MAX: Final = 8_000
PARTS_MAX: Final = 32
META_BYTES_MAX: Final = 2_048
PAYLOAD_BYTES_MAX: Final = 262_144
OUTPUTS_BYTES_MAX: Final = 4_194_304
LEASE_MS_MAX: Final = 86_400_000
DELAY_MS_MAX: Final = 30 * 86_400_000
LIST_MAX: Final = 1_000
EMBEDDED_MESSAGES_MAX: Final = 100
THREAD_MAX: Final = 1_000
MESSAGE_KINDS: Final = {word: word for word in ("message", "note", "log")}

SMALL_BYTES_MAX: Final = 65_536
TASK_BYTES_MAX: Final = 2_097_152
CLAIMS_MAX: Final = 100
FAILURES_MAX: Final = 500
FAILURES_BYTES_MAX: Final = 8_388_608
OUTPUTS_BODY_BYTES_MAX: Final = 8_388_608


_fence: Final = strict.whole(0, strict.INTEGER_MAX)
_lease: Final = strict.whole(1, LEASE_MS_MAX)
_reason: Final = strict.text(REASON_CHARS_MAX, nullable=True)
_message: Final = strict.text(MESSAGE_CHARS_MAX, nullable=True)
_name: Final = strict.label(NAME_CHARS_MAX)


def _dependencies(name: str, value: Any) -> tuple[int | str, ...]:
    items = strict.array(name, value)
    if len(items) > DEPENDENCIES_MAX:
        raise InvalidInputError(f"{name} has {len(items)} elements; a task depends on at most {DEPENDENCIES_MAX}.")
    found = []
    for at, item in enumerate(items):
        ident = ident_of(item)
        if ident is None:
            raise InvalidInputError(f"{name}[{at}] must be a task's number or its UUID.")
        found.append(ident)
    return tuple(dict.fromkeys(found))


CREATE: Final = {
    "title": strict.text(TITLE_CHARS_MAX, chars_min=1),
    "description": strict.text(DESCRIPTION_CHARS_MAX, nullable=True),
    "type": _name,
    "channel": _name,
    "priority": strict.whole(1, 10),
    "payload": strict.json_text(PAYLOAD_BYTES_MAX),
    "needs_review": strict.flag,
    "depends_on": _dependencies,
}
PATCH: Final = {**CREATE, "status": strict.one_of(STATUS_OF_ATS_WORD)}
CLAIM: Final = {"lease_duration": _lease, "claim_id": strict.text(255, chars_min=1, nullable=True)}
CLAIM_MANY: Final = {
    "ids": strict.each(strict.whole(1, strict.INTEGER_MAX), CLAIMS_MAX),
    "lease_duration": _lease,
    "claim_id": strict.text(255, chars_min=1),
}
START: Final = {
    "fencing_token": _fence,
    "runner": strict.text(255, chars_min=1),
    "lease_duration": _lease,
    "message": _message,
}
RENEW: Final = {"fencing_token": _fence, "lease_duration": _lease, "message": _message}
RELEASE: Final = {
    "fencing_token": _fence,
    "counted": strict.flag,
    "delay_ms": strict.whole(0, DELAY_MS_MAX),
    "reason": _reason,
}
COMPLETE: Final = {"outputs": strict.array, "fencing_token": _fence, "review": strict.flag}
BOUNCE: Final = {"note": strict.text(MESSAGE_CHARS_MAX, chars_min=1)}
FAIL: Final = {"reason": _reason, "fencing_token": _fence}
WITH_REASON: Final = {"reason": _reason}
REOPEN: Final = {"reason": _reason, "dependents": strict.flag}
_FAILURE: Final = {"id": strict.whole(1, strict.INTEGER_MAX), "reason": _reason}


def _failures(name: str, value: Any) -> list[dict[str, Any]]:
    items = strict.array(name, value)
    if not 1 <= len(items) <= FAILURES_MAX:
        raise InvalidInputError(f"{name} must have 1 to {FAILURES_MAX} elements; it has {len(items)}.")
    return [strict.parse_object(item, _FAILURE, required=("id",)) for item in items]


FAIL_MANY: Final = {"items": _failures}


def _facts(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInputError(f"{name} must be a JSON object.")
    size = len(wire.dumps(value).encode())
    if size > META_BYTES_MAX:
        raise InvalidInputError(f"{name} has {size} bytes of JSON; at most {META_BYTES_MAX} are allowed.")
    return value


POST_MESSAGE: Final = {
    "parts": strict.array,
    "kind": strict.one_of(MESSAGE_KINDS),
    "fencing_token": _fence,
    "meta": _facts,
}
SEAL: Final = {"fencing_token": _fence, "digest": strict.lower_hex(64)}
ORGANIZATION: Final = {"slug": strict.slug, "name": strict.text(200, chars_min=1)}
PROJECT: Final = {**ORGANIZATION, "description": strict.text(4_000, nullable=True)}


def _field_names(name: str, value: Any) -> str:
    if value not in wire.TASK_FIELDS:
        raise InvalidInputError(f"{name} names {value[:40]!r}, which is not a field of a task.")
    return str(value)


LIST: Final = {
    "status": strict.listed(strict.one_of(STATUS_OF_ATS_WORD), 9),
    "type": strict.listed(_name, 50),
    "channel": strict.listed(_name, 50),
    "assignee_id": strict.text(255),
    "project_id": strict.digits(1, strict.INTEGER_MAX),
    "ids": strict.listed(strict.digits(1, strict.INTEGER_MAX), LIST_MAX),
    "limit": strict.digits(1, LIST_MAX),
    "offset": strict.digits(0, strict.INTEGER_MAX),
    "after": strict.digits(0, strict.INTEGER_MAX),
    "created_after": strict.moment,
    "updated_after": strict.moment,
    "priority": strict.digits(1, 10),
    "min_priority": strict.digits(1, 10),
    "max_priority": strict.digits(1, 10),
    "search": strict.text(256),
    "claimable": strict.one_of({"true": True}),
    "waiting": strict.one_of({"true": True}),
    "dependent": strict.one_of({"true": True}),
    "sort_by": strict.one_of({word: word for word in ("created_at", "updated_at", "priority", "title")}),
    "sort_dir": strict.one_of({"asc": False, "desc": True}),
    "fields": strict.listed(_field_names, len(wire.TASK_FIELDS)),
}


_PART: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "type": strict.text(64, chars_min=1),
    "content": strict.text(MESSAGE_CHARS_MAX),
    "url": strict.text(2_048),
    "data": strict.json_text(SMALL_BYTES_MAX),
}


def check_parts(parts: list[Any]) -> list[Any]:
    """Return the parts of a message if they are within bounds. Raises InvalidInputError."""
    if not 1 <= len(parts) <= PARTS_MAX:
        raise InvalidInputError(f"parts must have 1 to {PARTS_MAX} elements.")
    for part in parts:
        strict.parse_object(part, _PART, required=("type",))
    chars = sum(len(part.get("content", "")) for part in parts)
    if chars > MESSAGE_CHARS_MAX:
        raise InvalidInputError(f"The message has {chars} characters; at most {MESSAGE_CHARS_MAX} are allowed.")
    return parts
