"""Why a task does not run, on a real fleet, in each situation that an operator meets; why and status say the same."""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from dispatch.ats.model import Actor
from dispatch.service import direct, keys
from dispatch.service.access import Access
from tests.support.cli import CliHere
from tests.support.processes import eventually
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from dispatch.service.store import Tx


class Fleet:
    """A fleet with one slot, whose service wants keys. Situations are set up in the order of the file and stay."""

    def __init__(self) -> None:
        self.stack = Stack({"DISPATCH_CREDIT": "0", "DISPATCH_COOLDOWN_S": "600"})
        self.stack.redis.start()
        self.stack.start_service()
        self.fleet_key, token = self._make_key("fleet", "agent")
        self.stack.env["DISPATCH_ATS_TOKEN"] = token
        self.ingress = self.stack.start_ingress()
        self.worker = self.stack.start_worker(1)
        self.stack.env["DISPATCH_ATS_TOKEN"] = self._make_key("boss", "human")[1]

    def _make_key(self, name: str, kind: str) -> tuple[str, str]:
        actor = Actor(kind, "dispatch" if kind == "agent" else name, name)

        def work(tx: Tx) -> tuple[str, str]:
            key, text = keys.create(tx, name, access=Access.ADMIN, actor=actor, scopes=[], expires_at=None)
            return key.id, text

        return direct.transaction(self.database_url, work)

    @property
    def database_url(self) -> str:
        """Where the service keeps its tasks."""
        return f"sqlite:///{self.stack.directory / 'data' / 'tasks.db'}"

    def elsewhere(self, **fields: Any) -> Any:
        """Create a task where nobody claims it."""
        return self.stack.create(**{"channel": "nobody", **fields})["id"]


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """One fleet for all situations."""
    made: list[Fleet] = []
    try:
        made.append(Fleet())
        yield made[0]
    finally:
        for one in made:
            one.stack.abort()


