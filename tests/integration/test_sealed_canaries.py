"""After sealed tasks have run, nothing of them is anywhere but in the boxes: a real stack is searched."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import canaries
from tests.support.canaries import Canaries, RedisWatch
from tests.support.processes import eventually
from tests.support.receiver import Receiver, Reply
from tests.support.sealing import trusting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.receiver import Request
    from tests.support.sealing import Sealer
    from tests.support.stack import Stack

COMMAND = f"{sys.executable} -I -S {Path(canaries.__file__).with_name('confidant.py')}"


class Confidence:
    """Sealed tasks of one version with a canary in every corner."""

    def __init__(self, stack: Stack, hidden: Canaries, sealer: Sealer, version: int, receiver: Receiver) -> None:
        self._stack = stack
        self._hidden = hidden
        self._sealer = sealer
        self._version = version
        self._receiver = receiver
        self.hold = stack.directory / f"hold-{version}"
        needed = self._create("needed", says=[self.new("output")])
        self.output = hidden.new(f"v{version} output with a retry")
        self.waiting = self._create(
            "waiting",
            depends_on=(str(needed),),
            exits=[3, 0],
            groans=[self.new("stderr"), ""],
            says=[self.new("output of a failure"), f"{self.output} <prompt>"],
            holds=["", str(self.hold)],
        )
        self.failing = self._create("failing", exits=[4], groans=[self.new("last words")])
        self.needed = needed

    def new(self, name: str) -> str:
        """Return a canary."""
        return self._hidden.new(f"v{self._version} {name}")

    def _create(self, name: str, *, depends_on: tuple[str, ...] = (), **orders: Any) -> int:
        sealed = self._sealer.seal(
            self._version,
            title=self.new(f"title of {name}"),
            description=self.new(f"description of {name}"),
            payload={self.new(f"key of {name}"): self.new(f"payload of {name}"), **orders},
            depends_on=depends_on,
            callback_url=f"{self._receiver.url}/v{self._version}/{name}/{self.new('callback of ' + name)}",
        )
        return int(self._stack.create(**sealed)["id"])

    def held(self) -> int:
        """Wait until the second attempt of the waiting task runs, and return the child's pid."""
        eventually(self.hold.exists, f"the child of version {self._version}")
        return int(self.hold.read_text())

    def check(self) -> None:
        """Let it end; the sender reads everything, in the answers and on the thread."""
        self.hold.unlink()
        done = self._stack.wait_task(self.waiting)
        assert done["status"] == "completed", done
        text = self._sealer.read(done["outputs"], self.waiting)
        output, _, prompt = text.partition(" ")
        assert output == self.output
        assert self._hidden.found_in(prompt.encode()) >= {
            f"v{self._version} {what}"
            for what in ("title of waiting", "description of waiting", "payload of waiting", "output")
        }
        assert json.loads(text.rpartition("\n")[2]) == [{"id": self.needed, "status": "completed", "response": ""}]
        assert self._notes(self.waiting) == ["exit code 3"]
        lost = self._stack.wait_task(self.failing)
        assert (lost["status"], lost["reason"]) == ("failed", "Exceeded max retry attempts (3): exit code 4")
        assert self._notes(self.failing) == ["exit code 4"] * 3

    def check_told(self) -> None:
        """Whom the sealed part names was called once for each end, and told that it ended and nothing else."""
        for ident, name, status in ((self.waiting, "waiting", "completed"), (self.failing, "failing", "failed")):
            (called,) = eventually(lambda name=name: self._called(name), f"a call about {name}")
            body = called.json
            assert (body["task_id"], body["status"], body["result"]) == (ident, status, None)
            assert body["encrypted"] is True

    def _called(self, name: str) -> list[Request]:
        return [one for one in list(self._receiver.requests) if one.path.startswith(f"/v{self._version}/{name}/")]

    def _notes(self, ident: int) -> list[str]:
        """Return how the sealed notes begin that only the sender reads; each holds a canary from stderr."""
        said = [one for one in thread_of(self._stack, ident) if one["kind"] == "log"]
        texts = [self._sealer.read(json.loads(one["parts"][0]["content"]), ident) for one in said]
        assert all(self._hidden.found_in(text.encode()) for text in texts)
        return [text.partition(": ")[0] for text in texts]


