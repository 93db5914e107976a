"""Sealed tasks on a real fleet: which run, which are refused, what senders read and what the log says."""

from __future__ import annotations

import base64
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dispatch.crypto.keys import KeyPair
from dispatch.crypto.refusal import SENTENCE
from dispatch.runner.unsealing import OPEN_SENTENCE
from tests.support import canaries
from tests.support.fake_ats import FakeAts
from tests.support.processes import eventually
from tests.support.sealing import Sealer, trusting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dispatch.crypto.files import KeyFiles
    from tests.support.processes import LogProcess
    from tests.support.stack import Stack

COMMAND = f"{sys.executable} -I -S {Path(canaries.__file__).with_name('confidant.py')}"


class Board:
    """A fleet, and the service that it works for: ours, or a foreign one."""

    def __init__(self, stack: Stack, worker: LogProcess, ats: FakeAts | None) -> None:
        self.stack = stack
        self.worker = worker
        self._ats = ats
        self.files: KeyFiles
        self.senders: dict[str, Sealer]

    def trust(self) -> None:
        """Give the host its keys: alice may all, the others are limited, gone is revoked."""
        limits = {
            "elsewhere": {"channels": frozenset({"other"})},
            "gpu": {"executors": frozenset({"gpu"})},
            "strict": {"encrypted_only": True, "versions": frozenset({2})},
        }
        made = self.stack.directory / "made-keys"
        files, self.senders = trusting(made, "alice", "bob", "gone", *limits, **limits)
        files.revoke_sender("gone", now_s=time.time())
        self.files = type(files)(self.stack.directory / "data" / "keys")
        shutil.copytree(made, self.files.directory)

    def add(self, fields: dict[str, Any]) -> int:
        """Create a task."""
        if self._ats is not None:
            return int(self._ats.add(channel=self.stack.channel, **fields)["id"])
        return int(self.stack.create(**fields)["id"])

    def task(self, ident: int) -> dict[str, Any]:
        """Return a task."""
        return self._ats.tasks[ident] if self._ats is not None else self.stack.task(ident)

    def ended(self, ident: int) -> dict[str, Any]:
        """Wait for a task's end."""
        words = ("completed", "failed")
        return eventually(lambda: (t := self.task(ident))["status"] in words and t, f"the end of {ident}")

    def refused(self, ident: int, refusal: str, sentence: str = SENTENCE) -> None:
        """Check that a task was refused: nothing ran, one sentence for the sender, the code for the operator."""
        task = self.ended(ident)
        assert (task["status"], task["reason"], task["outputs"]) == ("failed", sentence, None), refusal
        line = self.worker.wait_event("sealed_task_refused", task=str(ident))
        assert line["refusal"] == refusal, line
        assert len(self.worker.find("sealed_task_refused", task=str(ident))) == 1
        assert not self.worker.find("attempt_started", task=str(ident))

    def answered(self, ident: int, sealer: Sealer, text: str) -> dict[str, Any]:
        """Check that a task was done, and that its sender reads this; return the sealed answer."""
        task = self.ended(ident)
        assert task["status"] == "completed", task
        assert sealer.read(task["outputs"], ident) == f"{text}\n"
        return dict(task["outputs"][0])


@pytest.fixture(params=["ours", "foreign"])
def board(request: pytest.FixtureRequest, make_stack: Callable[..., Stack]) -> Iterator[Board]:
    """A running fleet that has no keys yet."""
    settings = {"DISPATCH_COMMAND": COMMAND, "DISPATCH_LEASE_MS": "8000"}
    if request.param == "ours":
        stack = make_stack(**settings)
        stack.redis.start()
        stack.start_service()
        stack.start_ingress()
        yield Board(stack, stack.start_worker(3), None)
        return
    with FakeAts() as ats:
        stack = make_stack(DISPATCH_ATS_URL=ats.url, **settings)
        stack.redis.start()
        stack.start_ingress()
        yield Board(stack, stack.start_worker(3), ats)
        stack.close()


