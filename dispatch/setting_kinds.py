"""What a setting can be: readers of raw values, and how one setting is declared.

A reader takes what stands in a TOML file or in the environment and returns the
value, or raises ValueError with the end of a sentence that begins with the
setting's name.
"""

from __future__ import annotations

import re
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

from dispatch.core import command_line

if TYPE_CHECKING:
    from collections.abc import Callable

NOTIFY_EVENTS: Final = ("completed", "failed", "picked_up", "cancelled", "rejected", "in_review")


class Secret(str):
    """A string that never shows itself: ``repr`` is masked, ``reveal()`` gives the value."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Secret('***')" if self else "Secret('')"

    def reveal(self) -> str:
        """Return the secret's value."""
        return str.__str__(self)

    def __format__(self, spec: str) -> str:
        return format("***" if str.__len__(self) else "", spec)

    def __str__(self) -> str:
        return "***" if str.__len__(self) else ""


_PASSWORD_IN_URL: Final = re.compile(r"(://[^:/@]*):.*@")
_PASSWORD_IN_QUERY: Final = re.compile(r"([?&](?:ssl)?password=)[^&]*", re.IGNORECASE)


def masked_url(url: str) -> str:
    """Return a URL with its password as stars, for messages and logs."""
    return _PASSWORD_IN_QUERY.sub(r"\1***", _PASSWORD_IN_URL.sub(r"\1:***@", url))


class Url(str):
    """A URL whose ``repr`` hides the password; ``str`` is whole, for the libraries that connect."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(masked_url(str(self)))


def reason_of(exc: OSError | UnicodeDecodeError) -> str:
    """Say why a file cannot be read, without the name and the number that stand beside it anyway."""
    return "it is not text in UTF-8" if isinstance(exc, UnicodeDecodeError) else exc.strerror or str(exc)


def secret_in(file: Path) -> str:
    """Return the secret in a file. Raises ValueError with the end of a sentence that begins with the file's name.

    An empty file is a copy that went wrong, and nobody's wish to go without the secret.
    """
    try:
        found = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise ValueError(f"which cannot be read: {reason_of(exc)}") from exc
    if not found:
        raise ValueError("which is empty")
    return found


def text(value: Any) -> str:
    """Read a text."""
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value.strip()


def secret(value: Any) -> Secret:
    """Read a secret."""
    return Secret(text(value))


def names(value: Any) -> tuple[str, ...]:
    """Read a comma-separated list of names."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise ValueError("must be a comma-separated list")
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def address(value: Any) -> str:
    """Read an address to listen on, with its port."""
    found = text(value)
    _, colon, port = found.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port[:6]) > 65_535:
        raise ValueError("must be host:port, such as 127.0.0.1:8700")
    return found


def host(value: Any) -> str:
    """Read an address to listen on, without a port."""
    found = text(value)
    if not found or "/" in found or (found.count(":") == 1 or "]:" in found):
        raise ValueError("must be an address without a port, such as 127.0.0.1")
    return found


def origins(value: Any) -> frozenset[str]:
    """Read the origins of web pages."""
    found = [name.lower().rstrip("/") for name in names(value)]
    for origin in found:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.hostname or f"{parts.scheme}://{parts.netloc}" != origin:
            raise ValueError("must hold origins such as https://tasks.example:8443, comma-separated")
    return frozenset(found)


def argv(value: Any) -> tuple[str, ...]:
    """Read a command line."""
    return command_line.argv_of(value)


def environment_names(value: Any) -> tuple[str, ...]:
    """Read a comma-separated list of names of environment variables that children may see."""
    return command_line.environment_names(names(value))


def flag(value: Any) -> bool:
    """Read true or false."""
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else ""
    if word not in ("true", "false"):
        raise ValueError("must be true or false")
    return word == "true"


def versions(value: Any) -> frozenset[int]:
    """Read versions of the sealed envelope."""
    words = names(",".join(map(str, value)) if isinstance(value, list) else str(value))
    if not words or not set(words) <= {"1", "2"}:
        raise ValueError("must be 1, 2 or 1,2")
    return frozenset(map(int, words))


def plain(bound: float) -> str:
    """Write a bound as people write it, without an exponent."""
    return f"{bound:.15g}"


