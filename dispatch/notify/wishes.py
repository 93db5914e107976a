"""Whom a task wants told of its end.

What an encrypted task wants stands in its sealed part; the outer copies of
``callback_url`` and ``quiet`` are anybody's and count for nothing. Who can
unseal passes a reader of their own in the place of ``effective``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dispatch.core.sealed import is_sealed

if TYPE_CHECKING:
    from dispatch.ats.model import Task


@dataclass(frozen=True, slots=True)
class Wishes:
    """``callback_url`` is None where nobody is to be called; ``quiet``: people are not told."""

    callback_url: str | None = None
    quiet: bool = False
    message: str | None = None
    """Names the sealed message that says so: it may be the content of one task only."""


class Reader(Protocol):
    """Reads the wishes of a task."""

    def __call__(self, task: Task) -> Wishes:
        """Return the wishes; must not raise."""
        ...


def effective(task: Task) -> Wishes:
    """Return what a plain task's payload asks for, and nothing for an encrypted one."""
    payload: Any = task.payload
    if not isinstance(payload, dict) or is_sealed(payload):
        return Wishes()
    url = payload.get("callback_url")
    return Wishes(url.strip() if isinstance(url, str) and url.strip() else None, quiet=payload.get("quiet") is True)


def may_ask(task: Task) -> bool:
    """Say whether a task may name somebody to call: as our service decides whether there is a delivery."""
    return is_sealed(task.payload) or effective(task).callback_url is not None
