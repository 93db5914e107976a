"""The event feed: a WebSocket that stays subscribed, whatever happens to it.

The feed wakes, reconciling guarantees: events may be lost, doubled or
reordered. ``Connected`` is delivered after the subscription is in force, so a
consumer that lists the tasks on every ``Connected`` has no gap.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidStatus, WebSocketException

from dispatch.ats import answers, frames
from dispatch.ats.model import Actor, Event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from dispatch.ats.protocol import Endpoint

FRAME_BYTES_MAX: Final = 1024 * 1024
RECONNECT_FIRST_S: Final = 2.0
RECONNECT_MAX_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Connected:
    """The subscription is in force; the consumer should now list what it may have missed."""

    extended: bool
    """Whether the service sends thin events and the ones that plain ATS does not know."""
    seq: int | None
    """Number of the newest event at that moment; None without the extension."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The feed is down; it reconnects by itself."""

    reason: str


Item = Connected | Event | Disconnected


@dataclass(frozen=True, slots=True)
class FeedTiming:
    """How patient the feed is. All seconds."""

    open_s: float = 10.0
    """For the connection, and again for the answer to the subscription."""
    greeting_s: float = 3.0
    """For the ``connected`` frame, which a foreign service may never send."""
    ping_s: float = 30.0
    """Between two pings of the application; a ping without any sign of life until the next ends the connection."""
    probe_s: float = 20.0
    """Between two pings of the WebSocket, and for the answer: a half-open connection is noticed after twice that."""
    reconnect_first_s: float = RECONNECT_FIRST_S
    reconnect_max_s: float = RECONNECT_MAX_S


def reconnect_delay_s(
    failures: int, rand: float, first_s: float = RECONNECT_FIRST_S, max_s: float = RECONNECT_MAX_S
) -> float:
    """Return the pause before the next try: full jitter under a limit that doubles.

    ``failures`` counts from 1 since the last successful subscription, ``rand``
    is uniform in [0, 1).
    """
    return rand * min(first_s * 2.0 ** min(max(failures, 1) - 1, 30), max_s)