def number(value: Any, low: float, high: float, what: str = "a number") -> float:
    """Read a number between two bounds; ``what`` names it and its unit."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"must be {what}")
    try:
        found = float(value)
    except ValueError:
        raise ValueError(f"must be {what}") from None
    if not low <= found <= high:
        raise ValueError(f"must be between {plain(low)} and {plain(high)}")
    return found


def seconds(low: float, high: float) -> Callable[[Any], float]:
    """Return a reader of seconds."""
    return lambda value: number(value, low, high, "a number of seconds")


def share(value: Any) -> float:
    """Read a part of the whole, from 0 to 1."""
    return number(value, 0, 1)


def seconds_or_never(low: float, high: float) -> Callable[[Any], float]:
    """Return a reader of seconds after which something ends; 0 is never."""

    def parse(value: Any) -> float:
        found = number(value, 0, high, "a number of seconds")
        if 0 < found < low:
            raise ValueError(f"must be 0, or between {plain(low)} and {plain(high)}")
        return found

    return parse


def milliseconds(low: float, high: float) -> Callable[[Any], float]:
    """Return a reader of milliseconds, which gives seconds."""
    return lambda value: number(value, low, high, "a number of milliseconds") / 1000.0


def whole(low: int, high: int) -> Callable[[Any], int]:
    """Return a reader of whole numbers."""

    def parse(value: Any) -> int:
        found = number(value, low, high, "a whole number")
        if found != int(found):
            raise ValueError("must be a whole number")
        return int(found)

    return parse


def limit(low: int, high: int) -> Callable[[Any], int]:
    """Return a reader of whole numbers between two bounds, or 0 for no limit."""
    parse = whole(0, high)

    def read(value: Any) -> int:
        found = parse(value)
        if 0 < found < low:
            raise ValueError(f"must be 0 or at least {low}")
        return found

    return read


def url(*schemes: str) -> Callable[[Any], Url]:
    """Return a reader of URLs with one of these schemes."""

    def parse(value: Any) -> Url:
        url = Url(text(value).rstrip("/"))
        if schemes and urlsplit(url).scheme not in schemes:
            raise ValueError(f"must start with {' or '.join(s + '://' for s in schemes)}")
        return url

    return parse


def redis(value: Any) -> Url:
    """Read the URL of a Redis. The number of its database is the path, of a socket ``db`` in the query."""
    found = url("redis", "rediss", "redis+socket", "unix")(value)
    parts = urlsplit(found)
    if parts.scheme in ("redis", "rediss"):
        # What stands before the last "@" is a name and a password, which may hold anything.
        database = found.rpartition("@")[2].removeprefix(f"{parts.scheme}://").partition("?")[0].partition("/")[2]
    else:
        database = parse_qs(parts.query).get("db", [""])[0]
    if database and not (database.isascii() and database.isdigit()):
        raise ValueError("must end with the number of a database, such as redis://127.0.0.1:6379/0")
    return found


def database(value: Any) -> Url | None:
    """Read the URL of the task service's store, which may be left out. Every process must find the same file."""
    if not text(value):
        return None
    found = url()(value)
    scheme = found.partition(":")[0]
    if scheme not in ("sqlite", "postgresql", "postgres"):
        raise ValueError("must be sqlite:////path/to/file.db or postgresql://user@host/database")
    if scheme == "sqlite" and not found.startswith(("sqlite:////", "sqlite:///~")):
        raise ValueError("must name a file by its whole path, with four slashes: sqlite:////var/lib/dispatch/tasks.db")
    return found


def collector(value: Any) -> Url | None:
    """Read the URL of a collector, which may be left out. Secrets have no place in it."""
    if not text(value):
        return None
    found = url("http", "https")(value)
    parts = urlsplit(found)
    if not parts.hostname or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("must be a URL such as http://127.0.0.1:4318, without user, password or query")
    if parts.path.endswith("/v1/traces"):
        raise ValueError("must be the base URL, without /v1/traces at its end")
    return found


def ports(value: Any) -> frozenset[int]:
    """Read a comma-separated list of ports."""
    found = names(str(value) if isinstance(value, int) and not isinstance(value, bool) else value)
    if not found or not all(port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65_536 for port in found):
        raise ValueError("must be comma-separated port numbers")
    return frozenset(map(int, found))


def events(value: Any) -> frozenset[str]:
    """Read a comma-separated list of events."""
    found = frozenset(names(value))
    if not found <= set(NOTIFY_EVENTS):
        raise ValueError(f"must be some of {', '.join(NOTIFY_EVENTS)}, comma-separated")
    return found


def path(value: Any) -> Path:
    """Read a path."""
    return Path(text(value)).expanduser()


def place(value: Any) -> Path | None:
    """Read a path that may be left out."""
    return path(value) if text(value) else None


def one_of(*words: str) -> Callable[[Any], str]:
    """Return a reader of one of these words."""

    def parse(value: Any) -> str:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return str(value)

    return parse


def setting(name: str, default: Any, parse: Callable[[Any], Any], meaning: str, *, secret: bool = False) -> Any:
    """Declare one setting: its name without prefix in lower case, default as written by a person, and meaning.

    ``default`` may be a function of no arguments for values that depend on the host.
    """

    def make() -> Any:
        raw = default() if callable(default) else default
        return raw if raw is None else parse(raw)

    return field(
        default_factory=make,
        repr=not secret,
        metadata={"name": name, "default": default, "parse": parse, "meaning": meaning, "secret": secret},
    )
