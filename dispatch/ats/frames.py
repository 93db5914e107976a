"""Frames of the event feed, without I/O: the subscription, keep-alive, and what a frame means.

A feed is a hint, so reading is forgiving: whatever cannot be understood is
None, never an error.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from dispatch.ats.model import Actor, Event, Task, parse_task
from dispatch.errors import GatewayUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dispatch.ats.protocol import Endpoint


def feed_url(where: Endpoint, actor: Actor) -> str:
    """Return the WebSocket URL; the actor travels in the query, a token in a header."""
    query = urlencode({"actor_type": actor.type, "actor_id": actor.id, "actor_name": actor.name})
    return f"ws{where.base_url.removeprefix('http')}/ws?{query}"


def subscribe_frame(
    channels: Iterable[str],
    *,
    extensions: frozenset[str],
    since: int | None,
    verbs: Iterable[str] | None = None,
    thin: bool = True,
) -> str:
    """Return the frame that subscribes to ``channels`` (all when empty) and ``verbs`` (all when None)."""
    frame: dict[str, Any] = {"type": "subscribe", "id": "dispatch"}
    if names := list(channels):
        frame["channels"] = names
    if verbs is not None:
        frame["event_types"] = [f"task.{verb}" for verb in verbs]
    if "events.thin" in extensions:
        frame |= {"thin": thin, "extended": True}
    if since is not None and "events.since" in extensions:
        frame["since"] = since
    return json.dumps(frame)


PING_FRAME: Final = '{"type":"ping"}'


def parse_frame(frame: str | bytes) -> dict[str, Any] | None:
    """Read one frame of the feed; None when it is not a JSON object with a ``type`` or ``event``."""
    if not isinstance(frame, str):
        return None
    try:
        body = json.loads(frame, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict):
        return None
    kind = body.get("type", body.get("event"))
    return body if isinstance(kind, str) else None


def parse_event(body: Mapping[str, Any], *, keep_raw: bool = False) -> Event | None:
    """Read a task event from a frame; None when it is none, or names no task. Never raises."""
    kind = body.get("type", body.get("event"))
    if not isinstance(kind, str) or not kind.startswith("task.") or len(kind) == len("task."):
        return None
    data = body.get("data")
    data = data if isinstance(data, dict) else {}
    task: Task | None = None
    for candidate in (data.get("task"), body.get("task")):
        if isinstance(candidate, dict):
            try:
                task = parse_task(candidate, keep_raw=keep_raw)
            except GatewayUnavailableError:
                continue
            break
    ids = (body.get("task_id"), task.id if task else None, data.get("id"), data.get("task_id"))
    task_id = next((str(i) for i in ids if isinstance(i, int | str) and not isinstance(i, bool) and i != ""), None)
    if task_id is None:
        return None
    seq = body.get("seq")
    return Event(
        verb=kind.removeprefix("task."),
        task_id=task_id,
        task=task,
        channel=_word(body.get("channel")) or (task.channel if task else "") or _word(data.get("channel")),
        seq=seq if isinstance(seq, int) and not isinstance(seq, bool) else None,
        actor_id=_word(body.get("actor_id")) or None,
        actor_name=_word(body.get("actor_name")) or None,
        message=data["message"] if isinstance(data.get("message"), dict) else None,
    )


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _word(value: Any) -> str:
    return value if isinstance(value, str) else ""
