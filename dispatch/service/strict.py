"""Reading what comes from outside: strict JSON, and bodies and queries against a table of fields.

Everything wrong raises InvalidInputError (TooLargeError for sizes) with one
sentence that names the field, what is wrong and what would be right.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn

from dispatch.errors import InvalidInputError, TooLargeError
from dispatch.service import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

DEPTH_MAX: Final = 32
INTEGER_MAX: Final = 2**63 - 1

Parser = "Callable[[str, Any], Any]"
_HEX: Final = re.compile(r"[0-9a-f]+", re.ASCII)
_SLUG: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.IGNORECASE | re.ASCII)
_UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_NUMBER: Final = re.compile(r"[0-9]{1,19}", re.ASCII)


def _refuse_constant(word: str) -> NoReturn:
    raise InvalidInputError(f"{word} is not JSON; use a number or null.")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise InvalidInputError(f"The number {text[:40]} is too large.")
    return number


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise InvalidInputError(f"The JSON object has the key {twice[:80]!r} twice; give it once.")
    return found


_decode: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_finite
).decode


def _walk(value: Any, depth: int) -> None:
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidInputError("A number is infinite or none at all; use a finite number or null.")
    elif isinstance(value, dict | list):
        if depth >= DEPTH_MAX:
            raise InvalidInputError(f"The JSON is nested deeper than {DEPTH_MAX} levels; flatten it.")
        if isinstance(value, dict):
            for key in value:
                check_text(key)
        for item in value.values() if isinstance(value, dict) else value:
            _walk(item, depth + 1)


def check_value(value: Any) -> None:
    """Raise InvalidInputError unless a value that others parsed is JSON as ``parse_json`` allows it."""
    _walk(value, 0)


def check_text(text: str) -> str:
    """Return ``text`` unless it has a NUL or a lone surrogate, which no store keeps."""
    if "\0" in text:
        raise InvalidInputError("A text contains a NUL character (\\u0000); remove it.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidInputError("A text contains half a character (a lone surrogate); send whole characters.") from None
    return text


def parse_json(body: bytes) -> Any:
    """Read strict JSON: UTF-8, no doubled keys, no NaN or infinity, at most DEPTH_MAX levels, no NUL."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise InvalidInputError("The body is not UTF-8.") from None
    try:
        value = _decode(text)
    except RecursionError:
        raise InvalidInputError(f"The JSON is nested deeper than {DEPTH_MAX} levels; flatten it.") from None
    except json.JSONDecodeError as exc:
        raise InvalidInputError(f"The body is not JSON: {exc.msg} at character {exc.pos + 1}.") from None
    except ValueError:
        raise InvalidInputError("The JSON contains a number with too many digits.") from None
    # Only escapes can smuggle a NUL or a surrogate past the decoder, and only brackets make depth.
    if b"\\u" in body or body.count(b"[") + body.count(b"{") > DEPTH_MAX:
        _walk(value, 0)
    return value


def _near(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known) or 'none'}."


