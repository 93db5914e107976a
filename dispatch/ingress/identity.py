"""Who this ingress is: an actor id that no other ingress on this host has at the same time."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from dispatch.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

_INGRESSES_PER_HOST_MAX = 64


class Identity:
    """An actor id held by a lock on a file, so that it is free again the moment its process is gone.

    The first ingress of a host gets ``base``, the next ``base-2``, and so on. The
    ids are stable across restarts: a restarted ingress finds its own claims.
    """

    def __init__(self, actor_id: str, descriptor: int) -> None:
        self.actor_id = actor_id
        self._descriptor = descriptor

    @classmethod
    def take(cls, base: str, directory: Path) -> Identity:
        """Take the first free id. Raises ConfigurationError if the directory cannot be written."""
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for number in range(1, _INGRESSES_PER_HOST_MAX + 1):
                name = base if number == 1 else f"{base}-{number}"
                path = directory / f"{name.replace('/', '_')}.lock"
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(descriptor)
                    continue
                return cls(name, descriptor)
        except OSError as exc:
            raise ConfigurationError(f"{directory} cannot be used for the ingress's lock: {exc.strerror}.") from exc
        raise ConfigurationError(f"{_INGRESSES_PER_HOST_MAX} ingresses run on this host already; that is the limit.")

    def release(self) -> None:
        """Give the id back."""
        os.close(self._descriptor)
