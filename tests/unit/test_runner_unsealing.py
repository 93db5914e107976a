"""What an attempt is told and what is reported of it, for tasks in the open and sealed ones."""

from __future__ import annotations

import copy
import json
import os
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from dispatch.ats.gateway import AttemptRef
from dispatch.ats.model import Grant, Task
from dispatch.core import results
from dispatch.core.retry import EndReason
from dispatch.core.review import Review
from dispatch.core.sealed import RESULT_NOTE
from dispatch.crypto import opening, sending
from dispatch.crypto.keys import KeyPair
from dispatch.crypto.refusal import SENTENCE
from dispatch.crypto.trust import OwnKey, Ring, Sender, Trust
from dispatch.errors import (
    ConfigurationError,
    GatewayRejectedError,
    GatewayUnavailableError,
    LeaseLostError,
    SealReplayedError,
    UnknownTaskError,
)
from dispatch.runner import spool, telling
from dispatch.runner.attempt import AttemptEnd
from dispatch.runner.output import Captured
from dispatch.runner.unsealing import OPEN_SENTENCE, NotAcceptedError, NotNowError, Unsealing, Work
from dispatch.service import fields
from tests.support.sealing import Sealer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAIR = KeyPair.make()
ALICE = Sealer("alice", PAIR)
BOB = Sealer("bob", PAIR)
TRUST = Trust(ring=Ring((OwnKey(PAIR),)), senders={one.name: Sender(one.name, one.pair.public) for one in (ALICE, BOB)})
REF = AttemptRef("7", 1, 3, "actor")
OK = "completed"


class Gateway:
    """A task service as far as it is asked before the child runs."""

    def __init__(self, tasks: dict[str, Task | Exception], seen: Exception | None) -> None:
        self.tasks = tasks
        self.refusal = seen
        self.digests: list[str] = []
        self.names: list[str] = []

    def seen(self, ref: AttemptRef, digest: str) -> None:
        """Register."""
        assert ref == REF
        self.digests.append(digest)
        if self.refusal is not None:
            raise self.refusal

    def read(self, task_id: str) -> Task:
        """Return a task."""
        self.names.append(task_id)
        found = self.tasks.get(task_id, UnknownTaskError("There is none.", status=404))
        if isinstance(found, Exception):
            raise found
        return found


