"""The event feed over real sockets, against a service that drops, doubles, reorders, goes silent and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections import Counter
from dataclasses import replace
from typing import Self

import pytest

from dispatch.ats import protocol
from dispatch.ats.feed import Connected, Disconnected, Feed, FeedTiming
from dispatch.ats.model import Actor, Event
from tests.support.fake_ats import FakeAts
from tests.support.processes import PATIENCE_S, eventually
from tests.support.redis import free_port

ME = Actor("agent", "me & co", "Me")
CALM = FeedTiming(reconnect_first_s=0.02, reconnect_max_s=0.05)
"""As it ships, but for the pauses: on a busy machine nothing here is taken for silence that is none."""
SHY = replace(CALM, greeting_s=0.3)
PINGS = replace(CALM, ping_s=0.2, probe_s=0.2)


@pytest.fixture
def ats():
    """A fake ATS with the extensions."""
    with FakeAts(fencing=True) as fake:
        yield fake


class Follower:
    """Collects what a feed yields, in the background."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.items: list = []
        self._counts: Counter = Counter()
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _follow(self) -> None:
        async with contextlib.aclosing(self.feed.run()) as items:
            async for item in items:
                self.items.append(item)
                self._counts[type(item)] += 1
                self._news.set()

    def of(self, kind):
        """Return the items of one kind so far."""
        return [item for item in self.items if isinstance(item, kind)]

    async def wait(self, kind, count: int = 1):
        """Wait for the ``count``-th item of a kind and return it."""
        async with asyncio.timeout(PATIENCE_S):
            while self._counts[kind] < count:
                if self._task.done():
                    self._task.result()
                self._news.clear()
                await self._news.wait()
        return self.of(kind)[count - 1]


def follow(ats, *channels, timing=CALM):
    """Follow the events of some channels."""
    return Follower(Feed(protocol.endpoint(ats.url, token="s3cret"), ME, channels, timing=timing))


async def on(function, *args, **kw):
    """Do something at the fake without blocking this loop."""
    return await asyncio.to_thread(function, *args, **kw)


async def test_our_service_is_asked_for_thin_extended_events(ats):
    """The subscription is in force before Connected comes, with the channels and all extensions the service has."""
    async with follow(ats, "work") as feed:
        connected = await feed.wait(Connected)
        assert connected == Connected(extended=True, seq=0)
        assert ats.subscriptions == [
            {"type": "subscribe", "id": "dispatch", "channels": ["work"], "thin": True, "extended": True}
        ]
        await on(ats.add, channel="other")
        await on(ats.add, channel="work", title="hello")
        event = await feed.wait(Event)
        assert (event.verb, event.task_id, event.channel, event.seq) == ("created", "101", "work", 2)
        assert event.task.title == "hello"


async def test_plain_service_that_never_greets_or_confirms(ats):
    """A foreign service may send neither ``connected`` nor ``subscribed``; the feed works after a short wait."""
    ats.switches.fencing = ats.switches.greet = ats.switches.confirm = False
    async with follow(ats, timing=SHY) as feed:
        assert await feed.wait(Connected) == Connected(extended=False, seq=None)
        assert ats.subscriptions == [{"type": "subscribe", "id": "dispatch"}]
        await on(ats.add)
        assert (await feed.wait(Event)).seq is None


async def test_reconnect_asks_for_what_was_missed(ats):
    """After a cut the feed comes back by itself and passes the last sequence number it has seen."""
    async with follow(ats) as feed:
        await feed.wait(Connected)
        await on(ats.add)
        await feed.wait(Event)
        await on(ats.drop_sockets)
        await feed.wait(Disconnected)
        await feed.wait(Connected, 2)
        assert [frame.get("since") for frame in ats.subscriptions] == [None, 1]


async def test_reconnect_after_a_restart_of_the_service(ats):
    """The service may be away for a while; the feed tries again until it is back, then events flow."""
    async with follow(ats) as feed:
        await feed.wait(Connected)
        await on(ats.stop)
        await feed.wait(Disconnected, 3)
        await on(ats.start)
        await feed.wait(Connected, 2)
        await on(ats.add)
        await feed.wait(Event)


@pytest.mark.parametrize(
    "frame",
    [
        "no json",
        '""',
        "null",
        "[]",
        "7",
        b'{"type":"task.created","task_id":1}',
        "[" * 50_000,
        '{"type":NaN}',
        '{"a":1,"a":2}',
    ],
    ids=lambda frame: repr(frame)[:20],
)
async def test_odd_frame_is_counted_and_ignored(ats, frame):
    """W3: whatever frame comes, the connection stays and the next event arrives."""
    async with follow(ats) as feed:
        await feed.wait(Connected)
        await on(ats.send_frame, frame)
        await on(ats.add)
        await feed.wait(Event)
        assert feed.feed.frames_ignored == 1
        assert feed.of(Disconnected) == []


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x02\xff\xfe", "1007"),
        (b"\xc1\x00", "1002"),
        (b"\x83\x00", "1002"),
        (b"\x80\x01x", "1002"),
        (b"\x81\x7f\x40\x00\x00\x00\x00\x00\x00\x00", "1009"),
        (b"\x81\x7f\x00\x00\x00\x00\x00\x20\x00\x00", "1009"),
    ],
    ids=["invalid utf-8", "reserved bit", "unknown opcode", "stray continuation", "length 2^62", "2 MiB"],
)
async def test_broken_framing_costs_one_reconnect(ats, data, code):
    """W1, W2: a violation of the WebSocket protocol or of the size limit ends the connection; the feed comes back."""
    async with follow(ats) as feed:
        await feed.wait(Connected)
        await on(ats.send_bytes_raw, data)
        assert code in (await feed.wait(Disconnected)).reason
        await feed.wait(Connected, 2)
        await on(ats.add)
        await feed.wait(Event)


