"""Frames of the event feed."""

from __future__ import annotations

import json

import pytest

from dispatch.ats import frames, protocol
from dispatch.ats.feed import reconnect_delay_s
from dispatch.ats.model import Actor

ALL = frozenset({"fencing", "events.thin", "events.since"})


def test_url_of_the_feed_carries_the_actor_but_no_token():
    """The WebSocket URL names the actor, percent-encoded; a token never stands in a URL; scope is left out."""
    where = protocol.endpoint("https://x/base", org="o", project="p", token="s3cret")
    url = frames.feed_url(where, Actor("agent", "a&b", "A B"))
    assert url == "wss://x:443/base/ws?actor_type=agent&actor_id=a%26b&actor_name=A+B"


def test_subscription_asks_a_plain_service_for_nothing_it_does_not_know():
    """Extension keys are sent only to a service that announced them; filters only when there are some."""
    plain = json.loads(frames.subscribe_frame(["c"], extensions=frozenset(), since=5))
    assert plain == {"type": "subscribe", "id": "dispatch", "channels": ["c"]}
    ours = json.loads(frames.subscribe_frame([], extensions=ALL, since=5))
    assert ours == {"type": "subscribe", "id": "dispatch", "thin": True, "extended": True, "since": 5}


@pytest.mark.parametrize(
    "frame",
    [
        "no json",
        '""',
        "null",
        "[]",
        "7",
        b'{"type": "task.created", "task_id": 1}',
        "[" * 100_000,
        '{"type": "task.created", "task_id": NaN}',
        '{"type": "task.created", "task_id": 1, "task_id": 2}',
        '{"type": 3}',
        "{}",
        '{"type":"x","n":' + "9" * 5000 + "}",
    ],
    ids=lambda frame: repr(frame)[:24],
)
def test_frame_that_is_no_message_is_none(frame):
    """W3: whatever is not a JSON object with a type, sent as text, is ignored without an error."""
    assert frames.parse_frame(frame) is None


@pytest.mark.parametrize(
    "body",
    [
        {"type": "task.created", "data": {"task": {"id": 7, "channel": "c"}}},
        {"type": "task.created", "task": {"id": "7", "channel": "c"}},
        {"event": "task.created", "task_id": 7, "channel": "c"},
        {"type": "task.created", "data": {"id": 7}, "channel": "c"},
        {"type": "task.created", "data": {"task_id": 7, "channel": "c"}},
        {"type": "task.created", "data": {"task": "odd"}, "task": {"id": 7, "channel": "c"}},
    ],
)
def test_event_in_every_known_form(body):
    """B22: task at data.task or task, id at task_id, data.id or data.task_id, kind at type or event."""
    event = frames.parse_event(body)
    assert (event.verb, event.task_id, event.channel) == ("created", "7", "c")


@pytest.mark.parametrize(
    "body",
    [
        {"type": "pong"},
        {"type": "task."},
        {"type": "task.created"},
        {"type": "task.created", "data": []},
        {"type": "task.created", "task_id": True},
        {"type": "task.created", "task_id": {"a": 1}},
        {"type": ["task.created"]},
    ],
)
def test_frame_that_is_no_event_is_none(body):
    """Control frames, and events that name no task, are no events, and no errors."""
    assert frames.parse_event(body) is None


def test_event_of_our_service():
    """Sequence number, actor and the thin task are read; odd types are left out."""
    body = {"type": "task.claimed", "seq": 9, "task_id": 7, "channel": "c", "actor_id": "a", "actor_name": "A"}
    event = frames.parse_event({**body, "data": {"task": {"id": 7, "status": "in_progress", "fencing_token": 2}}})
    assert (event.seq, event.actor_id, event.actor_name, event.task.fencing_token) == (9, "a", "A", 2)
    assert event.task.raw is None
    odd = frames.parse_event({**body, "seq": "9", "actor_id": 3, "channel": None})
    assert (odd.seq, odd.actor_id, odd.channel) == (None, None, "")


def test_pause_before_a_reconnect_doubles_with_full_jitter_to_a_minute():
    """W6: anything between nothing and 2, 4, 8 ... 60 seconds."""
    assert [reconnect_delay_s(n, 1.0) for n in range(1, 8)] == [2, 4, 8, 16, 32, 60, 60]
    assert reconnect_delay_s(5, 0.0) == 0.0
    assert reconnect_delay_s(10_000, 0.5) == 30.0