class Log:
    """Keeps events with their facts."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda event, **facts: self.lines.append({"level": level, "event": event, **facts})


class Keys:
    """What the host trusts."""

    def __init__(self, trust: Trust | None) -> None:
        self._trust = trust

    def trust(self) -> Trust:
        """Return it, if the files can be read."""
        if self._trust is None:
            raise ConfigurationError("/keys/dispatcher.json is open to others; make it private.")
        return self._trust


class House:
    """Prepares one attempt and keeps what happened."""

    def __init__(
        self,
        trust: Trust | None = TRUST,
        tasks: dict[str, Task | Exception] | None = None,
        seen: Exception | None = None,
        executor: str = "default",
    ) -> None:
        self.gateway = Gateway(tasks or {}, seen)
        self.review: Review | None = None
        self.log = Log()
        self.slow_calls: list[int] = []
        ask = lambda call: call()  # noqa: E731
        self._unsealing = Unsealing(
            self.gateway,  # type: ignore[arg-type]
            Keys(trust),
            lambda _task, _opened: executor,
            self.log,
            ask,
            lambda: self.slow_calls.append(1),
        )

    def prepare(self, fields: dict[str, Any], **task: Any) -> Work:
        """Prepare an attempt of task 7 on channel ``test``."""
        made = Task(id="7", channel="test", created_at=datetime.now(UTC), **{"description": "", **fields, **task})
        dependencies = ({"id": 1, "title": "t", "status": OK, "outputs": 1},)
        return self._unsealing.prepare(REF, Grant(made, 3, 60.0, dependencies, self.review))


def refused(house: House, fields: dict[str, Any], **task: Any) -> dict[str, Any]:
    """Prepare what must be refused with the one sentence; return the log line."""
    with pytest.raises(NotAcceptedError) as caught:
        house.prepare(fields, **task)
    assert str(caught.value) == SENTENCE
    (line,) = house.log.lines
    assert (line["level"], line["event"], line["task"]) == ("warning", "sealed_task_refused", "7")
    return line


@pytest.mark.parametrize("version", [1, 2])
def test_a_sealed_task_that_was_sent_back_is_told_its_earlier_result(version: int) -> None:
    """Its answer is opened for the attempt; the answer to another task is not, and without a review nothing is told."""
    house = House()
    fields = (ALICE.v1 if version == 1 else ALICE.v2)(title="T")
    sealed = answer(ALICE, version, "first try", task_id="7")
    assert house.prepare(fields, outputs=[sealed]).review is None
    house.review = Review("better", "", ({"from": "Eve", "at": "", "text": "hm"},))
    found = house.prepare(fields, outputs=[sealed]).review
    assert found == Review("better", "first try", ({"from": "Eve", "at": "", "text": "hm"},))
    strange = house.prepare(fields, outputs=[answer(BOB, version, "of bob", task_id="7")]).review
    assert strange is not None
    assert strange.result == RESULT_NOTE


# --- tasks in the open ----------------------------------------------------------------------------------------------


def test_a_task_in_the_open_is_told_as_it_stands() -> None:
    """Nothing is asked, and the results of its dependencies come with the grant."""
    house = House(trust=Trust())
    work = house.prepare({"title": "T", "description": "D", "payload": {"a": 1}})
    assert (work.title, work.description, work.payload, work.opened) == ("T", "D", {"a": 1}, None)
    assert json.loads(work.environment_value()) == [{"id": 1, "status": OK, "response": "1"}]
    assert (house.gateway.digests, house.log.lines) == ([], [])


@pytest.mark.parametrize("payload", [{"a": 1}, {"encrypted": False}, None])
def test_where_only_sealed_tasks_are_accepted(payload: Any) -> None:
    """A task in the open is refused in the words that users know, and the log says why."""
    house = House(trust=replace(TRUST, require_encryption=True))
    with pytest.raises(NotAcceptedError, match=OPEN_SENTENCE):
        house.prepare({"title": "T", "payload": payload})
    assert house.log.lines[0]["refusal"] == "encryption_required"
    assert house.prepare(ALICE.v2(title="sealed")).title == "sealed"


@pytest.mark.parametrize("sealed", [True, False])
def test_without_readable_key_files_nothing_runs(*, sealed: bool) -> None:
    """Who may send what is not known then: every task is given back, and the log names the file."""
    house = House(trust=None)
    with pytest.raises(NotNowError):
        house.prepare(ALICE.v2(title="t") if sealed else {"title": "t"})
    assert (house.log.lines[0]["level"], house.log.lines[0]["event"]) == ("error", "keys_unreadable")
    assert "dispatcher.json" in house.log.lines[0]["error"]


# --- sealed tasks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_a_sealed_task_is_told_from_inside(version: int) -> None:
    """Title, description and payload are the sealed ones; description and results outside do not count."""
    house = House()
    sealed = ALICE.seal(version, title="Inside", description="sealed", payload={"k": [1]})
    work = house.prepare(sealed, description="from a stranger")
    assert (work.title, work.description, work.payload, work.dependencies) == ("Inside", "sealed", {"k": [1]}, ())
    assert work.opened is not None
    assert house.gateway.digests == [work.opened.digest]
    assert "Inside" not in repr(work)
    assert "sealed" not in repr(work).replace("sealed_at", "")


def test_without_a_key_the_task_goes_to_another_host() -> None:
    """A host that has no dispatcher's key says so, loudly, and gives the task back."""
    house = House(trust=replace(TRUST, ring=Ring()))
    with pytest.raises(NotNowError, match="another one may have it"):
        house.prepare(ALICE.v2(title="t"))
    (line,) = house.log.lines
    assert (line["level"], line["event"]) == ("error", "keys_missing")
    assert "dispatch keygen" in line["advice"]
    assert house.gateway.digests == []


def test_a_message_of_another_task_is_a_replay() -> None:
    """What the register refuses is refused for good; the log names the first task."""
    seen = SealReplayedError("It came before.", status=409, code="SEAL_REPLAYED", facts={"first_id": 5})
    line = refused(House(seen=seen), ALICE.v2(title="t"))
    assert (line["refusal"], line["detail"]) == ("replay", "It came before. It was task 5.")


@pytest.mark.parametrize("error", [GatewayRejectedError("no", status=404), GatewayUnavailableError("away")])
def test_what_cannot_be_registered_does_not_run(error: Exception) -> None:
    """A service without a register, or one that is away, gets the task back."""
    with pytest.raises(NotNowError):
        House(seen=error).prepare(ALICE.v2(title="t"))
    lost = LeaseLostError("gone", status=409)
    with pytest.raises(LeaseLostError):
        House(seen=lost).prepare(ALICE.v2(title="t"))