async def test_doubled_and_reordered_events_come_through(ats):
    """W4: the feed passes on what comes as it comes; the highest number is remembered."""
    ats.switches.ws_duplicate = 3
    async with follow(ats) as feed:
        await feed.wait(Connected)
        await on(ats.add)
        await feed.wait(Event, 3)
        ats.switches.ws_duplicate, ats.switches.ws_reorder = 1, True
        await on(ats.add)
        await on(ats.add)
        await feed.wait(Event, 5)
        assert [event.seq for event in feed.of(Event)] == [1, 1, 1, 3, 2]
        assert feed.feed.last_seq == 3


async def test_dropped_events_do_not_end_the_feed(ats):
    """W5: a service that sends no events looks like a quiet one; the connection stays."""
    ats.switches.ws_drop = True
    async with follow(ats, timing=replace(PINGS, probe_s=1.0)) as feed:
        await feed.wait(Connected)
        await on(ats.add)
        await asyncio.sleep(1.5)
        assert feed.of(Disconnected) == []
        assert len(ats.subscriptions) == 1


async def test_half_open_connection_is_noticed(ats):
    """A7, W6: a peer that has silently gone is noticed by pings that nobody answers, and the feed reconnects."""
    async with follow(ats, timing=PINGS) as feed:
        await feed.wait(Connected)
        ats.switches.ws_silent = True
        await feed.wait(Disconnected)
        ats.switches.ws_silent = False
        await feed.wait(Connected, 2)


async def test_service_that_answers_no_application_ping_is_left(ats):
    """A service whose connection lives but which says nothing at all any more is given up."""
    ats.switches.pong = False
    async with follow(ats, timing=PINGS) as feed:
        await feed.wait(Connected)
        assert (await feed.wait(Disconnected)).reason == "no answer to a ping"


async def test_service_that_never_answers_the_upgrade(ats):
    """W6: a TCP connection without an answer ends at the open timeout, and the feed tries again."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        feed = Feed(
            protocol.endpoint(f"http://127.0.0.1:{silent.getsockname()[1]}"), ME, timing=replace(CALM, open_s=0.5)
        )
        async with Follower(feed) as following:
            assert (await following.wait(Disconnected, 2)).reason == "the service did not answer in time"


async def test_service_without_websocket(ats):
    """Another service at the address, or none, is one sentence in the reason."""
    async with Follower(Feed(protocol.endpoint(f"http://127.0.0.1:{free_port()}"), ME, timing=CALM)) as following:
        assert (await following.wait(Disconnected)).reason == "connection refused"
    async with Follower(Feed(protocol.endpoint(f"{ats.url}/elsewhere"), ME, timing=CALM)) as following:
        assert (await following.wait(Disconnected)).reason == "the service answered HTTP 404 instead of a WebSocket"


async def test_refused_subscription_is_a_disconnect(ats):
    """A service that answers the subscription with an error does not count as connected."""
    ats.switches.confirm = False
    async with follow(ats, timing=CALM) as feed:

        def refuse() -> None:
            eventually(lambda: ats.subscriptions)
            ats.send_frame(json.dumps({"type": "error", "error": "no such channel"}))

        thread = threading.Thread(target=refuse)
        thread.start()
        assert (await feed.wait(Disconnected)).reason == "the subscription was refused: no such channel"
        thread.join()
        assert feed.of(Connected) == []


async def test_pause_grows_until_a_subscription_succeeds(ats):
    """A6: the pause is set back by a successful subscription, not by an event; failures before it count."""
    await on(ats.stop)
    feed = Feed(protocol.endpoint(ats.url), ME, timing=CALM)
    async with Follower(feed) as following:
        await following.wait(Disconnected, 3)
        assert feed._failures >= 3
        await on(ats.start)
        await following.wait(Connected)
        assert feed._failures == 0


async def test_ten_thousand_events_are_all_delivered(ats):
    """W7: a burst is passed on whole and in order."""
    async with follow(ats) as feed:
        await feed.wait(Connected)
        frame = json.dumps(
            {"type": "task.created", "seq": 1, "task_id": 7, "channel": "c", "data": {"task": {"id": 7}}}
        )

        async def burst() -> None:
            for socket_, _ in ats._sockets:
                for _ in range(10_000):
                    await socket_.send_str(frame)

        await on(ats.run, burst())
        await feed.wait(Event, 10_000)
        assert feed.of(Disconnected) == []
