"""Telling people what happened to tasks: from the events of the feed to the queues of the chats.

Best effort, and beside everything else: events that come faster than they can
be looked up are only counted. Of several ingresses one tells of an event: the
first to say so in Redis.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError

from dispatch.asynchronous import cancel_all
from dispatch.ats import answers, protocol
from dispatch.ats.fences import service_key
from dispatch.ats.model import parse_task
from dispatch.broker import TOLD_KEY
from dispatch.core.lifecycle import ATS_WORD, Status
from dispatch.core.results import text_of
from dispatch.core.sealed import is_sealed
from dispatch.errors import GatewayError, GatewayRejectedError
from dispatch.notify import wishes
from dispatch.notify.chat import Line
from dispatch.notify.message import DETAIL_CHARS_MAX, Notice

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis.asyncio

    from dispatch.ats.aclient import AsyncClient
    from dispatch.ats.model import Event, Task
    from dispatch.notify.chat import Chat

TOLD_KEEP_S: Final = 3_600
"""How long it is remembered that an event was told."""
_EVENTS_MAX: Final = 2_000
_AT_ONCE: Final = 20
"""How many tasks are looked up with one call: payloads may be large."""
_AGAIN_S: Final = 2.0
_DRAIN_S: Final = 2.0
_FIELDS: Final = "id,title,channel,status,reason,payload,completed_at"
_ENDS: Final = frozenset(
    ATS_WORD[state] for state in (Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.SKIPPED)
)
_IN_REVIEW: Final = ATS_WORD[Status.IN_REVIEW]


@dataclass(frozen=True, slots=True)
class _Seen:
    """An event worth telling. ``mark`` tells it from others of its kind, "" where the service does not number them."""

    task_id: str
    kind: str
    mark: str


def kind_of(event: Event) -> str | None:
    """Return which of ``notify_on`` an event is, or None."""
    task = event.task
    if event.verb in _ENDS:
        return event.verb
    if task is None:
        return None
    if event.verb == "claimed":
        return "picked_up" if task.attempts == 0 else None
    if event.verb in ("updated", "recovered") and task.status == _IN_REVIEW:
        return "in_review"
    return "failed" if event.verb == "recovered" and task.status == ATS_WORD[Status.FAILED] else None


class Notices:
    """Tells the chats of one ingress while ``run`` runs; without chats it does nothing."""

    def __init__(
        self,
        chats: Sequence[Chat],
        client: AsyncClient,
        redis_client: redis.asyncio.Redis,
        *,
        on: frozenset[str],
        lists_fields: bool,
        effective: wishes.Reader = wishes.effective,
        log: Any,
    ) -> None:
        self._lines = [Line(chat, self._turn, log) for chat in chats]
        self._client = client
        self._redis = redis_client
        self._prefix = f"{TOLD_KEY}{service_key(client.endpoint.base_url)}:"
        self._on = on if chats else frozenset[str]()
        self._lists_fields = lists_fields
        self._effective = effective
        self._log = log
        self._seen: asyncio.Queue[_Seen] = asyncio.Queue(_EVENTS_MAX)
        self._missed = 0
        self.verbs = ("claimed",) if "picked_up" in self._on else ()
        """What it wants to hear besides what the ingress hears anyway."""

    def on_event(self, event: Event) -> None:
        """Take one event of the feed. Returns at once."""
        kind = kind_of(event)
        if kind not in self._on or kind is None:
            return
        mark = "" if event.seq is None else str(event.seq)
        if kind == "in_review" and event.task is not None:
            # Whatever is changed while it waits for review is no other event.
            mark = f"token-{event.task.fencing_token}"
        try:
            self._seen.put_nowait(_Seen(event.task_id, kind, mark))
        except asyncio.QueueFull:
            self._missed += 1

    async def run(self) -> None:
        """Tell, for ever."""
        loops = [asyncio.create_task(line.run(), name="chat") for line in self._lines]
        try:
            while True:
                batch = [await self._seen.get()]
                with contextlib.suppress(asyncio.QueueEmpty):
                    while len(batch) < _AT_ONCE:
                        batch.append(self._seen.get_nowait())
                await self._tell(batch)
                for _ in batch:
                    self._seen.task_done()
        finally:
            await cancel_all(loops)

    async def drain(self) -> None:
        """Give what waits a moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                await self._seen.join()
                for line in self._lines:
                    await line.idle.wait()

    async def _turn(self, chat: Chat) -> None:
        """Wait until nobody, here or in another ingress, has sent to the chat for a while."""
        key = f"{self._prefix}turn:{chat.name}"
        try:
            while not await self._redis.set(key, "1", nx=True, px=round(chat.every_s * 1000)):
                left_ms = await self._redis.pttl(key)
                await asyncio.sleep(max(left_ms, 10) / 1000)
        except (RedisError, OSError):
            await asyncio.sleep(chat.every_s)

    async def _tell(self, batch: list[_Seen]) -> None:
        is_delayed = False
        while True:
            try:
                notices = await self._notices_of(batch)
                break
            except (GatewayError, RedisError, OSError) as exc:
                if not is_delayed:
                    self._log.info("notices_delayed", events=len(batch), reason=str(exc) or type(exc).__name__)
                is_delayed = True
                await asyncio.sleep(_AGAIN_S)
            except Exception as exc:  # noqa: BLE001  A mistake here must not end the ingress.
                self._log.error("notices_broken", events=len(batch), reason=type(exc).__name__)
                return
        missed, self._missed = self._missed, 0
        for line in self._lines:
            line.put(notices, missed)

    async def _notices_of(self, batch: list[_Seen]) -> list[Notice]:
        """Return what this ingress is to tell of some events."""
        tasks = await self._look_up({seen.task_id for seen in batch})
        ours = [seen for seen in batch if seen.task_id in tasks and await self._is_ours(seen, tasks)]
        return [
            notice_of(seen.kind, tasks[seen.task_id]) for seen in ours if not self._effective(tasks[seen.task_id]).quiet
        ]

    async def _look_up(self, ids: set[str]) -> dict[str, Task]:
        """Read the tasks: one with its outputs, several without."""
        if len(ids) > 1 and self._lists_fields:
            found = await self._client.send(protocol.list_tasks(ids=sorted(ids), fields=_FIELDS, limit=len(ids)))
            return {task.id: task for task in answers.tasks_of(found)}
        tasks = {}
        for task_id in ids:
            with contextlib.suppress(GatewayRejectedError):
                tasks[task_id] = parse_task(await self._client.send(protocol.get(task_id)))
        return tasks

    async def _is_ours(self, seen: _Seen, tasks: dict[str, Task]) -> bool:
        """Say whether this ingress is the one that tells of an event."""
        mark = seen.mark or str((tasks[seen.task_id].raw or {}).get("completed_at"))
        key = f"{self._prefix}{seen.task_id}:{seen.kind}:{mark}"
        return bool(await self._redis.set(key, "1", nx=True, ex=TOLD_KEEP_S))


def notice_of(kind: str, task: Task) -> Notice:
    """Return what people are told of a task; of an encrypted one its number only."""
    if is_sealed(task.payload):
        return Notice(task.id, kind)
    detail = ""
    if task.status == kind:
        detail = text_of(task.outputs) if kind == "completed" and task.outputs is not None else task.reason or ""
    return Notice(task.id, kind, task.title, task.channel, detail[: 4 * DETAIL_CHARS_MAX])