def test_permissions_of_a_sender() -> None:
    """Channel and executor are checked after opening, before the message is registered."""
    for limits, executor in (({"channels": frozenset({"other"})}, "default"), ({"executors": frozenset({"gpu"})}, "x")):
        senders = {"alice": Sender("alice", ALICE.pair.public, **limits)}
        house = House(trust=replace(TRUST, senders=senders), executor=executor)
        assert refused(house, ALICE.v2(title="t"))["refusal"] == "not_permitted"
        assert house.gateway.digests == []
    senders = {"alice": Sender("alice", ALICE.pair.public, executors=frozenset({"gpu"}))}
    assert House(trust=replace(TRUST, senders=senders), executor="gpu").prepare(ALICE.v2(title="t")).title == "t"


@pytest.mark.parametrize("encrypted", ["yes", 1, {}, [0]])
def test_what_claims_to_be_sealed_is_never_run_in_the_open(encrypted: Any) -> None:
    """A payload that says anything true about encryption is opened or refused."""
    if encrypted == {}:
        encrypted = {"a": 1}
    line = refused(House(), {"title": "t", "payload": {**ALICE.v2(title="t")["payload"], "encrypted": encrypted}})
    assert line["refusal"] == "malformed"


# --- dependencies ---------------------------------------------------------------------------------------------------


def needed(status: str = OK, outputs: Any = None, ident: str = "5") -> Task:
    """Return a dependency."""
    return Task(id=ident, title=f"needed {ident}", status=status, outputs=outputs)


def told(dependency: Task, sealer: Sealer = ALICE) -> dict[str, Any]:
    """Return what a sealed task of the sender is told of a dependency."""
    house = House(tasks={"5": dependency})
    work = house.prepare(sealer.v2(title="t", depends_on=("5",)))
    assert house.slow_calls == [1]
    (one,) = work.dependencies
    assert json.loads(work.environment_value()) == [{"id": 5, "status": OK, "response": ""}]
    return one


def answer(sealer: Sealer, version: int, text: str, task_id: str = "5", pair: KeyPair = PAIR) -> dict[str, Any]:
    """Return an answer to a sender."""
    trust = replace(TRUST, ring=Ring((OwnKey(pair),)))
    outside = opening.Outside(
        task_id, opening.TITLE, "test", Sealer(sealer.name, pair, sealer.pair).seal(version, title="t")["payload"]
    )
    opened = opening.open_task(outside, trust, now_s=time.time())
    return opening.answer(opened, text, task_id=task_id, attempt=1, status=OK, now_s=time.time(), random=os.urandom(28))


@pytest.mark.parametrize(
    ("statuses", "verdict"),
    [
        ({"5": OK, "6": "in_review"}, "waits for tasks"),
        ({"5": "failed", "6": "pending"}, r"^Blocked: dependency #5 \(failed\)$"),
        ({"5": "cancelled", "6": "rejected"}, r"^Blocked: dependency #5 \(cancelled\), #6 \(rejected\)$"),
        ({"5": OK}, r"^Blocked: dependency #6 \(does not exist\)$"),
    ],
)
def test_dependencies_inside_are_looked_at_before_it_runs(statuses: dict[str, str], verdict: str) -> None:
    """Not finished: given back. Ended badly or never there: failed, in the words of every cascade."""
    house = House(tasks={name: needed(status, ident=name) for name, status in statuses.items()})
    kind = NotNowError if "waits" in verdict else NotAcceptedError
    with pytest.raises(kind, match=verdict):
        house.prepare(ALICE.v2(title="t", depends_on=("5", "6")))


def test_dependencies_that_cannot_be_read_now() -> None:
    """A service that is away decides nothing."""
    house = House(tasks={"5": GatewayUnavailableError("away")})
    with pytest.raises(NotNowError):
        house.prepare(ALICE.v2(title="t", depends_on=("5",)))


def test_what_is_no_id_is_told_to_nobody() -> None:
    """Text in a sealed list of dependencies reaches neither the service nor the reason."""
    house = House()
    with pytest.raises(NotAcceptedError) as caught:
        house.prepare(ALICE.v2(title="t", depends_on=("the secret plan", "8")))
    assert str(caught.value) == "Blocked: dependency #8 (does not exist), #? (does not exist)"
    assert house.gateway.names == ["8"]


