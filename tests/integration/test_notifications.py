"""Telling people on real parts: a server that is Telegram as far as anybody can see, and Apprise itself."""

from __future__ import annotations

import contextlib
import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.processes import eventually
from tests.support.receiver import Receiver, Reply, Request
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "123456:canary-of-the-token"


def telegram(request: Request) -> Reply:
    """Answer as Telegram does."""
    return Reply(200 if request.path == f"/bot{TOKEN}/sendMessage" else 404, body=b'{"ok":true}')


@pytest.fixture(scope="module")
def server() -> Iterator[Receiver]:
    """Telegram, and the receiver of Apprise's JSON."""
    with Receiver() as receiver:
        receiver.usual = telegram
        yield receiver


@pytest.fixture(scope="module")
def shared(server: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Service, Redis and two ingresses that tell of everything."""
    config = tmp_path_factory.mktemp("config") / "dispatch.toml"
    config.write_text('[[routes]]\ntype = "silent"\nnotify = false\n')
    with contextlib.ExitStack() as held:
        stack = Stack(
            {
                "DISPATCH_CONFIG": str(config),
                "DISPATCH_TELEGRAM_TOKEN": TOKEN,
                "DISPATCH_TELEGRAM_CHAT_ID": "-100",
                "DISPATCH_TELEGRAM_API_URL": server.url,
                "DISPATCH_NOTIFY_ON": "completed,failed,picked_up,cancelled,rejected,in_review",
            }
        )
        held.callback(stack.abort)
        stack.redis.start()
        stack.start_service()
        for name in ("one", "two"):
            process = stack.run(name, ["tests.support.hasty", "ingress"], {"DISPATCH_ACTOR_ID": name})
            process.wait_event("ingress_ready")
        yield stack
        stack.close()


@pytest.fixture
def stack(shared: Stack, server: Receiver) -> Iterator[Stack]:
    """The stack, of which Telegram has heard nothing yet."""
    server.requests.clear()
    server.replies.clear()
    yield shared
    print(shared.report())
    assert not [line for process in shared.processes for line in process.output if TOKEN in line or "canary" in line]


def texts(server: Receiver) -> list[str]:
    """What Telegram was told so far."""
    return [request.json["text"] for request in list(server.requests)]


def cancelled(stack: Stack, title: str, **fields: Any) -> int:
    """Create a task and cancel it."""
    task = int(stack.create(title, tick={}, **fields)["id"])
    stack.call("POST", f"/tasks/{task}/cancel", {"reason": "enough"})
    return task


def sent(stack: Stack) -> int:
    """How many events people were told of so far, by both ingresses."""
    return sum(e["events"] for process in stack.processes for e in process.find("notification_sent"))


def test_markup_is_escaped_and_one_ingress_tells(stack: Stack, server: Receiver) -> None:
    """C12, N4: a hostile title arrives as it is written; two ingresses hear of it and one tells."""
    before = sent(stack)
    task = cancelled(stack, "<b>&</a> \r\n\u202e fake")
    (message,) = server.wait(1)
    assert message.json["chat_id"] == "-100"
    assert message.json["parse_mode"] == "HTML"
    assert message.json["text"] == f"<b>Task #{task} &lt;b&gt;&amp;&lt;/a&gt; fake cancelled</b>\nenough"
    quiet = cancelled(stack, "hush", payload={"quiet": True})
    by_route = cancelled(stack, "hush", type="silent")
    sealed = cancelled(stack, "secret", payload={"encrypted": True, "quiet": True})
    eventually(lambda: any(f"#{sealed} " in text for text in texts(server)), "the encrypted task being told of")
    assert texts(server)[1:] == [f"<b>Task #{sealed} cancelled</b>"]
    eventually(lambda: sent(stack) - before == 2, "both being logged")
    assert not [text for text in texts(server) if f"#{quiet}" in text or f"#{by_route}" in text]


def test_every_kind_of_event(stack: Stack, server: Receiver) -> None:
    """Picked up, waiting for review, completed, rejected, failed: each is told once, and a long answer is cut."""
    first = int(stack.create("one", tick={}, needs_review=True)["id"])
    second = int(stack.create("two", tick={})["id"])
    for task, verb, body in (
        (first, "claim", {}),
        (first, "complete", {"outputs": [{"response": "&" * 10_000}]}),
        (first, "complete", {}),
        (second, "reject", {}),
    ):
        assert stack.call("POST", f"/tasks/{task}/{verb}", body)[0] == 200
    wanted = {(first, "picked up"), (first, "waiting for review"), (first, "completed"), (second, "rejected")}

    def told() -> set[tuple[int, str]]:
        lines = "\n".join(texts(server))
        single = re.findall(r"Task #(\d+) \w+ ([a-z ]+)</b>", lines)
        listed = [(ident, kind) for kind, ident in re.findall(r"^([a-z ]+): #(\d+)", lines, re.MULTILINE)]
        assert len(single + listed) == len(set(single + listed))
        return {(int(ident), kind) for ident, kind in single + listed}

    eventually(lambda: told() == wanted, "all events being told of")
    assert all(len(text) < 25_000 for text in texts(server))


def test_telegram_refuses_and_slows_down(stack: Stack, server: Receiver) -> None:
    """N4: 400 is given up, 429 waits as long as it says, a time-out is tried again; tasks are none the worse."""
    server.replies = [Reply(400, body=b'{"ok":false,"description":"Bad Request"}')]
    lost = cancelled(stack, "lost")
    eventually(lambda: any(p.find("notification_failed", reason="http_400") for p in stack.processes), "the loss")
    server.replies = [Reply(429, body=json.dumps({"parameters": {"retry_after": 2}}).encode()), Reply(delay_s=4.0)]
    task = cancelled(stack, "late")
    eventually(lambda: len(server.requests) >= 4, "the third try")
    late = [request for request in server.requests if "late" in request.json["text"]]
    assert len(late) == 3
    assert late[1].at - late[0].at >= 2
    assert late[2].at - late[1].at >= 0.5
    assert [stack.task(ident)["status"] for ident in (lost, task)] == ["cancelled"] * 2


def test_a_burst_is_told_in_few_messages(stack: Stack, server: Receiver) -> None:
    """N4: 200 tasks that end at once are a handful of messages, a second apart each, and none is forgotten."""
    before = sent(stack)
    tasks = [int(stack.create(f"burst {n}", tick={})["id"]) for n in range(200)]
    began = time.monotonic()
    for task in tasks:
        stack.call("POST", f"/tasks/{task}/cancel")
    took_s = time.monotonic() - began
    eventually(lambda: sent(stack) - before == 200, "all 200 being told of")
    assert len(server.requests) <= 10 + took_s
    gaps = [later.at - earlier.at for earlier, later in zip(server.requests, server.requests[1:], strict=False)]
    # They leave a second apart; on a busy machine one may arrive late.
    assert min(gaps, default=9) > 0.5
    assert sum(gaps) > 0.9 * len(gaps)
    counts = [
        int(found[1]) for text in texts(server) if (found := re.match(r"<b>(\d+) tasks: \d+ cancelled</b>", text))
    ]
    singles = sum(text.startswith("<b>Task #") for text in texts(server))
    assert sum(counts) + singles == 200


def test_apprise_tells_other_places(stack: Stack, server: Receiver) -> None:
    """What Apprise knows is told as well; its URL, which may hold keys, is nowhere in the log."""
    where = f"json://user:canary@127.0.0.1:{server.port}/apprise"
    other = stack.run(
        "other", ["tests.support.hasty", "ingress"], {"DISPATCH_NOTIFY_URLS": where, "DISPATCH_CHANNEL": "b"}
    )
    other.wait_event("ingress_ready")
    stack.call("POST", "/tasks", {"title": "for Apprise", "channel": "b"})
    task = stack.call("GET", "/tasks?channel=b")[1]["tasks"][0]["id"]
    stack.call("POST", f"/tasks/{task}/cancel", {"reason": "enough"})
    eventually(lambda: [r for r in server.requests if r.path.startswith("/apprise")], "Apprise's call")
    (call,) = [request for request in server.requests if request.path.startswith("/apprise")]
    assert (call.json["title"], call.json["message"]) == (f"Task #{task} for Apprise cancelled", "enough")
    assert other.stop() == 0


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"DISPATCH_TELEGRAM_CHAT_ID": ""}, "belong together"),
        ({"DISPATCH_NOTIFY_URLS": "nonsense://canary"}, "Apprise does not understand URL number 1"),
        ({"DISPATCH_CALLBACK_SECRET": "canary"}, "must be whsec_"),
        ({"DISPATCH_CALLBACK_ALLOW_PRIVATE": "10.0.0.0/99"}, "neither a network"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(stack: Stack, env: dict[str, str], sentence: str) -> None:
    """Exit 78 and one sentence, before anything is claimed; the value is not in it."""
    process = stack.run("wrong", ["dispatch", "ingress"], env)
    assert process.wait() == 78
    assert sentence in "\n".join(process.output)
