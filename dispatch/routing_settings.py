"""Reading ``[executors.NAME]``, ``[[routes]]`` and ``[classes.NAME]`` of the TOML file into ``core.routing`` values.

They are tables whose names the operator chooses, so they are no declared
settings; every key and every reference between them is checked here.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from dispatch.core import command_line, template
from dispatch.core.prompt import INTERNAL_FIELDS
from dispatch.core.routing import DEFAULT, TRAIT_CHARS_MAX, Executor, Route, Routing, traits_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

TABLES: Final = ("executors", "routes", "classes")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_FUNCTION: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_URL: Final = re.compile(r"[!-~]+")
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SHOWN_CHARS: Final = 60
_KINDS: Final[Mapping[str, frozenset[str]]] = {
    "command": frozenset({"command", "stdin", "env"}),
    "http": frozenset({"url", "headers"}),
    "python": frozenset({"function", "env"}),
}
_OF_ALL_KINDS: Final = frozenset({"kind", "memory_bytes_max", "processes_max", "idle_s"})
MEMORY_BYTES: Final = (16 * 1_048_576, 1 << 50)
"""Least and most memory that an attempt can be limited to: below, hardly a program starts."""
PROCESSES: Final = (1, 4_000_000)
IDLE_S: Final = (1, 604_800)
"""Shortest and longest quiet that an attempt can be limited to."""
_NEEDED: Final = {"command": "command", "http": "url", "python": "function"}


def _known(where: str, body: Any, names: Collection[str]) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise ValueError(f"{where} must be a table")
    for name in body:
        if name not in names:
            raise ValueError(f"{where}: {name} is not known{_nearest(name, names)}")
    return body


def _nearest(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f". Did you mean {close[0]}?" if close else ""


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("must be text")
    return value.strip()


def _name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("must be a name of letters, digits, '_', '.' and '-'")
    return value


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("must be a list of names")
    return tuple(dict.fromkeys(_name(one) for one in value))


def _argv(value: Any) -> tuple[str, ...]:
    argv = command_line.argv_of(value)
    if not template.names_program(argv):
        raise ValueError("must name the program itself; values of the task may stand in its arguments")
    return argv


def _one_of(*words: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return str(value)

    return parse


def _url(value: Any) -> str:
    url = _text(value)
    try:
        parts = urlsplit(url)
        port_is_right = parts.port is None or parts.port > 0
    except ValueError:
        port_is_right = False
    if not port_is_right or not _URL.fullmatch(url):
        raise ValueError("must be a URL such as https://host:8443/path, in ASCII and without blanks")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ValueError("must be an http or https URL without a user; put credentials into headers")
    return url


def _headers(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise ValueError("must be a table of texts")
    if any(character in f"{name}{text}" for name, text in value.items() for character in "\r\n\0"):
        raise ValueError("must not hold line ends")
    for name, text in value.items():
        variable = text.removeprefix("env:")
        if not _HEADER.fullmatch(name):
            raise ValueError(f"must not hold {name!r}, which is no name of a header")
        if variable != text and not command_line.is_environment_name(variable):
            raise ValueError(f"must name an environment variable after env: in {name}")
        if not text.isascii():
            raise ValueError(f"must hold ASCII only in {name}")
    return dict(value)


def _function(value: Any) -> str:
    if not isinstance(value, str) or not _FUNCTION.fullmatch(value):
        raise ValueError("must look like module:function")
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"must be a whole number between {low} and {high}")
        return value

    return parse


def _limit(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not (value == 0 or low <= value <= high):
            raise ValueError(f"must be 0 for no limit, or a whole number between {low} and {high}")
        return value

    return parse


def _idle_s(value: Any) -> float:
    low, high = IDLE_S
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value == 0 or low <= value <= high):
        raise ValueError(f"must be 0 for no limit, or a number of seconds between {low} and {high}")
    return float(value)


def _timeout_s(value: Any) -> float:
    return _whole(100, 604_800_000)(value) / 1000.0


def _traits(value: Any) -> dict[str, bool | int | str]:
    if not isinstance(value, dict) or not all(isinstance(one, bool | int | str) for one in value.values()):
        raise ValueError("must be a table of texts, whole numbers, true and false")
    for name, wanted in value.items():
        if name in INTERNAL_FIELDS:
            raise ValueError(f"cannot look at {name}, which steers dispatch")
        if not traits_of({name: wanted}):
            raise ValueError(
                f"can never hold for {name}: names and texts have at most {TRAIT_CHARS_MAX} characters, and numbers at"
                " most 16 digits"
            )
    return dict(value)


_EXECUTOR: Final[Mapping[str, Callable[[Any], Any]]] = {
    "kind": _one_of(*_KINDS),
    "command": _argv,
    "stdin": _one_of("prompt", "task", "nothing"),
    "env": command_line.environment_names,
    "url": _url,
    "headers": _headers,
    "function": _function,
    "memory_bytes_max": _limit(*MEMORY_BYTES),
    "processes_max": _limit(*PROCESSES),
    "idle_s": _idle_s,
}
_ROUTE: Final[Mapping[str, Callable[[Any], Any]]] = {
    "channel": _text,
    "type": _text,
    "sender": _text,
    "payload": _traits,
    "executor": _name,
    "queue": _name,
    "timeout_ms": _timeout_s,
    "idle_s": _idle_s,
    "max_attempts": _whole(1, 100),
    "classes": _names,
    "review": _boolean,
    "notify": _boolean,
}


def _parsed(where: str, body: Any, parsers: Mapping[str, Callable[[Any], Any]]) -> dict[str, Any]:
    found = {}
    for name, value in _known(where, body, parsers).items():
        try:
            found[name] = parsers[name](value)
        except ValueError as exc:
            # Headers may be secrets, and so may a part of a URL.
            shown = "" if name in ("headers", "url") else f" (it is {_short(repr(value))})"
            raise ValueError(f"{where}: {name} {exc}{shown}") from None
    return found


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def _executor(name: str, body: Any) -> Executor:
    where = f"[executors.{name}]"
    fields = _parsed(where, body, _EXECUTOR)
    kind = fields.get("kind", "command")
    alien = fields.keys() - _KINDS[kind] - _OF_ALL_KINDS
    if alien:
        raise ValueError(f"{where}: {min(alien)} does not go with kind {kind}")
    if _NEEDED[kind] not in fields:
        raise ValueError(f"{where}: kind {kind} needs {_NEEDED[kind]}")
    return Executor(name=_checked(where, name), **fields)


def _checked(where: str, name: str) -> str:
    try:
        return _name(name)
    except ValueError as exc:
        raise ValueError(f"{where}: the name {exc}") from None


def _route(number: int, body: Any, executors: Collection[str], classes: Collection[str]) -> Route:
    where = f"[[routes]] number {number}"
    fields = _parsed(where, body, _ROUTE)
    if "timeout_ms" in fields:
        fields["timeout_s"] = fields.pop("timeout_ms")
    if fields.get("executor", DEFAULT) not in {*executors, DEFAULT}:
        name = fields["executor"]
        raise ValueError(f"{where}: there is no executor {name}; add [executors.{name}]{_nearest(name, executors)}")
    for name in fields.get("classes", ()):
        if name not in classes:
            raise ValueError(f"{where}: there is no class {name}; add [classes.{name}]{_nearest(name, classes)}")
    return Route(**fields)


def read(
    document: Mapping[str, Any],
    *,
    command: tuple[str, ...],
    queue: str,
    timeout_s: float,
    max_attempts: int,
    idle_s: float = 0.0,
) -> Routing:
    """Return the routing that a TOML document and the settings describe.

    Raises ValueError, which names the table and what would be right; its full stop is left out.
    """
    tables = _known("[executors]", document.get("executors", {}), document.get("executors", {}))
    executors = {name: _executor(name, body) for name, body in tables.items()}
    executors.setdefault(DEFAULT, Executor(command=command))
    classes = {"gpu": 1}
    bodies = document.get("classes", {})
    for name, body in _known("[classes]", bodies, bodies).items():
        where = f"[classes.{_checked('[classes]', name)}]"
        classes[name] = _parsed(where, body, {"limit": _whole(1, 10_000)}).get("limit", 1)
    routes = document.get("routes", [])
    if not isinstance(routes, list):
        raise ValueError("routes must be written as [[routes]]")
    return Routing(
        executors=executors,
        routes=tuple(_route(number, body, executors, classes) for number, body in enumerate(routes, 1)),
        classes=classes,
        queue=queue,
        timeout_s=timeout_s,
        max_attempts=max_attempts,
        idle_s=idle_s,
    )
