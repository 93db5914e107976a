"""Parameters of tools: each reads a value strictly and says the same to clients as a JSON schema."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final

from dispatch.core.lifecycle import Status
from dispatch.core.priority import NUMBER_OF
from dispatch.errors import InvalidInputError, TooLargeError
from dispatch.service import strict, tenants, wire
from dispatch.service.rows import Scope
from dispatch.service.tools.model import Param

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

TITLE_CHARS_MAX: Final = 512
DETAIL_CHARS_MAX: Final = 8_000
NOTE_CHARS_MAX: Final = 4_000
BODY_CHARS_MAX: Final = 8_000
META_BYTES_MAX: Final = 32_768
DEPENDENCIES_MAX: Final = 256
LOCK_S_MAX: Final = 86_400

_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_TASK: Final = re.compile(r"task_id|parent_id|depends_on")
"""Parameters that name tasks."""
_SLUG: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_PROJECT: Final = re.compile(rf"(?:({_SLUG})/)?({_SLUG})", re.ASCII)


def _uuid(name: str, value: Any) -> str:
    if not isinstance(value, str) or not _UUID.fullmatch(value):
        hint = ""
        if _TASK.match(name) and re.fullmatch("#?[0-9]+", str(value), re.ASCII):
            hint = f" {value} is a task's number, its id: core_list_tasks with fields task_id and id shows both."
        raise InvalidInputError(f"{name} must be a UUID such as 6f1d3c1e-5d0b-4a57-9c0e-6d1f2b7a4c11.{hint}")
    return value.lower()


UUID: Final = Param(_uuid, {"type": "string", "format": "uuid"})


def _project(name: str, value: Any) -> Scope:
    found = _PROJECT.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise InvalidInputError(
            f"{name} must be 1 to 64 letters, digits, '.', '_' or '-', and begin with a letter or digit;"
            " an organisation and a slash may stand before it."
        )
    return Scope(found[1] or tenants.DEFAULT.org, found[2])


PROJECT: Final = Param(_project, {"type": "string"})


def text(chars_max: int, *, chars_min: int = 0) -> Param:
    """A text of at most ``chars_max`` characters."""
    schema: dict[str, Any] = {"type": "string", "maxLength": chars_max}
    if chars_min:
        schema["minLength"] = chars_min
    return Param(strict.text(chars_max, chars_min=chars_min), schema)


NOTE: Final = text(NOTE_CHARS_MAX)
KEY: Final = text(255, chars_min=1)


def one_of(words: Mapping[str, Any]) -> Param:
    """One of the words; the value is what it stands for."""
    return Param(strict.one_of(words), {"type": "string", "enum": list(words)})


STATUS: Final = one_of({state.value: state for state in Status})
PRIORITY: Final = one_of({word: word for word in NUMBER_OF})


def each(item: Param, count_max: int, *, count_min: int = 0) -> Param:
    """A list without repetition, in order; the value is a tuple."""

    def parse(name: str, value: Any) -> tuple[Any, ...]:
        found = strict.array(name, value)
        if not count_min <= len(found) <= count_max:
            raise InvalidInputError(f"{name} must have {count_min} to {count_max} elements; it has {len(found)}.")
        return tuple(dict.fromkeys(item.parse(f"{name}[{at}]", one) for at, one in enumerate(found)))

    return Param(parse, {"type": "array", "items": item.schema, "maxItems": count_max})


def whole(low: int, high: int, default: int | None = None) -> Param:
    """A whole number; 5.0 is one too, because JSON does not tell them apart."""
    accept = strict.whole(low, high)

    def parse(name: str, value: Any) -> Any:
        return accept(name, int(value) if isinstance(value, float) and value.is_integer() else value)

    schema: dict[str, Any] = {"type": "integer", "minimum": low, "maximum": high}
    if default is not None:
        schema["default"] = default
    return Param(parse, schema)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInputError(f"{name} must be a number.")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found) or abs(found) > 1e300:
        raise InvalidInputError(f"{name} must be a number between -1e300 and 1e300.")
    return found + 0.0  # minus zero becomes zero, which every database keeps


NUMBER: Final = Param(_number, {"type": "number"})


def flag(*, default: bool) -> Param:
    """True or false."""
    return Param(strict.flag, {"type": "boolean", "default": default})


def or_null(param: Param) -> Param:
    """The same, or null, which is not the same as leaving it out."""
    schema = dict(param.schema)
    schema["type"] = [schema["type"], "null"]
    return Param(lambda name, value: None if value is None else param.parse(name, value), schema)


def check_meta(name: str, value: Any) -> dict[str, Any]:
    """Return a JSON object of at most META_BYTES_MAX bytes. Raises InvalidInputError, TooLargeError."""
    if not isinstance(value, dict):
        raise InvalidInputError(f"{name} must be a JSON object.")
    size = len(wire.dumps(value).encode())
    if size > META_BYTES_MAX:
        raise TooLargeError(f"{name} has {size} bytes of JSON; at most {META_BYTES_MAX} are allowed.")
    return value


META: Final = Param(check_meta, {"type": "object"})


def rows_of(params: Mapping[str, Param], required: tuple[str, ...], count_max: int) -> Param:
    """A list of 1 to ``count_max`` objects with their own parameters."""
    table = parsers(params)

    def parse(name: str, value: Any) -> list[dict[str, Any]]:
        found = strict.array(name, value)
        if not 1 <= len(found) <= count_max:
            raise InvalidInputError(f"{name} must have 1 to {count_max} elements; it has {len(found)}.")
        read = []
        for at, item in enumerate(found):
            try:
                read.append(strict.parse_object(item, table, required=required))
            except InvalidInputError as exc:
                raise InvalidInputError(f"{name}[{at}]: {exc}") from None
        return read

    item = {"type": "object", "properties": schemas(params), "required": list(required), "additionalProperties": False}
    return Param(parse, {"type": "array", "maxItems": count_max, "items": item})


def parsers(params: Mapping[str, Param]) -> dict[str, Callable[[str, Any], Any]]:
    """Return the table that ``strict.parse_object`` wants."""
    return {name: param.parse for name, param in params.items()}


def schemas(params: Mapping[str, Param]) -> dict[str, Any]:
    """Return the properties of a JSON schema."""
    return {name: dict(param.schema) for name, param in params.items()}


def input_schema(params: Mapping[str, Param], required: Iterable[str]) -> dict[str, Any]:
    """Return the JSON schema of a tool's arguments."""
    return {
        "type": "object",
        "properties": schemas(params),
        "required": list(required),
        "additionalProperties": False,
    }