def parse_object(
    value: Any, table: Mapping[str, Callable[[str, Any], Any]], *, required: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Read a body against ``table`` (field -> parser); return the fields that are there."""
    if not isinstance(value, dict):
        raise InvalidInputError(f"The body must be a JSON object, not {_kind(value)}.")
    found: dict[str, Any] = {}
    for name, item in value.items():
        parser = table.get(name)
        if parser is None:
            raise InvalidInputError(f"The field {name[:80]!r} is unknown; {_near(name[:80], table)}")
        found[name] = parser(name, item)
    for name in required:
        if name not in found:
            raise InvalidInputError(f"The field {name!r} is missing.")
    return found


def parse_query(pairs: list[tuple[str, str]], table: Mapping[str, Callable[[str, Any], Any]]) -> dict[str, Any]:
    """Read query parameters against ``table``; an empty value counts as not given."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        parser = table.get(name)
        if parser is None:
            raise InvalidInputError(f"The query parameter {name[:80]!r} is unknown; {_near(name[:80], table)}")
        if name in found:
            raise InvalidInputError(f"The query parameter {name!r} is given twice; separate values by commas.")
        if value:
            found[name] = parser(name, check_text(value))
    return found


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number"}
    return names.get(type(value), "null" if value is None else "a number")


def text(chars_max: int, *, chars_min: int = 0, nullable: bool = False) -> Callable[[str, Any], Any]:
    """Accept a text of ``chars_min`` to ``chars_max`` characters; blank is no text where one is needed."""

    def parse(name: str, value: Any) -> str | None:
        if value is None and nullable:
            return None
        if not isinstance(value, str):
            raise InvalidInputError(f"{name} must be a text, not {_kind(value)}.")
        if len(value) > chars_max:
            raise InvalidInputError(f"{name} has {len(value)} characters; at most {chars_max} are allowed.")
        if chars_min and len(value.strip()) < chars_min:
            raise InvalidInputError(f"{name} must not be empty.")
        return value

    return parse


def label(chars_max: int) -> Callable[[str, Any], Any]:
    """Accept a name that can stand in a comma-separated list: no commas, no control characters."""
    accept = text(chars_max, chars_min=1)

    def parse(name: str, value: Any) -> str:
        found: str = accept(name, value)
        if "," in found or not found.isprintable() or found != found.strip():
            raise InvalidInputError(f"{name} must have no commas, no control characters and no blanks around it.")
        return found

    return parse


def whole(low: int, high: int, *, nullable: bool = False) -> Callable[[str, Any], Any]:
    """Accept a whole number from ``low`` to ``high``."""

    def parse(name: str, value: Any) -> int | None:
        if value is None and nullable:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidInputError(f"{name} must be a whole number, not {_kind(value)}.")
        if not low <= value <= high:
            raise InvalidInputError(f"{name} must be from {low} to {high}.")
        return value

    return parse


def flag(name: str, value: Any) -> bool:
    """Accept true or false."""
    if not isinstance(value, bool):
        raise InvalidInputError(f"{name} must be true or false, not {_kind(value)}.")
    return value


def json_text(bytes_max: int) -> Callable[[str, Any], Any]:
    """Accept any JSON of at most ``bytes_max`` bytes and return it as text; null stays None."""

    def parse(name: str, value: Any) -> str | None:
        if value is None:
            return None
        written = wire.dumps(value)
        size = len(written.encode())
        if size > bytes_max:
            raise TooLargeError(f"{name} has {size} bytes of JSON; at most {bytes_max} are allowed.")
        return written

    return parse


def array(name: str, value: Any) -> list[Any]:
    """Accept a list."""
    if not isinstance(value, list):
        raise InvalidInputError(f"{name} must be a list, not {_kind(value)}.")
    return value


def each(item: Callable[[str, Any], Any], count_max: int) -> Callable[[str, Any], Any]:
    """Read an array of one kind of value, without repetition, in order."""

    def parse(name: str, value: Any) -> tuple[Any, ...]:
        found = array(name, value)
        if not 1 <= len(found) <= count_max:
            raise InvalidInputError(f"{name} must have 1 to {count_max} elements; it has {len(found)}.")
        return tuple(dict.fromkeys(item(f"{name}[{at}]", each_value) for at, each_value in enumerate(found)))

    return parse


def slug(name: str, value: Any) -> str:
    """Accept a name that may stand in a path."""
    if not isinstance(value, str) or not _SLUG.fullmatch(value):
        raise InvalidInputError(
            f"{name} must be 1 to 64 letters, digits, '.', '_' or '-', and begin with a letter or digit."
        )
    return value


def lower_hex(digits: int) -> Callable[[str, Any], str]:
    """Accept exactly so many hexadecimal digits, small letters only: a digest has one spelling."""

    def parse(name: str, value: Any) -> str:
        if not isinstance(value, str) or len(value) != digits or not _HEX.fullmatch(value):
            raise InvalidInputError(f"{name} must be {digits} hexadecimal digits in small letters.")
        return value

    return parse


def one_of(words: Mapping[str, Any]) -> Callable[[str, Any], Any]:
    """Accept one of the keys of ``words`` and return what it stands for."""

    def parse(name: str, value: Any) -> Any:
        if not isinstance(value, str) or value not in words:
            raise InvalidInputError(f"{name} must be one of {', '.join(words)}.")
        return words[value]

    return parse


def listed(item: Callable[[str, Any], Any], count_max: int) -> Callable[[str, Any], Any]:
    """Accept comma-separated values of a query parameter."""

    def parse(name: str, value: Any) -> tuple[Any, ...]:
        values = [part.strip() for part in value.split(",") if part.strip()]
        if not values:
            raise InvalidInputError(f"{name} lists nothing; give values separated by commas, or leave it out.")
        if len(values) > count_max:
            raise InvalidInputError(f"{name} lists {len(values)} values; at most {count_max} are allowed.")
        return tuple(item(name, part) for part in values)

    return parse


def digits(low: int, high: int) -> Callable[[str, Any], Any]:
    """Accept a whole number written in a query parameter."""

    def parse(name: str, value: Any) -> int:
        if not _NUMBER.fullmatch(value) or not low <= int(value) <= high:
            raise InvalidInputError(f"{name} must be a whole number from {low} to {high}, not {value[:40]!r}.")
        return int(value)

    return parse


def moment(name: str, value: Any) -> int:
    """Accept an ISO-8601 time (UTC unless it says otherwise) and return ms since the epoch."""
    try:
        when = datetime.fromisoformat(value.replace(" ", "+") if "T" in value else value)
        return int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise InvalidInputError(
            f"{name} must be a time such as 2026-01-31T12:00:00.000Z, not {value[:40]!r}."
        ) from None


def task_ident(value: str) -> int | str | None:
    """Read a task's number or UUID from a path; None when it is neither."""
    if _NUMBER.fullmatch(value):
        number = int(value)
        return number if 0 < number <= INTEGER_MAX else None
    return value.lower() if _UUID.fullmatch(value) else None
