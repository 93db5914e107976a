"""The places of concurrency classes: whose stand for nothing any more. Pure.

A place is taken before its task is claimed, kept while an ingress has the task
in flight or a worker shows that it runs it, and given back when it has ended.
What is left over when a process died in between is *unkept*: nobody who is
there vouches for it. Then the task service is asked, which is the truth.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dispatch.core.lifecycle import ATS_WORD, Status

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Mapping


@dataclass(frozen=True, slots=True)
class Place:
    """One place in a class. Times are those of Redis, seconds since 1970."""

    by: str
    """The ingress that took it; after a loss of Redis it may be whoever holds the task."""
    since: float
    until: float
    text: str = ""
    """As it stands in Redis: it may be given away only while nobody has changed it."""


def parse_place(text: str) -> Place | None:
    """Read a place; None for anything that is not one."""
    try:
        body = json.loads(text)
        return Place(str(body["by"]), float(body["since"]), float(body["until"]), text)
    except (ValueError, TypeError, KeyError):
        return None


def unkept(
    held: Mapping[str, Mapping[str, Place]],
    *,
    me: str,
    in_flight: Container[str],
    present: Container[str],
    running: Container[str],
    ended: Container[str] = (),
) -> Iterator[tuple[str, str, Place]]:
    """Yield (class, task, place) of places that nobody vouches for, as far as ``me``, an ingress, can say.

    ``in_flight`` are its own tasks, ``present`` the ingresses that show themselves,
    ``running`` the tasks that workers show. Another ingress that is there answers for its own, except for tasks that
    have ``ended`` so long ago that it would have given their places back.
    """
    for name, places in held.items():
        for task_id, place in places.items():
            if task_id in in_flight or task_id in running:
                continue
            if place.by == me or place.by not in present or task_id in ended:
                yield name, task_id, place


def stands_for_nothing(status: str | None) -> bool:
    """Say whether a task in this state needs no place that nobody vouches for.

    A claim that may still be started, or that runs on a worker which Redis does
    not show, is in progress until the service gives its lease away; until then its place is taken.
    None, a task that we cannot see, is left to the place's expiry.
    """
    return status is not None and status != ATS_WORD[Status.IN_PROGRESS]