def told_outside(receiver: Receiver) -> Iterator[tuple[str, bytes]]:
    """Yield headers and body of callbacks and of messages to people, and of the latter the path too."""
    for one in list(receiver.requests):
        is_call = one.path.startswith("/v")
        yield f"{'callback' if is_call else 'message'}", json.dumps(one.headers).encode() + one.body
        if not is_call:
            yield "path of a message", one.path.encode()


def thread_of(stack: Stack, ident: int) -> list[dict[str, Any]]:
    """Return the messages of a task."""
    return list(stack.call("GET", f"/tasks/{ident}/messages")[1]["messages"])


def everywhere(stack: Stack, keys: Path, watch: RedisWatch, receiver: Receiver) -> Iterator[tuple[str, bytes]]:
    """Yield every place outside the key files where something could have been left."""
    yield from canaries.files(stack.directory, without=[keys])
    yield from watch.places()
    yield from ((f"log of {one.name}", "\n".join(one.output).encode()) for one in stack.processes)
    yield from canaries.processes(stack.leftovers())
    yield from told_outside(receiver)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Whom callbacks reach, and Telegram as far as anybody can see."""
    with Receiver() as found:
        found.usual = lambda _request: Reply(body=b'{"ok": true, "result": {}}')
        yield found


@pytest.mark.timeout(480)
def test_nothing_of_a_sealed_task_is_left_anywhere(make_stack: Callable[..., Stack], receiver: Receiver) -> None:
    """C2, C8: with dependency, retry, failure, callbacks and messages, while a child runs and afterwards."""
    stack = make_stack(
        DISPATCH_COMMAND=COMMAND,
        DISPATCH_LOG_LEVEL="debug",
        DISPATCH_CALLBACK_ALLOW_HTTP="true",
        DISPATCH_CALLBACK_ALLOW_PRIVATE="127.0.0.1",
        DISPATCH_CALLBACK_PORTS=str(receiver.port),
        DISPATCH_TELEGRAM_TOKEN="12345:a-token",
        DISPATCH_TELEGRAM_CHAT_ID="-100",
        DISPATCH_TELEGRAM_API_URL=receiver.url,
    )
    temporary = stack.directory / "tmp"
    temporary.mkdir()
    stack.env["TMPDIR"] = str(temporary)
    keys = stack.directory / "data" / "keys"
    _, sealers = trusting(keys, "alice")
    hidden, open_ones = Canaries(), Canaries()
    hidden.add("private key of the dispatcher", sealers["alice"].to.private)
    hidden.add("private key of the sender", sealers["alice"].pair.private)
    stack.start(slots=3)
    with RedisWatch(stack.redis.client()) as watch:
        told = [Confidence(stack, hidden, sealers["alice"], version, receiver) for version in (1, 2)]
        children = [one.held() for one in told]
        assert set(children) <= set(stack.leftovers())
        # A task in the open that began later shows what it writes: the sealed ones had the time to do so.
        hold = temporary / "plain.pid"
        orders = {"says": [open_ones.new("output")], "holds": [str(hold)]}
        plain = stack.create(open_ones.new("title"), payload=orders)["id"]
        eventually(lambda: [one for one in thread_of(stack, plain) if one["kind"] == "log"], "live output")
        # Key files are open only while they are read, and never in a child.
        assert not [place for place, data in canaries.processes(children) if str(keys).encode() in data]
        assert hidden.found(everywhere(stack, keys, watch, receiver)) == set()
        hold.unlink()
        for one in told:
            one.check()
        for one in told:
            one.check_told()
        eventually(lambda: [one for one in list(receiver.requests) if one.path.endswith("/sendMessage")], "a message")
        assert stack.wait_task(plain)["status"] == "completed"
        assert hidden.found(everywhere(stack, keys, watch, receiver)) == set()
        # The search finds what is there: words in the open, and the key in its file.
        database = {
            name for name, place in open_ones.found(everywhere(stack, keys, watch, receiver)) if "tasks.db" in place
        }
        assert database == {"title", "output"}
        assert {name for name, _ in hidden.found(canaries.files(keys))} == {"private key of the dispatcher"}
    # What was only in memory is on disk afterwards.
    for process in reversed(stack.processes):
        process.stop()
    stack.redis.stop()
    assert hidden.found(canaries.files(stack.directory, without=[keys])) == set()