def test_a_task_that_waits_for_itself_fails() -> None:
    """By number or by UUID, it can never run."""
    uuid = "00000000-0000-4000-8000-000000000007"
    with pytest.raises(NotAcceptedError, match="circle"):
        House(tasks={uuid: needed("in_progress", ident="7")}).prepare(ALICE.v2(title="t", depends_on=(uuid,)))


def test_results_in_the_open_are_handed_on() -> None:
    """As for every other task."""
    assert told(needed(outputs=[{"response": "uno"}])) == {
        "id": 5,
        "title": "needed 5",
        "status": OK,
        "outputs": [{"response": "uno"}],
    }


@pytest.mark.parametrize("version", [1, 2])
def test_results_of_the_same_sender_are_opened(version: int) -> None:
    """What was sealed for alice is told to alice's task; a mark that it was cut stays."""
    sealed = answer(ALICE, version, "uno \u00e9")
    assert told(needed(outputs=[sealed]))["outputs"] == [{"response": "uno \u00e9"}]
    cut = told(needed(outputs=[{**sealed, "truncated": True, "output_bytes": 9}]))["outputs"]
    assert cut == [{"response": "uno \u00e9", "truncated": True}]


def test_long_results_are_opened_whole_and_cut_then() -> None:
    """A ciphertext that would be cut on the way from the service is read whole by the worker."""
    found = told(needed(outputs=[answer(ALICE, 2, "long " * 40_000)]))
    assert found["outputs"][0]["response"].startswith("long long")
    assert found["outputs"][0]["truncated"] is True
    assert len(json.dumps(found, separators=(",", ":"))) <= results.ANSWER_BYTES_MAX


def test_results_of_somebody_else_stay_closed() -> None:
    """Of an answer to bob alice's task learns that there is one."""
    assert told(needed(outputs=[answer(BOB, 2, "for bob")]))["outputs"] == [{"response": RESULT_NOTE}]


def test_only_our_answers_to_this_task_count_as_results() -> None:
    """A sealed task, an answer to another task, and what is no box at all are not opened as a result."""
    task = ALICE.v1(title="of alice")["payload"]
    as_answer = {"encrypted_response": {name: task[name] for name in ("nonce", "ciphertext")}}
    elsewhere = answer(ALICE, 2, "of task 6", task_id="6")
    broken = copy.deepcopy(answer(ALICE, 2, "x"))
    broken["encrypted_response"]["ciphertext"] = "AAAA"
    odd = {"encrypted_response": {"nonce": 5}}
    for outputs in ([as_answer], [elsewhere], [broken], [odd], {"encrypted_response": {}}):
        assert told(needed(outputs=outputs))["outputs"] == [{"response": RESULT_NOTE}]


def test_an_old_key_of_ours_opens_old_answers() -> None:
    """After a rotation results from before are still told to their sender's tasks."""
    old = KeyPair.make()
    sealed = answer(ALICE, 2, "from before", pair=old)
    ring = Ring((OwnKey(PAIR), OwnKey(old, opens_until_s=1.0)))
    house = House(trust=replace(TRUST, ring=ring), tasks={"5": needed(outputs=[sealed])})
    work = house.prepare(ALICE.v2(title="t", depends_on=("5",)))
    assert work.dependencies[0]["outputs"] == [{"response": "from before"}]


# --- what is reported -----------------------------------------------------------------------------------------------


def opened(version: int = 2) -> opening.Opened:
    """Return a task of alice's."""
    work = House().prepare(ALICE.seal(version, title="t"))
    assert work.opened is not None
    return work.opened


def said(text: str, **more: Any) -> Captured:
    """Return what a command wrote."""
    return Captured(text, len(text.encode("utf-8", "replace")), **{"truncated": False, "binary": False, **more})


def report(end: AttemptEnd, version: int = 2) -> telling.Told:
    """Return what is told of an end."""
    return telling.sealed(end, opened(version), task_id="7", attempt_number=1, timeout_s=60)


