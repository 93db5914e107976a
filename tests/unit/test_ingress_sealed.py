"""What the ingress sees in sealed tasks, from thin and whole news, with and without keys."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from dispatch.ats.model import Event, Task
from dispatch.core.lanes import Lanes
from dispatch.core.routing import Routing, TaskTraits, choose
from dispatch.errors import ConfigurationError
from dispatch.ingress.intake import Errands, Intake
from dispatch.ingress.ledger import Ledger
from dispatch.ingress.sealed import Sealed, Seen
from dispatch.ingress.waiting_tasks import WaitingTasks
from tests.support.sealing import Sealer, trusting

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime.now(UTC)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    """Let each test have its own now: what is sealed five minutes after a task was created is refused as stale."""
    global NOW  # noqa: PLW0603 - the file may have been read long before its tests run
    NOW = datetime.now(UTC)


UUID = "123e4567-e89b-42d3-a456-426614174000"


class Bench:
    """An intake on a service that shows tasks thin, as ours does; ``service`` is what it would show whole."""

    def __init__(self, path: Path) -> None:
        self.files, sealers = trusting(path / "keys", "ann")
        self.ann: Sealer = sealers["ann"]
        self.trust: Any = self.files.trust
        self.sealed = Sealed(self._trusted, is_thin=True, knows_needs=True, log=structlog.get_logger())
        self.waiting = WaitingTasks(fail=lambda *_: None, kick=lambda: None)
        self.backlog = Lanes(choose(Routing(), TaskTraits("")))
        self.looked: list[str] = []
        self.registered: list[str] = []
        self.intake = Intake(
            channels=("test",),
            backlog=self.backlog,
            ledger=Ledger(),
            routing=Routing(),
            clock_offset_s=lambda: 0.0,
            errands=Errands(lambda _: None, self.looked.append, self.registered.append),
            waiting=self.waiting,
            sealed=self.sealed,
        )
        self.service: dict[str, Task] = {}

    def _trusted(self) -> Any:
        return self.trust()

    def whole(self, ident: str, *needs: str, **known: Any) -> Task:
        """Have a sealed task on the service, and return it whole."""
        fields = self.ann.v2(title="secret", depends_on=needs)
        body = {"channel": "test", "status": "pending", "created_at": NOW, "updated_at": NOW, "sealed": True}
        self.service[ident] = Task(id=ident, **{**body, **fields, **known})
        return self.service[ident]

    def thin(self, ident: str, **known: Any) -> Task:
        """Return the task as an event shows it."""
        return replace(self.service[ident], payload=None, **known)

    def hear(self, ident: str, verb: str = "created", *, claimable: bool = False, **known: Any) -> None:
        """Let news arrive, and then whatever the ingress went to read."""
        task = self.thin(ident, **known)
        if claimable:
            self.intake.on_task(task, claimable=True)
        else:
            self.intake.on_event(Event(verb, ident, task, "test", None, None))
        asked, self.looked[:] = list(self.looked), []
        for one in asked:
            self.intake.on_task(self.service[one], read_now=True)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A bench that knows nothing yet."""
    return Bench(tmp_path)


def test_a_sealed_task_is_read_once_and_waits(bench: Bench):
    """Neither a listing as claimable nor news of readiness frees it; its dependency does; edits are read anew."""
    bench.whole("9", "1", "2")
    bench.intake.on_task(bench.thin("9"), claimable=True)
    assert bench.looked == ["9"]
    assert len(bench.backlog) == 0
    bench.hear("9")
    assert bench.waiting.get("9").needs == ("1", "2")
    assert bench.waiting.hidden == {"9"}
    for _ in range(2):
        bench.hear("9", claimable=True)
        bench.hear("9", "ready")
    assert not bench.waiting.to_settle
    assert "9" in bench.waiting
    bench.whole("9", "3")
    bench.hear("9", "updated")
    assert bench.waiting.get("9").needs == ("3",)
    bench.waiting.release("9")
    bench.hear("9", claimable=True)
    assert "9" in bench.backlog
    bench.hear("9", "completed", status="completed")
    assert len(bench.sealed) == 0


