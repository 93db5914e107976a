"""Sealed tasks that wait, on real parts, against our own service and against a foreign ATS.

What they wait for stands inside the seal: the service offers them all the time.
Order is read from what each task's child wrote down. The fleet reconciles so
seldom that what is done in time is done because of news.
"""

from __future__ import annotations

import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any

import pytest

from dispatch.crypto import encoding
from dispatch.crypto.keys import KeyPair, kid_of
from dispatch.crypto.opening import TITLE
from dispatch.crypto.trust import Sender
from dispatch.errors import GatewayRejectedError
from tests.support.cli import CliHere
from tests.support.graph_world import DURATION_S, World, world_of
from tests.support.processes import eventually
from tests.support.receiver import Receiver
from tests.support.sealing import Sealer, trusting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dispatch.crypto.files import KeyFiles

SECRET = "a-word-that-nobody-else-may-read"
SETTINGS = {
    "DISPATCH_RECONCILE_S": "60",
    "DISPATCH_MAX_ATTEMPTS": "1",
    "DISPATCH_CALLBACK_ALLOW_HTTP": "true",
    "DISPATCH_CALLBACK_ALLOW_PRIVATE": "127.0.0.1",
}


class SealedWorld:
    """A world with a trusted sender, and somebody who may be called."""

    def __init__(self, world: World, files: KeyFiles, sender: Sealer, receiver: Receiver) -> None:
        self.world, self.files, self.sender, self.receiver = world, files, sender, receiver

    def fields(self, *needs: Any, version: int = 2, callback_url: str | None = None, **orders: Any) -> dict[str, Any]:
        """Return title and payload of a sealed task."""
        tick = {"dir": str(self.world.stack.ticks), "duration_s": DURATION_S, **orders}
        depends_on = tuple(str(one) for one in needs)
        said = {"title": SECRET, "payload": {"tick": tick}, "depends_on": depends_on, "callback_url": callback_url}
        return self.sender.seal(version, **said)

    def create(self, *needs: Any, written: Any = None, version: int = 2, **orders: Any) -> int:
        """Create a sealed task that depends on others; ``written`` are other names for what it needs."""
        ident = self.put(self.fields(*(written or needs), version=version, **orders))
        self.world.needs[ident] = list(needs)
        return ident

    def put(self, fields: dict[str, Any]) -> int:
        """Create a task."""
        world = self.world
        body = {"channel": world.stack.channel, **fields}
        if world.ats is not None:
            return int(world.ats.add(**body)["id"])
        status, answer = world.stack.call("POST", "/tasks", body)
        assert status == 201, answer
        return int(answer.get("task", answer)["id"])

    def held(self, *idents: int) -> bool:
        """Say whether tasks are pending and nobody has ever claimed them."""
        ats = self.world.ats
        if ats is not None and any(path in {f"/tasks/{one}/claim" for one in idents} for _, path, _, _ in ats.calls):
            return False
        tasks = [self.world.task(ident) for ident in idents]
        return all(task["status"] == "pending" and not task.get("fencing_token") for task in tasks)


def in_redis(world: World) -> str:
    """Return all keys and values that Redis holds, as one text."""
    found = []
    with closing(world.stack.redis.client()) as client:
        for key in client.scan_iter():
            kind = client.type(key)
            read = {b"string": client.get, b"hash": client.hgetall, b"zset": lambda k: client.zrange(k, 0, -1)}
            read |= {b"list": lambda k: client.lrange(k, 0, -1), b"set": client.smembers}
            found.append(f"{key!r} {read[kind](key)!r}")
    return "\n".join(found)


