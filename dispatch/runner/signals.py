"""Signals and messages from other threads, turned into something a ``poll`` can wait for."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEVER_IGNORED: Final = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR2, signal.SIGALRM, signal.SIGTSTP)


def _nothing(_number: int, _frame: Any) -> None:
    return


class Inbox:
    """The self-pipe of one process, and what arrived through it during the present attempt.

    ``terms`` counts SIGTERMs (one asks for a drain, two for a stop at once),
    ``soft_limit`` is Celery's soft time limit (SIGUSR1). Main thread only,
    except ``notify``.
    """

    def __init__(self) -> None:
        self.read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.terms = 0
        self.soft_limit = False

    def notify(self) -> None:
        """Wake whoever polls ``read_fd``. From any thread, and from signal handlers."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._write_fd, b"\0")

    def drain(self) -> None:
        """Empty the pipe."""
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self.read_fd, 4096)) == 4096:
                pass

    def _on_term(self, _number: int, _frame: Any) -> None:
        self.terms += 1
        self.notify()

    def _on_soft_limit(self, _number: int, _frame: Any) -> None:
        self.soft_limit = True
        self.notify()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals here for the length of one attempt, and give them back afterwards.

        The pool installs its own handlers after its start-up hooks ran, hence per
        attempt. Ignored signals get a handler that does nothing: the same for
        this process, but a child starts with the default, because handlers do
        not survive an exec and "ignore" does.
        """
        self.terms = 0
        self.soft_limit = False
        self.drain()
        before = [
            (signal.SIGTERM, signal.signal(signal.SIGTERM, self._on_term)),
            (signal.SIGUSR1, signal.signal(signal.SIGUSR1, self._on_soft_limit)),
        ]
        before += [
            (number, signal.signal(number, _nothing))
            for number in _NEVER_IGNORED
            if signal.getsignal(number) is signal.SIG_IGN
        ]
        try:
            yield
        finally:
            for number, handler in before:
                # None: a handler that was not installed from Python and cannot be put back.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def close(self) -> None:
        """Close the pipe."""
        os.close(self.read_fd)
        os.close(self._write_fd)
