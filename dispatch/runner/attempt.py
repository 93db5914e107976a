"""How an attempt ended, in values and in words. No I/O."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Final

from dispatch.core.retry import EXIT_TEMPFAIL, EndReason
from dispatch.runner.output import EMPTY, Captured

DETAIL_CHARS_MAX: Final = 4_000
STDERR_BYTES_MAX: Final = 65_536
"""How much of stderr is kept."""

# Flags of an attempt.
LEFTOVERS_KILLED: Final = "leftovers_killed"
"""Processes outlived the leader and were killed."""
PIPES_HELD: Final = "pipes_held"
"""Somebody else held stdout or stderr open after the leader had exited."""
KILLED: Final = "killed"
"""TERM was not enough within the grace."""
UNKILLABLE: Final = "unkillable"
"""Processes survived KILL (uninterruptible sleep)."""

_STOP_SIGNALS: Final = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL},
)


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """The end of one attempt.

    ``exit_code`` is None when a signal ended the leader or it never started;
    ``detail`` is a sentence for people, "" on success.
    """

    reason: EndReason
    exit_code: int | None = None
    signal: int | None = None
    stdout: Captured = EMPTY
    stderr: Captured = EMPTY
    flags: frozenset[str] = field(default_factory=frozenset)
    duration_s: float = 0.0
    detail: str = ""
    limit: str = ""
    """What its limits have to do with it, "" for nothing; holds nothing of the task."""


def may_be_shutdown(returncode: int) -> bool:
    """Say whether a leader ended as if somebody stopped the whole host's processes: by signal, or 128 + signal."""
    number = -returncode if returncode < 0 else returncode - 128
    return number in _STOP_SIGNALS


def reason_of_exit(returncode: int) -> EndReason:
    """Classify a leader that ended by itself. ``returncode`` is negative for signals."""
    if returncode == 0:
        return EndReason.SUCCESS
    if returncode < 0:
        return EndReason.SIGNAL
    return EndReason.TEMPFAIL if returncode == EXIT_TEMPFAIL else EndReason.EXIT


def _last_lines(said: str, chars_max: int) -> str:
    text = said.strip()
    return text if len(text) <= chars_max else "..." + text[-(chars_max - 3) :]


def describe(reason: EndReason, returncode: int | None, said: str, *, timeout_s: float, limit: str = "") -> str:
    """Return the sentence about an end: what happened, and what the command said last.

    ``limit`` says what its limits have to do with it.
    """
    what = {
        EndReason.OOM: limit,
        EndReason.IDLE: limit,
        EndReason.PROCESS_LIMIT: limit,
        EndReason.SUCCESS: "",
        EndReason.TIMEOUT: f"timed out after {timeout_s:g} s",
        EndReason.CANCELLED: "cancelled",
        EndReason.LEASE_LOST: "the lease was lost",
        EndReason.SHUTDOWN: "the worker shut down",
    }.get(reason)
    if what is None:
        code = returncode if returncode is not None else 0
        what = f"not now (exit code {code})" if reason is EndReason.TEMPFAIL else f"exit code {code}"
        if code < 0:
            what = f"ended by signal {-code} ({signal_name(-code)})"
    if limit and what and what != limit:
        what = f"{what}; {limit}"
    if not what or reason in (EndReason.CANCELLED, EndReason.LEASE_LOST):
        return what
    # Often it is the question that nobody answered.
    colon = "; it wrote last: " if reason is EndReason.IDLE else ": "
    last = _last_lines(said, DETAIL_CHARS_MAX - len(what) - len(colon))
    return f"{what}{colon}{last}" if last else what


def signal_name(number: int) -> str:
    """Return a signal's name, or its number where it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def cut(text: str) -> str:
    """Cut a reason to what is reported at most."""
    return text if len(text) <= DETAIL_CHARS_MAX else text[: DETAIL_CHARS_MAX - 3] + "..."
