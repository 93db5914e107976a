"""The WebSocket: events to whoever subscribed, live or from a number on.

Nothing that a client sends or does not read stops the service: frames that
cannot be understood are answered and ignored, and a client that does not keep
up is closed with 1013 and may come back with ``since``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs

from dispatch.asynchronous import cancel_all
from dispatch.errors import InvalidInputError, OverloadedError, TaskError
from dispatch.log import get_logger
from dispatch.service import history, listeners, pruning, strict, wire
from dispatch.service.access import Access
from dispatch.service.caller import actor_of, authenticate, is_still_good, read_headers, refuse_socket
from dispatch.service.fields import NAME_CHARS_MAX
from dispatch.service.handlers import EXTENSIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.types import Receive, Scope, Send

    from dispatch.service.access import Caller
    from dispatch.service.events import Event
    from dispatch.service.store import Store

FRAMES_MAX: Final = 2_000
CHARS_MAX: Final = 16_777_216
_PAGE: Final = 200
_CLOSE_S: Final = 5.0
_LINGER_S: Final = 30.0
"""How long a client that does not read may take to make room for its close frame."""
_RETRY_S: Final = 1.0
TRY_AGAIN_LATER: Final = 1013
GOING_AWAY: Final = 1001
INTERNAL_ERROR: Final = 1011
POLICY_VIOLATION: Final = 1008
_LOOK_S: Final = 0.5
"""How often the key of an idle connection is looked at."""
_BATCH_MAX: Final = 32
"""How many frames are sent after one look at the key."""
_log: Final = get_logger("service")


def _names(name: str, value: Any) -> frozenset[str]:
    if value is None:
        return frozenset()
    if not isinstance(value, list) or len(value) > 100:
        raise InvalidInputError(f"{name} must be a list of at most 100 texts.")
    item = strict.text(NAME_CHARS_MAX, chars_min=1)
    return frozenset(item(name, part) for part in value)


_SUBSCRIBE: Final = {
    "type": strict.text(64),
    "id": strict.text(255, nullable=True),
    "channels": _names,
    "task_types": _names,
    "event_types": _names,
    "since": strict.whole(0, strict.INTEGER_MAX, nullable=True),
    "thin": strict.flag,
    "extended": strict.flag,
}


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a client wants to hear of; empty sets filter nothing."""

    channels: frozenset[str] = frozenset()
    task_types: frozenset[str] = frozenset()
    event_types: frozenset[str] = frozenset()
    thin: bool = False
    extended: bool = False
    within: frozenset[int] | None = None
    """The projects that the subscriber may see; None means all."""

    def frame(self, event: Event) -> str | None:
        """Return the event as this subscriber gets it, or None."""
        shown = event.type_for(extended=self.extended)
        if (
            shown is None
            or (self.event_types and shown not in self.event_types)
            or (self.channels and event.task.channel not in self.channels)
            or (self.task_types and event.task.type not in self.task_types)
            or (self.within is not None and event.task.project_id not in self.within)
        ):
            return None
        return event.frame(shown, thin=self.thin)


