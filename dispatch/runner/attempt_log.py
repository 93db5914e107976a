"""The whole output of an attempt, in a file on the worker's host."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pathlib import Path

DIRECTORY: Final = "logs"
_FULL: Final = b"\n[... the log ends here: it has reached attempt_log_bytes_max ...]\n"


def path_of(data_dir: Path, task_id: str, attempt: int) -> Path:
    """Return where the log of an attempt is."""
    return data_dir / DIRECTORY / f"{re.sub(r'[^A-Za-z0-9_-]', '_', task_id)[:80]}-{attempt}.log"


class AttemptLog:
    """Appends what a child writes, both streams as they come, and stops at ``bytes_max``.

    Nothing is made before the first byte. An attempt that was given back and came
    again under its number goes on in the same file. A disk that refuses ends the
    log, not the attempt.
    """

    def __init__(self, path: Path, bytes_max: int, log: Any) -> None:
        self.path = path
        self._left = bytes_max
        self._log = log
        self._fd = -1

    def where(self, host: str) -> str:
        """Return the end of a sentence: where somebody finds what is shown nowhere else."""
        return f"more of it is in the log {host}:{self.path}" if self._left > 0 else "no log of it is kept"

    def write(self, chunk: bytes) -> None:
        """Append what was written."""
        if self._left <= 0:
            return
        try:
            if self._fd < 0:
                self._open()
                if self._left <= 0:
                    return
            os.write(self._fd, chunk[: self._left])
            self._left -= len(chunk)
            if self._left <= 0:
                os.write(self._fd, _FULL)
        except OSError as exc:
            self._left = 0
            self._log.warning("attempt_log_failed", path=str(self.path), error=str(exc))

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._fd = os.open(self.path, flags, 0o600)
        except FileNotFoundError:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(self.path, flags, 0o600)
        self._left -= os.fstat(self._fd).st_size