@pytest.fixture(params=["ours", pytest.param("foreign", marks=pytest.mark.slow)], scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[SealedWorld]:
    """One running fleet for all tests."""
    with world_of(request.param, **SETTINGS) as world, Receiver() as receiver:
        files, sealers = trusting(world.stack.directory / "data" / "keys", "ann")
        world.stack.env["DISPATCH_CALLBACK_PORTS"] = str(receiver.port)
        world.start(slots=4)
        yield SealedWorld(world, files, sealers["ann"], receiver)


@pytest.fixture
def sealed(shared: SealedWorld, request: pytest.FixtureRequest) -> Iterator[SealedWorld]:
    """The running fleet, with no tasks known; what still runs at the end is cancelled. A failure shows the logs."""
    world = shared.world
    world.needs = {}
    failed = request.session.testsfailed
    yield shared
    if request.session.testsfailed > failed:
        print(world.stack.report())
    for ident in world.needs:
        if world.task(ident)["status"] in ("in_progress", "pending"):
            with suppress(GatewayRejectedError):  # it has ended just now
                world.do(ident, "cancel")


def test_chain_and_diamond_of_sealed_and_plain_tasks(sealed: SealedWorld):
    """Each starts after the last that it needs, once, sealed or not; nobody holds one that waits; answers stay sealed.

    Redis never sees more of them than ids, also where only sealed tasks are accepted.
    """
    world = sealed.world
    go = world.stack.directory / "go"
    root = sealed.create(duration_s=300, until=str(go), version=1)
    chain = [sealed.create(root, version=1)]
    early = sealed.create(chain[0] + 2)  # it is created before what it needs
    chain += [sealed.create(chain[0])]
    assert chain[1] == chain[0] + 2
    plain = [world.create(chain[1]), world.create(root)]
    diamond = [sealed.create(plain[0]), sealed.create(chain[1], plain[1])]
    last = sealed.create(*diamond)
    uuid = world.task(root).get("uuid")
    by_uuid = [sealed.create(root, written=[uuid])] if uuid else []
    waiting = [*chain, early, *diamond, last, *by_uuid]
    eventually(lambda: world.began(root), "the root running")
    seen = in_redis(world)
    assert sealed.held(*waiting)
    go.touch()
    world.wait(world.needs, "completed")
    world.check_order()
    seen += in_redis(world)
    assert SECRET not in seen
    for ident in (root, *waiting):
        task = world.task(ident)
        assert task["title"] == TITLE
        assert f"done {ident}" in sealed.sender.read(task["outputs"], ident)
        assert task.get("fencing_token", 1) == 1
    assert f"done {world.task(plain[0])['id']}" in str(world.task(plain[0])["outputs"])


def test_only_sealed_tasks_are_accepted_and_they_wait(sealed: SealedWorld):
    """Where encryption is required a sealed task waits and keeps its seal; one in the open fails with what needs it."""
    world = sealed.world
    sealed.files.set_require_encryption(required=True)
    try:
        root = sealed.create(duration_s=0.3)
        plain = world.create()
        good, bad = sealed.create(root), sealed.create(root, plain)
        world.wait([plain, bad], "failed")
        world.wait([root, good], "completed")
    finally:
        sealed.files.set_require_encryption(required=False)
    assert f"#{plain} (failed)" in world.reason(bad)
    assert f"done {good}" in sealed.sender.read(world.task(good)["outputs"], good)
    assert SECRET not in str(world.task(good))


def test_a_failure_goes_through_sealed_tasks(sealed: SealedWorld):
    """What is behind a bad end fails with a reason that names it, sealed or not, one or many; nothing else does."""
    world = sealed.world
    bad = sealed.create(exits=[1], duration_s=0.3)
    good = sealed.create()
    first = sealed.create(bad, good)
    plain = world.create(first)
    last = sealed.create(plain)
    other = sealed.create(good)
    if world.ats is not None:  # once somebody is faster, but does not end it
        body = b'{"error": "busy"}'
        world.ats.fault("answer", f"POST /tasks/{first}/claim", status=409, body=body)
    hub = world.create(exits=[1], duration_s=0.5)
    crowd = [sealed.create(hub) for _ in range(8)]
    behind = [world.create(one) for one in crowd] + [world.create(hub) for _ in range(8)]
    world.wait([bad, first, plain, last, hub, *crowd, *behind], "failed")
    world.wait([good, other], "completed")
    world.check_order()
    assert world.reason(first) == f"Blocked: dependency #{bad} (failed)"
    assert world.reason(plain) == f"Blocked: dependency #{first} (failed)"
    assert world.reason(last) == f"Blocked: dependency #{plain} (failed)"
    assert all(f"#{hub} (failed)" in world.reason(one) for one in crowd)
    assert f"#{crowd[0]} (failed)" in world.reason(behind[0])


def test_who_is_called_stands_inside_the_seal(sealed: SealedWorld):
    """A sealed task that waited calls whom it names inside, and says nothing of itself; an outer name calls nobody."""
    inner, outer = f"{sealed.receiver.url}/inner", f"{sealed.receiver.url}/outer"
    sealed.receiver.requests.clear()
    root = sealed.create(duration_s=0.3)
    ident = sealed.create(root, callback_url=inner)
    forged = sealed.fields(root, callback_url=inner)
    forged["payload"]["callback_url"] = outer
    refused = sealed.put(forged)
    sealed.world.wait([refused], "failed")
    (told,) = eventually(lambda: sealed.receiver.at("/inner"), "the callback")
    assert not sealed.receiver.at("/outer"), "that task had ended before"
    assert (told.path, told.json["task_id"], told.json["status"]) == ("/inner", ident, "completed")
    assert told.json["result"] is None
    assert SECRET not in str(told.json)
    sealed.world.check_order()


def test_what_a_sealed_task_waits_for_is_shown_without_a_key(
    sealed: SealedWorld, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
):
    """The commands why and deps name what a sealed task waits for, and in which state it is, from what Redis holds."""
    cli = CliHere(monkeypatch, capfd, tmp_path)
    env = {**sealed.world.stack.env, "DISPATCH_DATA_DIR": str(tmp_path / "no-keys-here")}
    cli.env(**{name: value for name, value in env.items() if name.startswith("DISPATCH_")})
    root = sealed.create(until=str(tmp_path / "go"), duration_s=300)
    waiting = sealed.create(root)
    missing = sealed.create(root, 987_654)
    sealed.world.wait([root], "in_progress")

    def codes(ident: int) -> dict[str, str]:
        return {one["code"]: one["text"] for one in cli("why", str(ident), "--json").json["reasons"]}

    eventually(lambda: "WAITING_FOR_DEPENDENCIES" in codes(waiting), "the reason")
    assert codes(waiting) == {"WAITING_FOR_DEPENDENCIES": f"It waits for #{root} (in_progress)."}
    assert "DEPENDENCY_MISSING" in eventually(lambda: "DEPENDENCY_MISSING" in codes(missing) and codes(missing), "it")
    tree = cli("deps", "--status", "pending").out
    assert f"waits for #{root} in_progress" in tree
    assert f"#{root} in_progress" in cli("deps", "--task", str(waiting)).out
    assert SECRET not in tree
    sealed.world.do(missing, "cancel")
    (tmp_path / "go").touch()
    sealed.world.wait([waiting], "completed")


def test_a_copy_of_a_sealed_message_calls_nobody(sealed: SealedWorld):
    """Who sends somebody's sealed message again, and lets it fail or cancels it, makes us call nobody."""
    sealed.receiver.requests.clear()
    fields = sealed.fields(callback_url=f"{sealed.receiver.url}/inner")
    original = sealed.put(fields)
    sealed.world.wait([original], "completed")
    copies = [sealed.put(fields), sealed.put(fields)]
    with suppress(GatewayRejectedError):  # it may have failed already
        sealed.world.do(copies[1], "cancel")
    sealed.world.wait(copies, "failed", "cancelled")
    # What is told later than the copies' ends would have been shows that these were passed over.
    last = sealed.put(sealed.fields(callback_url=f"{sealed.receiver.url}/last"))
    sealed.world.wait([last], "completed")
    eventually(lambda: sealed.receiver.at("/last"), "the callback of a later task")
    assert [told.json["task_id"] for told in sealed.receiver.at("/inner")] == [original]


def test_edits_count_while_a_task_waits(sealed: SealedWorld):
    """A sealed task that is sealed anew goes by what it names now, whether that is less or more."""
    world = sealed.world
    go = world.stack.directory / "go-short"
    long, short = world.create(duration_s=300), world.create(duration_s=300, until=str(go))
    freed, held = sealed.create(long), sealed.create(short)
    eventually(lambda: world.began(long) and world.began(short), "both running")
    world.do(freed, "patch", **sealed.fields())
    world.do(held, "patch", **sealed.fields(freed, long))
    world.needs |= {freed: [], held: [freed, long]}
    go.touch()
    world.wait([freed, short], "completed")
    assert sealed.held(held)
    world.do(held, "patch", **sealed.fields(freed, version=1))
    world.needs[held] = [freed]
    world.wait([held], "completed")
    world.check_order()
    assert world.task(long)["status"] == "in_progress"


def test_circles_through_sealed_tasks_fail(sealed: SealedWorld):
    """Tasks that wait for each other through sealed names end as failed with the reason, and so does what is behind."""
    world = sealed.world
    number = sealed.create()
    one, two = sealed.create(number + 2), sealed.create(number + 1)
    mixed, plain = sealed.create(number + 4), world.create(number + 3)
    itself = sealed.create(number + 5)
    behind = world.create(plain)
    away = sealed.sender.v2(channel="other", title=SECRET, depends_on=(str(behind + 2),))
    other = sealed.put({"channel": "other", **away})  # where no fleet runs
    through = sealed.create(other)
    assert through == behind + 2
    world.wait([one, two, mixed, plain, itself, behind, through], "failed")
    assert f"#{other}" in world.reason(through)
    assert "circle" in world.reason(through)
    assert "circle" in world.reason(mixed)
    assert "circle" in world.reason(itself)
    assert "circle" in world.reason(one) + world.reason(two)
    assert f"#{plain} (failed)" in world.reason(behind)
    assert not any(world.began(ident) for ident in (one, two, mixed, plain, itself, behind))


def test_lost_redis_and_a_new_ingress_strand_no_sealed_task(sealed: SealedWorld):
    """FLUSHALL and kill -9 of the ingress while sealed tasks wait: each still runs in order, or fails."""
    world = sealed.world
    root, doomed = sealed.create(duration_s=1.5), sealed.create(duration_s=300)
    good, bad = sealed.create(root), sealed.create(root, doomed)
    last, tail = world.create(good), sealed.create(bad)
    eventually(lambda: world.began(root) and world.began(doomed), "both roots running")
    world.stack.redis.flush()
    ingress = next(p for p in world.stack.processes if p.name == "ingress" and p.exit_code is None)
    ingress.kill()
    world.stack.start_ingress()
    assert sealed.held(bad, tail)
    world.do(doomed, "cancel")
    world.wait([root, good, last], "completed")
    world.wait([bad, tail], "failed")
    world.check_order()


# --- registrations ------------------------------------------------------------------------------------------------


class Applicant:
    """Somebody with a key who asks to be trusted."""

    def __init__(self, sealed: SealedWorld) -> None:
        self.sealed, self.world = sealed, sealed.world
        self.public = KeyPair.make().public

    def ask(self, pubkey: Any = None, title: str = " ReGister ") -> int:
        """Create a registration task."""
        text = encoding.encode(self.public) if pubkey is None else pubkey
        return self.sealed.put({"title": title, "payload": {"pubkey": text}})

    def told(self, ident: int) -> Any:
        """Wait for the end of a registration; return its output, or the reason why it failed."""
        self.world.wait([ident])
        task = self.world.task(ident)
        assert task.get("fencing_token", 1) == 1, "it was claimed once"
        assert not task.get("attempts"), "no worker ever started it"
        return task["outputs"][0] if task["status"] == "completed" else str(task["reason"])


def test_a_key_is_registered_approved_and_rejected(sealed: SealedWorld):
    """Where only sealed tasks are accepted too, the ingress says: pending, then trusted with our key, or rejected."""
    files = sealed.files
    files.set_require_encryption(required=True)
    try:
        wanted, unwanted = Applicant(sealed), Applicant(sealed)
        told = [one.told(one.ask()) for one in (wanted, unwanted)]
        assert [one["status"] for one in told] == ["pending_approval"] * 2
        assert told[0]["fingerprint"] == kid_of(wanted.public)
        name = f"bob-{kid_of(wanted.public)[:8]}"
        files.approve(kid_of(wanted.public), lambda public: Sender(name, public), now_s=time.time())
        files.reject(kid_of(unwanted.public), "nobody knows you", now_s=time.time())
        known = wanted.told(wanted.ask(title="register"))
        assert (known["status"], known["name"]) == ("already_registered", name)
        assert known["dispatcher_public_key"] == encoding.encode(sealed.sender.to.public)
        assert "nobody knows you" in unwanted.told(unwanted.ask())
    finally:
        files.set_require_encryption(required=False)
    events = [event for p in sealed.world.stack.processes for event in p.events]
    answered = [event for event in events if event["event"] == "registration_answered"]
    assert kid_of(wanted.public) in {event["fingerprint"] for event in answered}
    assert encoding.encode(wanted.public) not in str(events)


@pytest.mark.parametrize(
    "pubkey", [123, ["AAAA"], {"key": 1}, "", "not base64", "A" * 200_000, encoding.encode(bytes(32)), True, 1.5]
)
def test_malformed_registrations_stop_nothing(sealed: SealedWorld, pubkey: Any):
    """A8: whatever stands in the place of the key, the task fails with a reason and the next one runs."""
    bad = Applicant(sealed).ask(pubkey)
    behind = sealed.world.create()
    assert "payload.pubkey" in Applicant(sealed).told(bad)
    assert len(sealed.world.task(bad)["reason"]) < 300
    sealed.world.wait([behind], "completed")


def test_a_flood_of_registrations_is_bounded(sealed: SealedWorld):
    """Of 40 new keys at most 30 wait for an operator, the others are told so; tasks run meanwhile."""
    asked = [(one := Applicant(sealed), one.ask()) for _ in range(40)]
    plain = sealed.world.create()
    told = [one.told(ident) for one, ident in asked]
    sealed.world.wait([plain], "completed")
    waiting = sealed.files.registrations(now_s=time.time()).waiting
    assert 1 <= len(waiting) <= 30
    assert "hour" in str(told[-1])


def test_two_ingresses_answer_each_registration_once(sealed: SealedWorld):
    """Both hear of it, one claims it; what is no registration after all is run by a worker."""
    world = sealed.world
    second = world.stack.start_ingress({"DISPATCH_ACTOR_ID": "dispatch-second"})
    known = Applicant(sealed)
    known.public = sealed.sender.pair.public
    asked = [known.ask() for _ in range(10)]
    orders = {"tick": {"dir": str(world.stack.ticks), "duration_s": DURATION_S}}
    ordinary = sealed.put({"title": "register", "payload": orders})
    told = [known.told(ident) for ident in asked]
    assert all(one["name"] == "ann" for one in told)
    world.wait([ordinary], "completed")
    if world.ats is not None:
        done = [path for _, path, _, _ in world.ats.calls if path.endswith("/complete")]
        assert all(done.count(f"/tasks/{ident}/complete") == 1 for ident in asked)
    second.stop()