@pytest.fixture
def cli(fleet: Fleet, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> CliHere:
    """Commands in this process, about the fleet, with a key of their own."""
    made = CliHere(monkeypatch, capfd, tmp_path)
    made.env(**{name: value for name, value in fleet.stack.env.items() if name.startswith("DISPATCH_")})
    return made


def test_what_only_waits_is_not_stuck(fleet: Fleet, cli: CliHere) -> None:
    """Whoever waits for a running task, or for one that does, is shown apart; once that one is stuck, so are they."""
    running = fleet.stack.create(tick={"duration_s": 600})["id"]
    first = fleet.stack.create(depends_on=[running])["id"]
    second = fleet.stack.create(depends_on=[first])["id"]
    third = fleet.stack.create(depends_on=[running, fleet.elsewhere()])["id"]
    fleet.stack.wait_task(running, "in_progress")
    eventually(lambda: fleet.stack.task(running)["runner"], "its start")
    shown = cli("status", "--json").json
    held = {part: {ident for one in shown[part] for ident in one["tasks"]} for part in ("stuck", "waiting")}
    assert held["waiting"] == {str(first), str(second)}
    assert held["stuck"] >= {str(third)}
    assert not held["stuck"] & held["waiting"]
    (told,) = [one for one in shown["waiting"] if one["tasks"] == [str(first)]]
    assert set(told) == {"code", "text", "next", "tasks"}
    assert told["text"] == f"It waits for #{running} (in_progress)."
    plain = cli("status").out
    assert f"waiting\tWAITING_FOR_DEPENDENCIES\tIt waits for #{running} (in_progress). (#{first})\n" in plain
    assert f"(#{second})" not in "".join(line for line in plain.splitlines() if line.startswith("stuck"))
    for ident in (running, third):
        assert cli("cancel", str(ident)).code == 0
    fleet.stack.wait_task(second, "failed")


def paused(fleet: Fleet, cli: CliHere) -> Any:
    """An operator paused the channel."""
    assert cli("pause", "channel", "test", "--note", "disk full").code == 0
    fleet.ingress.wait_event("steering_paused")
    return fleet.stack.create()["id"]


def depending(fleet: Fleet, cli: CliHere) -> Any:
    """It needs another task, which nobody does."""
    return fleet.stack.create(depends_on=[fleet.elsewhere()])["id"]


def backing_off(fleet: Fleet, cli: CliHere) -> Any:
    """Its executor said: not now."""
    task = fleet.stack.create(tick={"exits": [75], "duration_s": 0.1})["id"]
    eventually(lambda: fleet.stack.task(task)["not_before"], "the pause")
    return task


def locked(fleet: Fleet, cli: CliHere) -> Any:
    """An agent took its lock and has not begun."""
    task = fleet.elsewhere()
    body = {"task_id": fleet.stack.task(task)["uuid"]}
    status, answer = fleet.stack.call("POST", "/tools/core_claim_task", body, actor="agent:coder")
    assert status == 200, answer
    return task


def in_review(fleet: Fleet, cli: CliHere) -> Any:
    """It is done, and somebody is to look at it."""
    task = fleet.stack.create(needs_review=True)["id"]
    fleet.stack.wait_task(task, "in_review")
    return task


def class_full(fleet: Fleet, cli: CliHere) -> Any:
    """The only place of its class is taken, and so is the only slot."""
    running = fleet.stack.create(tick={"duration_s": 600})["id"]
    fleet.stack.wait_task(running, "in_progress")
    with closing(fleet.stack.redis.client()) as client:
        client.hset("dispatch:class:gpu", str(running), "1")
    return fleet.stack.create(payload={"gpu": True}, tick={})["id"]


def no_worker(fleet: Fleet, cli: CliHere) -> Any:
    """The last worker was stopped."""
    with closing(fleet.stack.redis.client()) as client:
        client.delete("dispatch:class:gpu")
    fleet.worker.stop()
    return fleet.stack.create()["id"]


def key_refused(fleet: Fleet, cli: CliHere) -> Any:
    """Somebody revoked the key of the fleet."""
    direct.transaction(fleet.database_url, lambda tx: keys.revoke(tx, fleet.fleet_key))
    task = fleet.stack.create()["id"]
    fleet.ingress.wait_event("service_refuses_key")
    eventually(lambda: "key_refused" in cli("status", "--json").out, "the ingress showing it")
    return task


def ingress_down(fleet: Fleet, cli: CliHere) -> Any:
    """The ingress was stopped."""
    fleet.ingress.stop()
    return fleet.stack.create()["id"]


def redis_full(fleet: Fleet, cli: CliHere) -> Any:
    """Redis answers, but its memory is full."""
    with closing(fleet.stack.redis.client()) as client:
        client.config_set("maxmemory", "1")
    return fleet.stack.create()["id"]


def redis_down(fleet: Fleet, cli: CliHere) -> Any:
    """Redis was stopped."""
    fleet.stack.redis.stop()
    return fleet.stack.create()["id"]


def service_down(fleet: Fleet, cli: CliHere) -> Any:
    """The service was stopped."""
    task = fleet.stack.create()["id"]
    fleet.stack.processes[0].stop()
    return task


SITUATIONS: list[tuple[Callable[[Fleet, CliHere], Any], str, str, int]] = [
    (paused, "PAUSED", r"Channel test is paused by boss: disk full\.", 0),
    (depending, "WAITING_FOR_DEPENDENCIES", r"It waits for #\d+ \(pending\)\.", 0),
    (backing_off, "BACKING_OFF", r"It pauses for another \d+ s", 0),
    (locked, "LOCKED", r"coder holds its lock until .* and has not begun\.", 0),
    (in_review, "IN_REVIEW", r"Its result waits for a review\.", 0),
    (class_full, "CLASS_FULL", r"Class gpu is full: 1 of its 1 places are taken, by #\d+\.", 0),
    (no_worker, "NO_WORKER", r"No worker that takes from queue dispatch is running\.", 0),
    (key_refused, "KEY_REFUSED", r"The task service refuses the key of the ingress dispatch.*; it claims nothing\.", 0),
    (ingress_down, "INGRESS_DOWN", r"No ingress is running; nothing is claimed\.", 0),
    (redis_full, "REDIS_DOWN", r"Redis at .* takes no writes: .*maxmemory.*\. Nothing is claimed without it\.", 69),
    (redis_down, "REDIS_DOWN", r"Redis at .* does not answer: .*\. Nothing is claimed without it\.", 69),
    (service_down, "SERVICE_DOWN", r"The task service at .* does not answer: connection refused\.", 69),
]


@pytest.mark.parametrize(("set_up", "code", "sentence", "exit_code"), SITUATIONS, ids=[row[1] for row in SITUATIONS])
def test_why_and_status_say_what_it_is(
    fleet: Fleet,
    cli: CliHere,
    set_up: Callable[[Fleet, CliHere], Any],
    code: str,
    sentence: str,
    exit_code: int,
) -> None:
    """The weightiest reason comes first, with code, sentence and advice; status counts the task under the same one."""
    task = set_up(fleet, cli)
    first = eventually(
        lambda: next((one for one in cli("why", str(task), "--json").json["reasons"] if one["code"] == code), None),
        f"the reason {code}: {cli('why', str(task)).out}",
    )
    assert re.match(sentence, first["text"])
    assert first["next"].endswith(".")
    told = cli("why", str(task))
    is_down = code == "SERVICE_DOWN"
    assert told.code == (69 if is_down else 0)
    assert re.match(sentence, told.out)
    shown = cli("status", "--json")
    assert shown.code == exit_code
    stuck = [one for one in shown.json["stuck"] if one["code"] == code and re.match(sentence, one["text"])]
    assert stuck, shown.json["stuck"]
    assert is_down or str(task) in [ident for one in stuck for ident in one["tasks"]]
    assert re.search(rf"^stuck\t{code}\t", cli("status").out, re.MULTILINE)
    assert "ID" not in first["next"]
    if code == "CLASS_FULL":
        assert [host["busy"] for host in shown.json["hosts"]] == [1], "the host is busy, whatever its runner is called"
    if code == "PAUSED":
        assert cli("resume", "channel", "test").code == 0


def test_whoever_asks_with_a_bad_key_is_told(fleet: Fleet, cli: CliHere) -> None:
    """The key of the one who asks is refused: why and status say so and exit 77 and 69."""
    if fleet.stack.processes[0].exit_code is not None:
        fleet.stack.start_service()
    cli.env(DISPATCH_ATS_TOKEN="no-key-at-all")
    told = cli("why", "1", "--json")
    assert (told.code, told.json["reasons"][0]["code"]) == (77, "KEY_REFUSED")
    shown = cli("status", "--json")
    assert (shown.code, shown.json["stuck"][0]["code"]) == (69, "KEY_REFUSED")