def flipped(fields: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a task with one bit of its nonce or ciphertext changed."""
    value = bytearray(base64.b64decode(fields["payload"][name]))
    value[-1] ^= 1
    return {**fields, "payload": {**fields["payload"], name: base64.b64encode(value).decode()}}


def wrong_ones(board: Board) -> list[tuple[dict[str, Any], str]]:
    """Return tasks that must be refused, with the code that the log must have."""
    alice, bob = board.senders["alice"], board.senders["bob"]
    stranger = Sealer("mallory", alice.to)
    said = {"title": "t", "payload": {"a": 1}}
    outside = alice.v2(**said)
    return [
        (flipped(alice.v2(**said), "ciphertext"), "forged"),
        (flipped(alice.v1(**said), "nonce"), "forged"),
        (Sealer("bob", alice.to, alice.pair).v1(**said), "forged"),
        (stranger.v1(**said), "unknown_sender"),
        (stranger.v2(**said), "unknown_sender"),
        (board.senders["gone"].v2(**said), "revoked_sender"),
        (Sealer("alice", KeyPair.make(), alice.pair).v2(**said), "unknown_recipient"),
        ({**outside, "payload": {**outside["payload"], "sender": bob.name}}, "sender_mismatch"),
        (alice.v2(channel="other", **said), "context"),
        ({**alice.v2(**said), "title": "Another"}, "context"),
        ({**outside, "payload": {**alice.v2(**said)["payload"], "callback_url": "https://evil.example"}}, "context"),
        ({**alice.v1(**said), "payload": {**alice.v1(**said)["payload"], "quiet": True}}, "context"),
        (alice.v2(sealed_at_s=time.time() - 3_600, **said), "stale"),
        (alice.v2(title=" "), "content"),
        (board.senders["elsewhere"].v2(**said), "not_permitted"),
        (board.senders["gpu"].v2(**said), "not_permitted"),
        (board.senders["strict"].v1(**said), "version"),
        ({**outside, "payload": {**outside["payload"], "encrypted": "yes"}}, "malformed"),
    ]


class Chains:
    """Tasks behind one sealed task of alice's: hers, bob's and one in the open; and one that can never run."""

    def __init__(self, board: Board) -> None:
        self._board = board
        alice, bob = board.senders["alice"], board.senders["bob"]
        self.needed = board.add(alice.v2(title="t", payload={"says": ["the-secret"]}))
        prompt = {"says": ["<prompt>"]}
        names = (str(self.needed),)
        self.hers, self.his = (board.add(one.v2(title="t", payload=prompt, depends_on=names)) for one in (alice, bob))
        self.plain = board.add({"title": "plain", "payload": {**prompt, "depends_on": [self.needed]}})
        self.lost = board.add(alice.v2(title="t", depends_on=("99999",)))

    def check(self) -> None:
        """A task reads its own sender's results; the others read that there is one."""
        alice, bob = self._board.senders["alice"], self._board.senders["bob"]
        assert "the-secret" in alice.read(self._board.ended(self.hers)["outputs"], self.hers)
        closed = bob.read(self._board.ended(self.his)["outputs"], self.his)
        shown = self._board.ended(self.plain)["outputs"][0]["response"]
        for text in (closed, shown):
            assert f"--- begin dependency-{self.needed}" in text
            assert "The result is sealed" in text
            assert "the-secret" not in text
        assert '"response":"(The result is sealed' in shown
        reason = "Blocked: dependency #99999 (does not exist)"
        assert (self._board.ended(self.lost)["status"], self._board.ended(self.lost)["reason"]) == ("failed", reason)


@pytest.mark.timeout(480)
def test_sealed_tasks_on_a_fleet(board: Board) -> None:
    """C1-C6: what is right is done and answered in the box, what is not is refused before anything runs."""
    sooner = board.add({"title": "Encrypted task", "payload": {"encrypted": True, "sender": "nobody"}})
    board.worker.wait_event("keys_missing", task=str(sooner))
    board.trust()
    board.refused(sooner, "unknown_sender")

    alice, strict = board.senders["alice"], board.senders["strict"]
    hold = board.stack.directory / "hold"
    orders = {"exits": [3, 0], "says": ["one", "two \u00e9"], "holds": ["", str(hold)]}
    sealed = alice.v2(title="t", payload=orders)
    first = board.add(sealed)
    good = board.add(alice.v1(title="shown", payload={"says": ["v1 \u4f60"]}))
    plain = board.add({"title": "plain", "payload": {"says": ["open"]}})
    wrong = [(board.add(fields), refusal) for fields, refusal in wrong_ones(board)]
    wrong_open = board.add({"title": "t", "payload": {"sender": strict.name}})

    chains = Chains(board)
    eventually(hold.exists, "the second attempt")
    copies = [board.add(sealed), board.add({**sealed, "description": "again"})]
    for copy in copies:
        board.refused(copy, "replay")
    hold.unlink()
    board.answered(first, alice, "two \u00e9")
    answer = board.answered(good, alice, "v1 \u4f60")
    assert board.ended(plain)["outputs"] == [{"response": "open\n"}]

    back = {"encrypted": True, "sender": "alice", **answer["encrypted_response"]}
    board.refused(board.add({"title": "Encrypted task", "payload": back}), "reflection")
    for ident, refusal in wrong:
        board.refused(ident, refusal)
    board.refused(wrong_open, "encryption_required", OPEN_SENTENCE)
    chains.check()

    board.files.set_require_encryption(required=True)
    board.refused(board.add({"title": "plain", "payload": {"a": 1}}), "encryption_required", OPEN_SENTENCE)
    board.answered(board.add(strict.v2(title="t", payload={"says": ["still"]})), strict, "still")
    board.files.directory.joinpath("senders.json").chmod(0o644)
    late = board.add(alice.v2(title="t"))
    assert "senders.json" in board.worker.wait_event("keys_unreadable", task=str(late))["error"]
    board.files.directory.joinpath("senders.json").chmod(0o600)
    board.answered(late, alice, "done")
