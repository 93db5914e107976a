"""What sealed tasks wait for: the service cannot know it, an ingress has opened them. Ids and states only, no key."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import redis

from dispatch.ats import answers, protocol
from dispatch.ats.model import parse_task
from dispatch.errors import DispatchError, GatewayRejectedError
from dispatch.ingress.registry import needs_in, prefix_of
from dispatch.preflight.broker import open_redis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatch.ats.model import Task
    from dispatch.cli.options import State

_READ_MAX: Final = 32
_PENDING: Final = "pending"


def with_inner_needs(state: State, tasks: Sequence[Task]) -> list[Task] | None:
    """Return the tasks, sealed ones that wait with what stands inside; None when Redis does not tell."""
    wanted = [task.id for task in tasks if task.sealed and task.status == _PENDING]
    if not wanted:
        return list(tasks)
    try:
        with contextlib.closing(open_redis(state.seen_settings.broker)) as client:
            known = needs_in(client, prefix_of(state.endpoint.base_url), wanted)
    except (redis.RedisError, DispatchError):
        return None
    return [
        replace(task, depends_on=tuple(dict.fromkeys((*task.depends_on, *known.get(task.id, ()))))) for task in tasks
    ]


def waiting_ids(state: State) -> list[str]:
    """Return the ids of all tasks that an ingress keeps back because they wait; [] when Redis does not tell."""
    try:
        with contextlib.closing(open_redis(state.seen_settings.broker)) as client:
            found: Any = client.hgetall(prefix_of(state.endpoint.base_url) + "tasks")
    except (redis.RedisError, DispatchError):
        return []
    return [str(one) for one in found]


def states_of(state: State, names: Sequence[str]) -> dict[str, str | None]:
    """Return the status of tasks, None where there is no such task. Raises the GatewayError family."""
    found: dict[str, str | None] = {}
    for name in names[:_READ_MAX]:
        try:
            found[name] = parse_task(state.client.send(protocol.get(name))).status
        except GatewayRejectedError:
            found[name] = None
    return found


def listed(state: State, ids: Sequence[str], fields: str) -> list[Task]:
    """Return those of the tasks that are sealed, from a service that lists by id."""
    numbers = [name for name in ids if name.isdigit()]
    if not numbers:
        return []
    request = protocol.list_tasks(ids=numbers, fields=fields, limit=len(numbers))
    return [task for task in answers.tasks_of(state.client.send(request)) if task.sealed]