class Feed:
    """One subscription to the events of some channels (of all when ``channels`` is empty).

    ``verbs`` names the events to ask for, without ``task.``; None asks for all.
    ``whole`` asks for all of each task, as display needs it, ``raw`` included.
    ``frames_ignored`` counts frames that could not be understood.
    """

    def __init__(
        self,
        where: Endpoint,
        actor: Actor,
        channels: Iterable[str] = (),
        *,
        whole: bool = False,
        verbs: Iterable[str] | None = None,
        timing: FeedTiming | None = None,
    ) -> None:
        self._whole = whole
        self.frames_ignored = 0
        self.last_seq: int | None = None
        self._url = frames.feed_url(where, actor)
        self._headers = {"Authorization": f"Bearer {where.token}"} if where.token else {}
        self._channels = tuple(channels)
        self._verbs = None if verbs is None else tuple(verbs)
        self._timing = timing or FeedTiming()
        self._failures = 0
        self._hurry = asyncio.Event()

    async def run(self) -> AsyncGenerator[Item]:
        """Yield what happens, for ever. Wrap it in ``contextlib.aclosing`` to end it cleanly.

        A slow consumer slows the connection down, it does not fill memory.
        """
        while True:
            reason = ""
            try:
                async with self._connect() as socket, contextlib.aclosing(self._read(socket)) as items:
                    async for item in items:
                        yield item
            except (OSError, TimeoutError, WebSocketException, _GaveUpError) as exc:
                reason = _reason(exc)
            self._failures += 1
            yield Disconnected(reason or "the service closed the connection")
            timing = self._timing
            delay_s = reconnect_delay_s(
                self._failures,
                random.random(),  # noqa: S311 - jitter, no secret
                timing.reconnect_first_s,
                timing.reconnect_max_s,
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._hurry.wait()
            self._hurry.clear()

    def hurry(self) -> None:
        """Try to connect now: the service has been seen alive. Only for a feed that is down."""
        self._hurry.set()

    def _connect(self) -> connect:
        return connect(
            self._url,
            additional_headers=self._headers,
            open_timeout=self._timing.open_s,
            close_timeout=1,
            ping_interval=self._timing.probe_s,
            ping_timeout=self._timing.probe_s,
            max_size=FRAME_BYTES_MAX,
            compression=None,
            proxy=None,
        )

    async def _read(self, socket: ClientConnection) -> AsyncGenerator[Item]:
        """Subscribe, then yield Connected and events until the connection ends."""
        extensions, early = await self._greet(socket)
        since = self.last_seq
        subscription = frames.subscribe_frame(
            self._channels, verbs=self._verbs, extensions=extensions, since=since, thin=not self._whole
        )
        await socket.send(subscription)
        seq, more = await self._confirm(socket, announced=bool(extensions))
        self._failures = 0
        if seq is not None and (since is None or seq < since or "events.since" not in extensions):
            self.last_seq = seq
        heard = _Heard()
        pinger = asyncio.create_task(self._ping(socket, heard))
        try:
            yield Connected(extended="events.thin" in extensions, seq=seq)
            for first in early + more:
                yield self._seen(first)
            async for frame in socket:
                heard.at = time.monotonic()
                event = self._event(frame)
                if event is not None:
                    yield self._seen(event)
        finally:
            pinger.cancel()
            with contextlib.suppress(asyncio.CancelledError, WebSocketException):
                await pinger
        if heard.silent:
            raise _GaveUpError("no answer to a ping")
        raise _GaveUpError(f"closed by the service ({socket.close_code})")

    async def _greet(self, socket: ClientConnection) -> tuple[frozenset[str], list[Event]]:
        """Wait for ``connected``, which says what the service can do; a service without it is a plain one."""
        early: list[Event] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timing.greeting_s):
                while True:
                    body = self._body(await socket.recv())
                    if body is None:
                        continue
                    if body.get("type") == "connected":
                        return answers.extensions_of(body), early
                    if (event := frames.parse_event(body, keep_raw=self._whole)) is not None:
                        early.append(event)
        return frozenset(), early

    async def _confirm(self, socket: ClientConnection, *, announced: bool) -> tuple[int | None, list[Event]]:
        """Wait until the subscription is confirmed; a plain service may do so by its first event or not at all."""
        more: list[Event] = []
        try:
            async with asyncio.timeout(self._timing.open_s if announced else self._timing.greeting_s):
                while True:
                    body = self._body(await socket.recv())
                    if body is None:
                        continue
                    if body.get("type") == "error":
                        raise _GaveUpError(f"the subscription was refused: {str(body.get('error'))[:200]}")
                    if body.get("type") == "subscribed":
                        seq = body.get("seq")
                        return seq if isinstance(seq, int) and not isinstance(seq, bool) else None, more
                    if (event := frames.parse_event(body, keep_raw=self._whole)) is not None:
                        more.append(event)
                        if not announced:
                            return None, more
        except TimeoutError:
            if announced:
                raise _GaveUpError("the subscription was not confirmed in time") from None
            return None, more

    async def _ping(self, socket: ClientConnection, heard: _Heard) -> None:
        while True:
            pinged_at = time.monotonic()
            await socket.send(frames.PING_FRAME)
            await asyncio.sleep(self._timing.ping_s)
            if heard.at < pinged_at:
                heard.silent = True
                await socket.close(1001, "no answer to a ping")
                return

    def _body(self, frame: str | bytes) -> dict[str, object] | None:
        body = frames.parse_frame(frame)
        if body is None:
            self.frames_ignored += 1
        return body

    def _event(self, frame: str | bytes) -> Event | None:
        body = self._body(frame)
        if body is None:
            return None
        event = frames.parse_event(body, keep_raw=self._whole)
        if event is None and str(body.get("type")) not in _CONTROL:
            self.frames_ignored += 1
        return event

    def _seen(self, event: Event) -> Event:
        if event.seq is not None and (self.last_seq is None or event.seq > self.last_seq):
            self.last_seq = event.seq
        return event


_CONTROL: Final = frozenset({"connected", "subscribed", "pong", "ping", "error", "gap"})
"""Frames that are no events. A gap (events that are kept no longer) comes after ``Connected``, whose list covers it."""


class _GaveUpError(Exception):
    """The connection is of no use any more; the text says why."""


@dataclass(slots=True)
class _Heard:
    """When the service was last heard, and whether it stayed silent after a ping."""

    at: float = float("inf")
    silent: bool = False

    def __post_init__(self) -> None:
        self.at = time.monotonic()


def _reason(exc: BaseException) -> str:
    if isinstance(exc, TimeoutError):
        return "the service did not answer in time"
    if isinstance(exc, InvalidStatus):
        return f"the service answered HTTP {exc.response.status_code} instead of a WebSocket"
    if isinstance(exc, InvalidHandshake):
        return "the service did not answer as a WebSocket"
    return answers.cause_of(exc)
