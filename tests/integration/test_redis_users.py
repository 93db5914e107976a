"""The fleet with the Redis that operators are given: config/redis.conf and the users of config/redis-users.conf."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import kombu
import pytest
import redis

from dispatch.broker import celery_url, connect, shown_url
from dispatch.settings import load
from tests.support.cli import Cli
from tests.support.processes import ROOT, eventually
from tests.support.promises import promised
from tests.support.redis import ConfiguredRedis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.stack import Stack

ROLES = ("ingress", "worker", "flower")
INTRODUCTIONS = {"client", "client|setinfo", "client|maint_notifications"}
"""redis-py introduces itself, and does without where that is refused, as every Redis before 7.2 does."""
SENT_AS = {"incr": "incrby", "decr": "decrby", "delete": "del", "pubsub": "subscribe"}
"""Methods of redis-py whose command has another name."""


@pytest.fixture
def configured(short_dir: Path) -> Iterator[ConfiguredRedis]:
    """A running Redis as config/ has it."""
    with ConfiguredRedis(short_dir / "redis") as server:
        yield server


def refused_things(server: ConfiguredRedis) -> set[tuple[str, str, str]]:
    """What Redis refused to somebody: user, kind and name. Being refused its configuration is foreseen."""
    with closing(server.client()) as client:
        found = {(entry["username"], entry["reason"], entry["object"]) for entry in client.acl_log()}
    return {one for one in found if one[2] not in INTRODUCTIONS and not one[2].startswith("config")}


def test_the_fleet_does_all_its_work_as_these_users(make_stack: Callable[..., Stack], tmp_path: Path):
    """Tasks, retries, chains, chords, a failing graph, a cancel, status and doctor: nothing is refused to anybody."""
    stack = make_stack()
    stack.redis = ConfiguredRedis(stack.directory / "redis")
    stack.redis.start()
    stack.start_service()
    ingress = stack.start_ingress(stack.redis.settings("ingress"))
    worker = stack.start_worker(4, stack.redis.settings("worker"))
    first, flaky = (stack.create(tick={"duration_s": 0.1, "exits": exits})["id"] for exits in ([0], [1, 0]))
    chained = stack.create(payload={"depends_on": [first]}, tick={"duration_s": 0.1})["id"]
    chorded = stack.create(payload={"depends_on": [first, flaky]}, tick={"duration_s": 0.1})["id"]
    doomed = stack.create(tick={"duration_s": 0.1, "exits": [1]})["id"]
    behind = stack.create(payload={"depends_on": [doomed, first]}, tick={})["id"]
    for ident in (first, flaky, chained, chorded):
        assert stack.wait_task(ident)["status"] == "completed"
    assert [stack.wait_task(ident)["status"] for ident in (doomed, behind)] == ["failed", "failed"]
    long = stack.create(tick={"duration_s": 300})["id"]
    eventually(lambda: stack.tick_lines(long), "the long task running")
    assert stack.call("POST", f"/tasks/{long}/cancel", {})[0] == 200
    with promised(3.0, "the end of the cancelled attempt"):
        worker.wait_event("attempt_ended", reason="cancelled")
    for user in ("ingress", "worker"):
        cli = Cli(tmp_path, {**stack.env, **stack.redis.settings(user)})
        assert [node["slots"] for node in cli("status", "--json").json["workers"]] == [4]
        looked = [check for check in cli("doctor", "--json").json if check["name"] == "redis"]
        assert [check["state"] for check in looked] == ["ok"]
        cli.close()
    assert refused_things(stack.redis) == set()
    for process in (ingress, worker):
        assert not process.find("preflight_warning", check="redis")
        assert not [line for line in process.output if "NOPERM" in line or "no permissions" in line]


def test_status_counts_what_is_queued(configured: ConfiguredRedis, tmp_path: Path):
    """The numbers of the queue are those of the names under which Celery keeps it, prefix and all."""
    with closing(configured.client("ingress")) as client:
        client.lpush("dispatch:later", "one", "two")
        client.hset("dispatch:unacked", "tag", "three")
    cli = Cli(tmp_path, {**configured.settings("ingress"), "DISPATCH_QUEUE": "later"})
    shown = cli("status", "--json").json["redis"]
    assert (shown["queued"], shown["being_delivered"]) == (2, 1)


@pytest.mark.parametrize(
    "form", ["redis://127.0.0.1:{port}/0", "unix://{path}?db=0", "redis+socket://{path}?virtual_host=0"]
)
def test_user_and_password_go_with_every_form_of_the_url(configured: ConfiguredRedis, form: str, tmp_path: Path):
    """By TCP or by a socket, for redis-py and for Celery, whatever is in the password; shown without it."""
    odd = "p@ss:/?#[] &%ü"
    with closing(configured.client()) as client:
        client.acl_setuser("ingress", enabled=True, passwords=["+" + odd])
    (tmp_path / "word").write_text(odd)
    url = form.format(port=configured.port, path=configured.socket_path)
    broker = load(
        {
            "DISPATCH_REDIS_URL": url,
            "DISPATCH_REDIS_USER": "ingress",
            "DISPATCH_REDIS_PASSWORD_FILE": str(tmp_path / "word"),
        }
    ).broker
    with closing(connect(broker)) as client:
        assert client.ping()
    with kombu.Connection(celery_url(broker)) as connection:
        assert connection.default_channel.client.ping()
    shown = shown_url(broker)
    assert "ingress:***@" in shown
    assert "p%40ss" not in shown


@pytest.mark.parametrize("user", ROLES)
def test_no_user_of_the_fleet_can_do_more(configured: ConfiguredRedis, user: str):
    """Emptying, listing, configuring, spying and other programs' names are refused; so is everybody without a login."""
    forbidden = [
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("KEYS", "*"),
        ("CONFIG", "GET", "requirepass"),
        ("CONFIG", "SET", "maxmemory", "1"),
        ("MONITOR",),
        ("SHUTDOWN",),
        ("DEBUG", "SLEEP", "0"),
        ("ACL", "LIST"),
        ("CLIENT", "LIST"),
        ("CLIENT", "KILL", "TYPE", "normal"),
        ("SCRIPT", "FLUSH"),
        ("MODULE", "LIST"),
        ("REPLICAOF", "NO", "ONE"),
        ("SAVE",),
        ("MIGRATE", "127.0.0.1", "1", "k", "0", "1"),
        ("GET", "another-program"),
        ("PUBLISH", "another-channel", "text"),
        ("EVAL", "return redis.call('KEYS', '*')", "0"),
        ("EVAL", "return redis.call('GET', 'another-program')", "0"),
    ]
    with closing(configured.client(user)) as client:
        for command in forbidden:
            with pytest.raises(redis.ResponseError, match=r"(?i)perm|access|can.t run|ACL|not allowed"):
                client.execute_command(*command)
        assert client.set("dispatch:mine", "1")
    for wrong in ({"username": None, "password": None}, {"password": "guess"}, {"username": "default"}):
        with closing(configured.client(user, **wrong)) as client, pytest.raises(redis.AuthenticationError):
            client.ping()