def test_what_was_changed_is_not_claimed_by_old_knowledge(bench: Bench):
    """Between an edit and the look at it a task is no candidate, and a claim that came first is given back."""
    bench.whole("9")
    bench.hear("9")
    assert "9" in bench.backlog
    assert bench.sealed.at_claim(bench.thin("9")) == Seen(bench.thin("9"), sender="ann")
    bench.intake.on_event(Event("updated", "9", bench.thin("9"), "test", None, None))
    assert "9" not in bench.backlog
    assert bench.sealed.at_claim(bench.thin("9")) is None


def test_a_listing_shows_an_edit_that_no_event_told_of(bench: Bench):
    """The time of the last change decides whether what is known still counts."""
    bench.whole("9", "1")
    bench.hear("9")
    later = bench.whole("9", "2", updated_at=NOW + timedelta(seconds=1))
    bench.hear("9", claimable=True)
    assert bench.waiting.get("9").needs == ("2",)
    assert bench.sealed.see(replace(later, payload=None, updated_at=NOW)) is not None, "older news changes nothing"


def test_what_the_service_knows_is_not_hidden(bench: Bench):
    """A copy of the edges outside the seal, which the service knows, leaves nothing hidden; a part of them does."""
    known = bench.whole("9", "1", "2", depends_on=("2", "1"))
    assert bench.sealed.see(known) == Seen(known, sender="ann")
    part = bench.whole("8", "1", "2", depends_on=("2",))
    assert bench.sealed.see(part) == Seen(replace(part, depends_on=("2", "1")), hidden=True, sender="ann")


@pytest.mark.parametrize("keys", ["none", "unreadable", "strange"])
def test_what_does_not_open_is_not_held_back(bench: Bench, keys: str, tmp_path: Path):
    """Without a key, with files that cannot be used, or sealed for somebody else: the worker decides."""
    task = bench.whole("9", "1")
    if keys == "none":
        bench.trust = Bench(tmp_path / "other").files.trust
        (tmp_path / "other" / "keys" / "dispatcher.json").unlink()
    elif keys == "unreadable":
        (tmp_path / "keys" / "senders.json").chmod(0o644)
        with pytest.raises(ConfigurationError):
            bench.trust()
    else:
        bench.trust = Bench(tmp_path / "other").files.trust
    bench.hear("9")
    assert "9" in bench.backlog
    seen = bench.sealed.at_claim(replace(task, payload=None))
    assert seen is not None
    assert (seen.task, seen.hidden, bool(seen.sender)) == (replace(task, payload=None), False, False)


def test_other_keys_open_everything_anew(bench: Bench):
    """When a sender is no longer trusted, what its tasks name counts no longer."""
    bench.whole("9", "1")
    bench.hear("9")
    assert "9" in bench.waiting
    bench.files.revoke_sender("ann", now_s=time.time())
    bench.hear("9")
    assert "9" not in bench.waiting
    assert "9" in bench.backlog


@pytest.mark.parametrize("name", ["a secret word", "#12 and more", '{"a": 1}'])
def test_what_is_no_id_is_told_to_nobody(bench: Bench, name: str):
    """A sealed name that can be no task's is text: it goes into no queue and no reason."""
    bench.whole("9", "1", name)
    bench.hear("9")
    assert "9" not in bench.waiting
    assert "9" in bench.backlog


def test_a_dependency_named_by_uuid(bench: Bench):
    """News of a task settle it under its number and under its UUID; a circle is found through either."""
    bench.whole("9", UUID)
    bench.hear("9")
    bench.whole("1", uuid=UUID)
    bench.hear("1", "completed", status="completed")
    assert bench.waiting.to_settle == {UUID: "completed"}
    failed: dict[str, str] = {}
    waiting = WaitingTasks(fail=failed.__setitem__, kick=lambda: None)
    waiting.holds(Task(id="1", uuid=UUID, depends_on=("2",)))
    waiting.holds(Task(id="2", depends_on=(UUID,)), hidden=True)
    waiting.fail_circles()
    assert set(failed) == {"2"}, "the service fails the other one only once this has ended"