class Feed:
    """The ASGI application behind ``/ws``."""

    def __init__(self, store: Store, origins: frozenset[str] = frozenset()) -> None:
        """``origins`` are the web sites whose pages may connect, where there are keys."""
        self._store = store
        self._origins = origins
        self._connections: set[_Connection] = set()
        self.changed = asyncio.Event()
        """Set whenever somebody begins or ends to listen. Whoever waits for it clears it."""
        store.bus.listen(self._publish)

    def _publish(self, events: Sequence[Event]) -> None:
        for connection in self._connections:
            connection.hear(events)

    def executors(self) -> Counter[str]:
        """Return how many executors listen on each channel; EVERY stands for all of them.

        An executor is whoever wants thin events: what it needs to claim, not to read.
        """
        wanted = [connection.subscription for connection in self._connections]
        return Counter(
            channel for one in wanted if one is not None and one.thin for channel in one.channels or (listeners.EVERY,)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one client until it or the service goes away."""
        await receive()  # websocket.connect
        try:
            heads = read_headers(scope["headers"])
            caller = await authenticate(self._store, heads, scope.get("client"), self._origins)
            caller.require(Access.READ)
            query = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=20)
            actor_of(*(query.get(f"actor_{name}", [""])[0] for name in ("type", "id", "name")))
        except (TaskError, ValueError) as exc:
            await refuse_socket(
                send, exc if isinstance(exc, TaskError) else InvalidInputError("The query cannot be read.")
            )
            return
        await send({"type": "websocket.accept"})
        connection = _Connection(self._store, caller, receive, send, self.changed)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            self.changed.set()

    async def close(self) -> None:
        """Tell every client that the service goes away (1001), and wait until they were told."""
        for connection in self._connections:
            connection.stop(GOING_AWAY)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                while self._connections:
                    await asyncio.gather(*(connection.ended.wait() for connection in list(self._connections)))
                    await asyncio.sleep(0)


class _Connection:
    """One client: a bounded outbox, the subscription, and a replay while it catches up."""

    def __init__(self, store: Store, caller: Caller, receive: Receive, send: Send, changed: asyncio.Event) -> None:
        self.subscription: Subscription | None = None
        self._changed = changed
        self._store = store
        self._caller = caller
        self._receive = receive
        self._send = send
        self._outbox: deque[str] = deque()
        self._chars = 0
        self._filled = asyncio.Event()
        self._drained = asyncio.Event()
        self._live: Subscription | None = None
        self._cursor = 0
        self._replay: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._code = 1000
        self.ended = asyncio.Event()

    async def run(self) -> None:
        """Talk until one side ends it."""
        self._push(json.dumps({"type": "connected", "extensions": EXTENSIONS}))
        tasks = [asyncio.create_task(work()) for work in (self._send_all, self._read_all, self._look, self._stop.wait)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._live = None
            if self._replay is not None:
                tasks.append(self._replay)
            await cancel_all(tasks)
            if self._stop.is_set():
                with contextlib.suppress(Exception):
                    async with asyncio.timeout(_LINGER_S):
                        await self._send({"type": "websocket.close", "code": self._code})
            self.ended.set()

    def stop(self, code: int) -> None:
        """End the conversation with ``code``; what waits in the outbox is dropped."""
        self._live = None
        self._code = code
        self._outbox.clear()
        self._stop.set()

    def hear(self, events: Sequence[Event]) -> None:
        """Take live events; those that the replay has sent already are left out."""
        for event in events:
            if self._live is None:
                return
            if event.seq > self._cursor:
                frame = self._live.frame(event)
                if frame is not None:
                    self._push(frame)

    def _push(self, frame: str) -> None:
        if len(self._outbox) >= FRAMES_MAX or (self._outbox and self._chars + len(frame) > CHARS_MAX):
            self.stop(TRY_AGAIN_LATER)
            return
        self._outbox.append(frame)
        self._chars += len(frame)
        self._filled.set()

    async def _send_all(self) -> None:
        while True:
            while self._outbox:
                # Counted before the look at the key: whatever happened after its end is not among them.
                batch = min(len(self._outbox), _BATCH_MAX)
                if not await self._may_hear():
                    return
                while batch and self._outbox:
                    batch -= 1
                    frame = self._outbox.popleft()
                    self._chars -= len(frame)
                    await self._send({"type": "websocket.send", "text": frame})
            self._drained.set()
            self._filled.clear()
            await self._filled.wait()

    async def _may_hear(self) -> bool:
        """Say whether the client may still hear anything; if not, its connection is closed."""
        while True:
            try:
                is_good = await is_still_good(self._store, self._caller)
            except OverloadedError:
                await asyncio.sleep(_RETRY_S)
                continue
            if not is_good:
                self.stop(POLICY_VIOLATION)
            return is_good

    async def _look(self) -> None:
        """Close the connection soon after its key has ended, even if nothing is to be sent."""
        while not self._stop.is_set() and await self._may_hear():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._stop.wait()

    async def _read_all(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                text = message.get("text")
                if text is None:
                    raise InvalidInputError("Frames must be text.")
                await self._understand(strict.parse_json(text.encode()))
            except TaskError as exc:
                self._push(wire.dumps({"type": "error", "error": str(exc), "code": exc.code}))

    async def _understand(self, frame: Any) -> None:
        kind = frame.get("type") if isinstance(frame, dict) else None
        if kind == "ping":
            self._push('{"type":"pong"}')
        elif kind == "subscribe":
            await self._subscribe(strict.parse_object(frame, _SUBSCRIBE))
        else:
            raise InvalidInputError('A frame must be an object whose type is "subscribe" or "ping".')

    async def _subscribe(self, found: dict[str, Any]) -> None:
        """Replace the subscription. It begins at ``since``, or at this moment."""
        ident, since = found.pop("id", None), found.pop("since", None)
        del found["type"]
        subscription = self.subscription = Subscription(**found, within=self._caller.projects)
        self._changed.set()
        self._live = None
        if self._replay is not None:
            await cancel_all([self._replay])
        newest = self._store.bus.last_seq
        self._push(json.dumps({"type": "subscribed", "id": ident, "seq": newest}))
        self._cursor = newest if since is None else min(since, newest)
        if self._cursor == newest:
            self._live = subscription
        else:
            self._replay = asyncio.create_task(self._catch_up(subscription))
            self._replay.add_done_callback(self._replayed)

    def _replayed(self, replay: asyncio.Task[None]) -> None:
        if not replay.cancelled() and replay.exception() is not None:
            _log.error("replay_failed", exc_info=replay.exception())
            self.stop(INTERNAL_ERROR)

    async def _catch_up(self, subscription: Subscription) -> None:
        """Send what was committed since the cursor, page by page at the client's pace, then go live.

        Of events that are kept no longer it is told that there were some. Between the last look at ``last_seq`` and
        going live nothing is awaited, so nothing falls between the two.
        """
        told = 0
        while self._cursor < self._store.bus.last_seq:
            newest = self._store.bus.last_seq
            cursor = self._cursor
            try:
                gap, events = await self._store.read(
                    lambda tx: (pruning.gap(tx), history.page(tx, cursor, newest, _PAGE))  # noqa: B023
                )
            except OverloadedError:
                await asyncio.sleep(_RETRY_S)
                continue
            if gap > max(cursor, told):
                told = gap
                self._push(json.dumps({"type": "gap", "seq": gap}))
            for event in events:
                frame = subscription.frame(event)
                if frame is not None:
                    self._push(frame)
            self._cursor = events[-1].seq if len(events) == _PAGE else newest
            if self._outbox:
                self._drained.clear()
                await self._drained.wait()
        self._live = subscription