@pytest.mark.parametrize("version", [1, 2])
def test_an_answer_is_all_that_is_told_of_a_success(version: int) -> None:
    """C2: the ciphertext and nothing beside it, and only the sender reads it."""
    found = report(AttemptEnd(EndReason.SUCCESS, 0, stdout=said("the answer"), stderr=said("and more")), version)
    assert found.outputs is not None
    keys = {"encrypted_response", "response_encrypted"} | ({"v"} if version == 2 else set())
    assert [set(one) for one in found.outputs] == [keys]
    assert (found.reason, found.note, found.smaller) == ("", "", None)
    assert ALICE.read(found.outputs, 7) == "the answer"
    with pytest.raises(Exception, match="does not open"):
        BOB.read(found.outputs, 7)


@pytest.mark.parametrize("char", ["x", "\u00e9", "\x01", "\U0001f600"])
@pytest.mark.parametrize("version", [1, 2])
def test_a_large_answer_is_cut_before_it_is_sealed(char: str, version: int) -> None:
    """Both forms fit their limits, and hold both ends of the text."""
    text = f"begin {char * (4_194_304 // len(char.encode()))} end"
    found = report(AttemptEnd(EndReason.SUCCESS, 0, stdout=said(text)), version)
    assert found.outputs is not None
    assert found.smaller is not None
    for outputs, bytes_max in ((found.outputs, fields.OUTPUTS_BYTES_MAX), (found.smaller, 100_000)):
        size = len(json.dumps(outputs))
        assert bytes_max * 0.8 < size < bytes_max
        read = ALICE.read(outputs, 7)
        assert read.startswith("begin ")
        assert read.endswith(" end")
        assert outputs[0]["truncated"] is True
        assert outputs[0]["output_bytes"] == len(text.encode())


def test_an_output_that_was_cut_says_so_outside() -> None:
    """The flags are no content."""
    found = report(AttemptEnd(EndReason.SUCCESS, 0, stdout=Captured("x", 10**9, truncated=True, binary=False)))
    assert found.outputs is not None
    assert (found.outputs[0]["truncated"], found.outputs[0]["output_bytes"]) == (True, 10**9)


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (AttemptEnd(EndReason.EXIT, 3, detail="exit code 3: secret"), "exit code 3"),
        (AttemptEnd(EndReason.SIGNAL, None, 9, detail="ended by signal 9 (SIGKILL): s"), "ended by signal 9 (SIGKILL)"),
        (AttemptEnd(EndReason.TEMPFAIL, 75, detail="not now (exit code 75): s"), "not now (exit code 75)"),
        (AttemptEnd(EndReason.TIMEOUT, None, 15, detail="timed out after 60 s: s"), "timed out after 60 s"),
        (AttemptEnd(EndReason.SHUTDOWN, None, 15, detail="the worker shut down: s"), "the worker shut down"),
    ],
)
def test_a_failure_is_a_class_outside_and_whole_inside(end: AttemptEnd, reason: str) -> None:
    """Everybody reads how it ended; the sender finds what the command said on the thread."""
    found = report(end)
    assert found.reason == reason
    assert len(found.note) <= fields.MESSAGE_CHARS_MAX
    assert ALICE.read(json.loads(found.note), 7) == end.detail


def test_the_longest_detail_fits_into_a_message() -> None:
    """4,000 characters that need four bytes each are cut before they are sealed."""
    found = report(AttemptEnd(EndReason.EXIT, 3, detail="exit code 3: " + "\U0001f600" * 3_900))
    assert 6_000 < len(found.note) <= fields.MESSAGE_CHARS_MAX
    assert ALICE.read(json.loads(found.note), 7).startswith("exit code 3: ")


@pytest.mark.parametrize("reason", [EndReason.SPAWN_ERROR, EndReason.WORKER_LOST])
def test_what_is_the_hosts_fault_is_told_as_it_is(reason: EndReason) -> None:
    """A command that is missing is nothing that the task says."""
    found = report(AttemptEnd(reason, detail="The command x was not found."))
    assert (found.reason, found.note) == ("The command x was not found.", "")
    assert report(AttemptEnd(EndReason.EXIT, 3, detail="exit code 3")).note == ""


# --- on its way -----------------------------------------------------------------------------------------------------


class Service:
    """Takes reports as its moods say, and keeps them."""

    def __init__(self, **moods: list[Exception]) -> None:
        self.moods = moods
        self.calls: list[tuple[str, Any]] = []

    def _call(self, name: str, value: Any) -> None:
        if self.moods.get(name):
            raise self.moods[name].pop(0)
        self.calls.append((name, value))

    def complete(self, _ref: AttemptRef, outputs: list[Any], *, review: bool = False) -> None:
        """Take a success."""
        self._call("complete", outputs)

    def fail(self, _ref: AttemptRef, reason: str) -> None:
        """Take a failure."""
        self._call("fail", reason)

    def say(self, _ref: AttemptRef, text: str) -> None:
        """Take a message."""
        self._call("say", text)


