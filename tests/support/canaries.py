"""Words that must not be found, and everywhere that they are looked for.

A canary is looked for as it is, in hexadecimal and in base64, in whatever
position it stands there. Places are files, processes and what a Redis was told.
"""

from __future__ import annotations

import base64
import contextlib
import secrets
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import redis

FILE_BYTES_MAX = 256 * 1024 * 1024


def word(name: str) -> str:
    """Return a canary that is found nowhere by chance; its name is for messages."""
    return f"{name.replace(' ', '_')}-{secrets.token_hex(12)}"


def spellings(value: bytes) -> set[bytes]:
    """Return every form in which a value is looked for."""
    found = {value, value.hex().encode(), value.hex().upper().encode()}
    for before in range(3):
        text = base64.b64encode(b"\0" * before + value)
        # The letters at the edges depend on what stands beside them.
        inner = text[-(-8 * before // 6) :].rstrip(b"=")[:-1]
        found |= {inner, inner.translate(bytes.maketrans(b"+/", b"-_"))}
    return found


class Canaries:
    """What is looked for: name -> value."""

    def __init__(self) -> None:
        self._forms: dict[str, set[bytes]] = {}

    def add(self, name: str, value: str | bytes) -> None:
        """Look for this as well."""
        self._forms[name] = spellings(value.encode() if isinstance(value, str) else value)

    def new(self, name: str) -> str:
        """Make a word and look for it."""
        text = word(name)
        self.add(name, text)
        return text

    def found_in(self, data: bytes) -> set[str]:
        """Return the names of those that stand in the data."""
        return {name for name, forms in self._forms.items() if any(form in data for form in forms)}

    def found(self, places: Iterable[tuple[str, bytes]]) -> set[tuple[str, str]]:
        """Return (name, place) of everything that was found."""
        return {(name, place) for place, data in places for name in self.found_in(data)}


def files(*roots: Path, without: Iterable[Path] = ()) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every file below the roots, and the names themselves."""
    left_out = set(without)
    for root in roots:
        for path in root.rglob("*"):
            if left_out & {path, *path.parents}:
                continue
            yield f"name of {path}", str(path).encode()
            with contextlib.suppress(OSError):
                if path.is_file() and not path.is_symlink() and path.stat().st_size <= FILE_BYTES_MAX:
                    yield str(path), path.read_bytes()


def processes(pids: Iterable[int]) -> Iterator[tuple[str, bytes]]:
    """Yield the command lines and environments of processes, and where their descriptors lead."""
    for pid in pids:
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                yield f"/proc/{pid}/{name}", Path(f"/proc/{pid}/{name}").read_bytes()
        # A process may end while it is looked at.
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    yield str(descriptor), str(descriptor.readlink()).encode()


class RedisWatch:
    """Everything that a Redis is told from now on, and what it holds. Close it before the server stops."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._told: list[bytes] = []
        self._monitor = client.monitor()
        self._monitor.__enter__()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        # Redis writes each command as a text of its own; a canary has no character that it would escape.
        with contextlib.suppress(Exception):
            while True:
                self._told.append(self._monitor.connection.read_response())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._monitor.connection.disconnect()
        self._thread.join(60)
        self._client.close()

    def places(self) -> Iterator[tuple[str, bytes]]:
        """Yield what it was told and a dump of every key."""
        yield "what Redis was told", b"\n".join(self._told)
        for key in self._client.scan_iter(count=1000):
            yield f"Redis key {key!r}", key + (self._client.dump(key) or b"")
