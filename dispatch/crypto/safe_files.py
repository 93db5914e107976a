"""Small JSON files that only their owner may read: read with suspicion, replaced whole, under one lock.

A file is refused when anybody but its owner could have read or written it, and
when it is not whole. It is replaced by rename, so a reader sees the old or the
new one and a crash leaves one of them. Daemon and command line take the same
lock, so neither loses what the other wrote.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import time
from typing import TYPE_CHECKING, Any, Final

from dispatch.errors import ConfigurationError, DispatchError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE_BYTES_MAX: Final = 4_194_304
LOCK_NAME: Final = ".lock"
_LOCK_WAIT_S: Final = 10.0
_LOCK_POLL_S: Final = 0.01
_RACY_S: Final = 0.05
"""A file changed so short ago may change again without its stat showing it, so it is read again."""

Signature = tuple[int, ...]


def _signature(found: os.stat_result) -> Signature:
    return (
        found.st_dev,
        found.st_ino,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_mode,
        found.st_uid,
    )


class SafeDirectory:
    """A directory of such files, for any number of threads and processes.

    Every method raises ConfigurationError, which names the path, what is wrong and what to do.
    """

    def __init__(self, path: Path, *, named_by: str = "DISPATCH_KEYS_DIR") -> None:
        """``named_by`` is the setting or option to change when the directory cannot be used."""
        self.path = path
        self._named_by = named_by
        self._seen: dict[str, tuple[Signature, Any]] = {}

    def check(self) -> bool:
        """Check the directory itself; say whether there is one."""
        try:
            found = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as exc:
            raise ConfigurationError(f"{self.path} cannot be read: {exc.strerror or exc}.") from exc
        _check_directory(self.path, found, self._named_by)
        return True

    def read(self, name: str) -> tuple[Signature | None, Any]:
        """Return a file's signature and its JSON value; (None, None) when it does not exist.

        An equal signature means an unchanged file. The value is shared: do not change it.
        """
        path = self.path / name
        try:
            signature = _signature(os.lstat(path))
            seen = self._seen.get(name)
            if seen is not None and seen[0] == signature:
                return seen
            signature, value, changed_s = self._load(path)
        except (FileNotFoundError, NotADirectoryError):
            self._seen.pop(name, None)
            return None, None
        except OSError as exc:
            raise ConfigurationError(f"{path} cannot be read: {exc.strerror or exc}.") from exc
        if abs(time.time() - changed_s) > _RACY_S:
            self._seen[name] = signature, value
        return signature, value

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other writer out; makes the directory if need be. Raises DispatchError after 10 seconds."""
        self._make()
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            lock = os.open(self.path / LOCK_NAME, flags, 0o600)
        except OSError as exc:
            raise ConfigurationError(f"{self.path} cannot be written to: {exc.strerror or exc}.") from exc
        try:
            deadline_s = time.monotonic() + _LOCK_WAIT_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline_s:
                        raise DispatchError(
                            f"Another process has been changing {self.path} for {_LOCK_WAIT_S:.0f} s; try again."
                        ) from None
                    time.sleep(_LOCK_POLL_S)
            yield
        finally:
            os.close(lock)

    def write(self, name: str, value: Any) -> None:
        """Replace a file whole and durably. Only inside ``locked``."""
        path, fresh = self.path / name, self.path / f"{name}.new"
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            # Left by a crash; nobody else writes while we hold the lock.
            fresh.unlink(missing_ok=True)
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
            self._sync()
        except OSError as exc:
            raise ConfigurationError(f"{path} cannot be written: {exc.strerror or exc}.") from exc
        self._seen.pop(name, None)

    def _sync(self) -> None:
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _make(self) -> None:
        try:
            for path in reversed([path for path in (self.path, *self.path.parents) if not path.exists()]):
                path.mkdir(mode=0o700, exist_ok=True)
        except OSError as exc:
            raise ConfigurationError(
                f"The directory {self.path} cannot be made ({exc.strerror or exc}); set {self._named_by}."
            ) from exc
        self.check()

    def _load(self, path: Path) -> tuple[Signature, Any, float]:
        # Not blocking: a pipe in the place of a file must not stop the daemon.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        if path.is_symlink():
            raise ConfigurationError(f"{path} is a symbolic link; put the file itself there.")
        descriptor = os.open(path, flags)
        try:
            found = os.fstat(descriptor)
            _check_file(path, found)
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                raw = file.read(FILE_BYTES_MAX + 1)
        finally:
            os.close(descriptor)
        if len(raw) > FILE_BYTES_MAX:
            raise ConfigurationError(f"{path} holds more than {FILE_BYTES_MAX} bytes.")
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError):
            raise ConfigurationError(
                f"{path} is no whole JSON document; put a copy of it from a backup there."
            ) from None
        if not isinstance(value, dict):
            raise ConfigurationError(f"{path} is not of the right form: it must hold a JSON object.")
        return _signature(found), value, found.st_ctime


def _check_directory(path: Path, found: os.stat_result, named_by: str) -> None:
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigurationError(f"{path} is not a directory; set {named_by} to another place.")
    if found.st_uid not in (os.geteuid(), 0):
        raise ConfigurationError(
            f"{path} belongs to another user (uid {found.st_uid}); run dispatch as that user, or set {named_by} to"
            " a place of your own."
        )
    if stat.S_IMODE(found.st_mode) & 0o022:
        raise ConfigurationError(
            f"Others may write to {path} (mode {stat.S_IMODE(found.st_mode):04o}), so nothing in it can be trusted."
            f" Make sure that the files in it are yours, then 'chmod 700 {path}'."
        )


def _check_file(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ConfigurationError(f"{path} is no regular file.")
    if found.st_uid != os.geteuid():
        raise ConfigurationError(
            f"{path} belongs to another user (uid {found.st_uid}); run dispatch as that user, or give the file to"
            f" uid {os.geteuid()}."
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigurationError(
            f"{path} is open to others (mode {stat.S_IMODE(found.st_mode):04o}). If somebody else can be on this host,"
            f" make new keys; else 'chmod 600 {path}'."
        )