def test_passwords_are_made_once_and_for_their_owner(tmp_path: Path):
    """Files with mode 0600, long random words, hashes only in the file of users; a second run changes nothing."""
    os.umask(os.umask(0o022))
    run = ["sh", str(ROOT / "config/redis-users.sh"), str(tmp_path / "made")]
    subprocess.run(run, check=True)
    made = {path.name: path.read_text() for path in (tmp_path / "made").iterdir()}
    assert set(made) == {f"redis-{user}.password" for user in (*ROLES, "admin")} | {"redis-users.conf"}
    rules = made.pop("redis-users.conf")
    assert all(len(word) == 48 and word not in rules for word in made.values())
    assert len(set(made.values())) == 4
    assert "#HASH" not in [word for line in rules.splitlines() if line.startswith("user ") for word in line.split()]
    for path in [tmp_path / "made", *(tmp_path / "made").iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    subprocess.run(run, check=True)
    again = {path.name: path.read_text() for path in (tmp_path / "made").iterdir()}
    assert again == {**made, "redis-users.conf": rules}
    assert subprocess.run(run[:2], capture_output=True, check=False).returncode == 2


@pytest.mark.parametrize(
    ("user", "parts"),
    [
        ("ingress", ("dispatch", "dispatch/cli", "dispatch/ingress", "dispatch/ats")),
        ("worker", ("dispatch", "dispatch/cli", "workers", "dispatch/runner", "dispatch/ats")),
    ],
)
def test_rights_cover_every_command_in_the_code(configured: ConfiguredRedis, user: str, parts: tuple[str, ...]):
    """Each Redis command that a part calls, in Lua too, is among its user's rights, also where no test goes.

    What Celery sends is not looked up here: that is what the fleet's test is for.
    """
    text = "".join(path.read_text("utf-8") for part in parts for path in (ROOT / part).glob("*.py"))
    with closing(configured.client()) as client:
        known = {name.lower() for name in client.command()}
    (rights,) = re.findall(rf"^user {user} (.*)", (ROOT / "config/redis-users.conf").read_text("utf-8"), re.MULTILINE)
    called = set(re.findall(r"redis\.call\('(\w+)'", text)) | set(re.findall(r"(?:_redis|pipe|client)\.(\w+)\(", text))
    called = {SENT_AS.get(name.lower(), name.lower()) for name in called} & known
    assert len(called) >= 3
    assert not {name for name in called if f"+{name}" not in rights.split()}