def deliver(service: Service, box: spool.Spool, tries: int = 3, **of: Any) -> spool.Outcome:
    """Deliver a report."""
    left = iter(range(tries - 1))
    return spool.deliver(
        spool.Report(**{"kind": spool.Kind.FAIL, "ref": REF, **of}),
        service,  # type: ignore[arg-type]
        box,
        wait=lambda _: next(left, None) is not None,
        rand=lambda: 0.5,
        log=Log(),
    )


def test_a_note_is_said_once_and_before_the_report(tmp_path: Path) -> None:
    """A service that is away between the two does not get it twice."""
    service = Service(say=[GatewayUnavailableError("away")], fail=[GatewayUnavailableError("away")])
    assert deliver(service, spool.Spool(tmp_path), reason="exit code 3", note="box") is spool.Outcome.ACCEPTED
    assert service.calls == [("say", "box"), ("fail", "exit code 3")]


def test_a_note_that_is_not_wanted_holds_nothing_up(tmp_path: Path) -> None:
    """A refused message is dropped; a lost lease ends the report as well."""
    service = Service(say=[GatewayRejectedError("too long", status=413)])
    assert deliver(service, spool.Spool(tmp_path), reason="r", note="box") is spool.Outcome.ACCEPTED
    assert service.calls == [("fail", "r")]
    service = Service(say=[LeaseLostError("gone", status=409)])
    assert deliver(service, spool.Spool(tmp_path), reason="r", note="box") is spool.Outcome.REFUSED
    assert service.calls == []


def test_the_spool_keeps_the_sealed_form_and_nothing_else(tmp_path: Path) -> None:
    """C2: what waits on disk for the service is what the service would have got, the note included."""
    end = AttemptEnd(EndReason.EXIT, 3, detail="exit code 3: canary")
    found = report(end)
    box = spool.Spool(tmp_path)
    away = Service(say=[GatewayUnavailableError("away")] * 3)
    assert deliver(away, box, reason=found.reason, note=found.note) is spool.Outcome.LEFT
    (file,) = (tmp_path / "spool").glob("*.json")
    assert b"canary" not in file.read_bytes()
    service = Service()
    assert spool.replay(service, box, rand=lambda: 0.5, log=Log()) == 0  # type: ignore[arg-type]
    assert service.calls == [("say", found.note), ("fail", "exit code 3")]


def test_a_service_that_takes_less_gets_the_smaller_answer(tmp_path: Path) -> None:
    """B2: a sealed answer that is too large is not cut, which would break it, but replaced by one sealed before."""
    text = "begin " + "x" * 500_000
    found = report(AttemptEnd(EndReason.SUCCESS, 0, stdout=said(text)))
    too_large = GatewayRejectedError("too large", status=413)
    service = Service(complete=[too_large])
    kind = spool.Kind.COMPLETE
    outcome = deliver(service, spool.Spool(tmp_path), kind=kind, outputs=found.outputs, smaller=found.smaller)
    assert outcome is spool.Outcome.ACCEPTED
    ((_, outputs),) = service.calls
    assert ALICE.read(outputs, 7).startswith("begin xxx")
    service = Service(complete=[too_large, too_large])
    deliver(service, spool.Spool(tmp_path), kind=kind, outputs=found.outputs, smaller=found.smaller)
    assert service.calls == [("fail", "The task service refused the result: too large")]


def test_reports_of_an_older_version_can_be_read() -> None:
    """What a worker left in the spool before this field existed is still delivered."""
    body = spool.Report(spool.Kind.FAIL, REF, reason="r").as_json()
    del body["note"], body["smaller"]
    assert spool.Report.from_json(body).note == ""


def test_sealed_results_are_a_note_for_everybody_else() -> None:
    """A plain task behind a sealed one sees that the result is sealed, however long it is."""
    for text in ("short", "long " * 100_000):
        found = report(AttemptEnd(EndReason.SUCCESS, 0, stdout=said(text)))
        work = Work("t", "", None, ({"id": 5, "title": "t", "status": OK, "outputs": found.outputs},))
        assert json.loads(work.environment_value())[0]["response"] == RESULT_NOTE
    assert sending.sealed_in([{"response": "open"}]) is None