def test_registrations_go_their_own_way(bench: Bench):
    """Title and pubkey make one, whatever the key is; without a pubkey it is a task like any other."""
    body = {"channel": "test", "status": "pending", "title": "  REGISTER\n", "updated_at": NOW}
    bench.service["5"] = Task(id="5", payload={"pubkey": [1]}, **body)
    bench.service["6"] = Task(id="6", payload=None, **body)
    bench.service["7"] = Task(id="7", payload={"a": 1}, **body)
    for _ in range(2):
        for ident in bench.service:
            bench.hear(ident)
    assert bench.registered == ["5", "5"]
    assert "5" not in bench.backlog
    assert "6" in bench.backlog
    assert "7" in bench.backlog
    assert bench.sealed.at_claim(bench.thin("5")).registers
    assert bench.sealed.at_claim(Task(id="8", title="register")) is None


def test_a_service_that_shows_all_is_never_asked_again(bench: Bench):
    """On a foreign ATS the edges outside count for nothing, those inside do, and nothing is hidden from anybody."""
    sealed = Sealed(bench.files.trust, is_thin=False, knows_needs=False, log=structlog.get_logger())
    task = bench.whole("9", "1", "task-2")
    assert sealed.see(task) == Seen(replace(task, depends_on=("1", "task-2")), sender="ann")
    forged = replace(task, payload={**task.payload, "depends_on": [7]}, depends_on=("7",))
    assert sealed.see(forged) == Seen(replace(forged, depends_on=()), sender="")
    assert sealed.needs_of(task) == ("1", "task-2")
    plain = Task(id="9", payload={"depends_on": [7]}, depends_on=("7",))
    assert sealed.see(plain) == Seen(plain)


def test_what_is_known_is_bounded(bench: Bench):
    """Memory holds no more tasks than it may; what a full listing did not show is forgotten."""
    sealed = Sealed(bench.files.trust, is_thin=True, knows_needs=True, log=structlog.get_logger(), known_max=3)
    for ident in "12345":
        sealed.see(bench.whole(ident))
    assert len(sealed) == 3
    assert sealed.see(bench.thin("1")) is None
    began_at = time.monotonic()
    sealed.see(bench.thin("5"))
    sealed.forget_before(began_at)
    assert len(sealed) == 1


def test_whom_a_sealed_task_wants_told(bench: Bench):
    """What stands inside counts; a task that does not open wants nobody called."""
    fields = bench.ann.v2(title="t", callback_url="https://example.org/x", quiet=True)
    task = Task(id="9", channel="test", status="completed", created_at=NOW, sealed=True, **fields)
    assert bench.sealed.effective_delivery(task)[:2] == ("https://example.org/x", True)
    forged = replace(task, payload={**task.payload, "callback_url": "https://example.net/x"})
    assert bench.sealed.effective_delivery(forged) == (None, False, None)
    assert bench.sealed.effective_delivery(Task(id="8", payload={"encrypted": True})) == (None, False, None)
    assert bench.sealed.effective_delivery(Task(id="8")) == (None, False, None)


def test_a_short_listing_does_not_take_back_what_it_cannot_show(bench: Bench):
    """A listing that was cut forgets what the service lists as waiting, not what it does not know to wait."""
    began_at = time.monotonic() + 1
    bench.waiting.holds(Task(id="1", depends_on=("7",)))
    bench.waiting.holds(Task(id="2", depends_on=("7",)), hidden=True)
    bench.waiting.compare(began_at, [], hidden_too=False)
    assert "1" not in bench.waiting
    assert "2" in bench.waiting
    bench.waiting.still_pending("2")
    bench.waiting.compare(time.monotonic() + 1, [])
    assert not bench.waiting.hidden
