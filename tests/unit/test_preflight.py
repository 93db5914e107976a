"""What the checks before the start find, on real directories and a real Redis."""

from __future__ import annotations

import pytest

from dispatch import preflight, settings
from dispatch.crypto.files import key_files
from dispatch.crypto.keys import KeyPair
from dispatch.crypto.trust import Sender
from dispatch.errors import (
    AuthenticationError,
    BrokerUnavailableError,
    ConfigurationError,
    GatewayUnavailableError,
)
from dispatch.preflight.sealing import check_sealing
from tests.support.fake_ats import FakeAts
from tests.support.redis import RedisServer, free_port

BOTH = ("service", "redis")
ALL = ("executor", "data_dir", *BOTH)


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    """A private Redis with a TCP port."""
    with RedisServer(tmp_path_factory.mktemp("r"), tcp=True) as server:
        yield server


@pytest.fixture
def ats():
    """A fake ATS with the extensions."""
    with FakeAts(fencing=True) as fake:
        yield fake


@pytest.fixture
def env(ats, redis_server, tmp_path):
    """Settings under which everything is well."""
    return {
        "DISPATCH_ATS_URL": ats.url,
        "DISPATCH_REDIS_URL": redis_server.tcp_url,
        "DISPATCH_COMMAND": "/bin/true",
        "DISPATCH_DATA_DIR": str(tmp_path),
    }


def test_preflight_returns_what_it_found(env, ats):
    """The check of the service carries its extensions; a foreign one announces none, which is a warning."""
    found = {check.name: check for check in preflight.preflight(settings.load(env), ALL)}
    assert {check.state for check in found.values()} == {"ok"}
    assert "fencing" in found["service"].extensions
    ats.switches.fencing = False
    [check] = preflight.preflight(settings.load(env), ["service"])
    assert (check.state, check.extensions) == ("warning", frozenset())


@pytest.mark.parametrize(
    ("change", "kind", "code"),
    [
        ({"DISPATCH_COMMAND": "no-such-program -p"}, ConfigurationError, 78),
        ({"DISPATCH_COMMAND": "/etc"}, ConfigurationError, 78),
        ({"DISPATCH_DATA_DIR": "/etc/passwd/data"}, ConfigurationError, 78),
        ({"DISPATCH_ATS_URL": f"http://127.0.0.1:{free_port()}"}, GatewayUnavailableError, 69),
        ({"DISPATCH_REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}, BrokerUnavailableError, 69),
        ({"DISPATCH_REDIS_URL": "unix:///nowhere/redis.sock?db=0"}, BrokerUnavailableError, 69),
    ],
)
def test_first_failure_is_raised_with_its_exit_code(env, change, kind, code):
    """What is missing on this host or set wrongly is 78, what does not answer is 69."""
    with pytest.raises(kind) as caught:
        preflight.preflight(settings.load({**env, **change}), ALL)
    assert type(caught.value).exit_code == code


def test_executor_matters_only_to_who_runs_tasks(env):
    """An ingress needs no executor on its host."""
    preflight.preflight(settings.load({**env, "DISPATCH_COMMAND": "no-such-program"}), BOTH)


def test_refused_key_is_not_permitted(env, ats):
    """A key that may not list tasks is told apart from a service that is down."""
    ats.fault("answer", "limit=1", status=401, body=b'{"error": "unknown key"}')
    with pytest.raises(AuthenticationError, match="unknown key"):
        preflight.preflight(settings.load(env), BOTH)


def test_something_else_at_the_address(env, ats):
    """A web server that is no task service is not claimed from."""
    ats.fault("answer", "/health", status=200, body=b'{"hello": "world"}')
    with pytest.raises(GatewayUnavailableError, match="not a task service"):
        preflight.preflight(settings.load(env), BOTH)


def test_redis_with_another_password(env, redis_server):
    """R6: a wrong password is one sentence without the password, at once."""
    with redis_server.client() as client:
        client.config_set("requirepass", "right-one")
    try:
        found = settings.load({**env, "DISPATCH_REDIS_PASSWORD": "wr0ng"})
        with pytest.raises(ConfigurationError) as caught:
            preflight.preflight(found, BOTH)
        assert "wr0ng" not in str(caught.value)
        preflight.preflight(settings.load({**env, "DISPATCH_REDIS_PASSWORD": "right-one"}), BOTH)
    finally:
        with redis_server.client(password="right-one") as client:
            client.config_set("requirepass", "")


def test_redis_that_takes_no_writes(env, redis_server):
    """R4: a Redis that refuses writes is found before a task is claimed for it; what passes is no setting to change."""
    with redis_server.client() as client:
        client.config_set("maxmemory", "1")
    try:
        with pytest.raises(BrokerUnavailableError, match=r"takes no writes.* raise maxmemory\.$"):
            preflight.preflight(settings.load(env), BOTH)
    finally:
        with redis_server.client() as client:
            client.config_set("maxmemory", "0")


def test_a_redis_that_is_a_replica(env, redis_server):
    """After a failover the old primary takes no writes until it is one again: exit 69, so that units try again."""
    with redis_server.client() as client:
        client.replicaof("127.0.0.1", free_port())
    try:
        with pytest.raises(BrokerUnavailableError, match="primary"):
            preflight.preflight(settings.load(env), BOTH)
    finally:
        with redis_server.client() as client:
            client.replicaof("NO", "ONE")


def test_a_database_that_redis_does_not_have(env, redis_server):
    """A wrong number at the end of the URL is a wrong setting and says so, without a word about disks."""
    url = redis_server.tcp_url.removesuffix("0") + "99"
    with pytest.raises(ConfigurationError, match="no such database") as caught:
        preflight.preflight(settings.load({**env, "DISPATCH_REDIS_URL": url}), BOTH)
    assert "disk" not in str(caught.value)
    assert ".." not in str(caught.value)


SAFE = {
    "maxmemory": "0",
    "maxmemory-policy": "noeviction",
    "appendonly": "yes",
    "bind": "127.0.0.1",
    "protected-mode": "yes",
}


@pytest.mark.parametrize(
    ("change", "has_password", "states"),
    [
        ({}, False, []),
        ({"maxmemory-policy": "allkeys-lru"}, False, ["warning"]),
        ({"maxmemory-policy": "allkeys-lru", "maxmemory": "1000"}, False, ["error"]),
        ({"appendonly": "no"}, False, ["warning"]),
        ({"bind": "0.0.0.0", "protected-mode": "no"}, False, ["warning"]),
        ({"bind": "* -::*", "protected-mode": "no"}, False, ["warning"]),
        ({"bind": "", "protected-mode": "no"}, False, ["warning"]),
        ({"bind": "0.0.0.0", "protected-mode": "no"}, True, []),
        ({"bind": "127.0.0.1 -::1", "protected-mode": "no"}, False, []),
    ],
)
def test_configuration_of_redis_is_judged(change, has_password, states):
    """Throwing tasks away is an error, losing time or being open to the network a warning."""
    found = preflight.broker.redis_warnings({**SAFE, **change}, has_password=has_password)
    assert [check.state for check in found] == states


def test_the_size_of_the_database_is_told_where_it_is(env, tmp_path):
    """On the task service's host the database and what waits to be merged into it are counted."""
    found = settings.load({**env, "DISPATCH_DATA_DIR": str(tmp_path / "data")})
    (tmp_path / "data").mkdir(mode=0o700)
    assert "the database has" not in preflight.host.check_data_dir(found)[0].sentence
    (tmp_path / "data" / "tasks.db").write_bytes(b"0" * 2_000_000)
    (tmp_path / "data" / "tasks.db-wal").write_bytes(b"0" * 200_000)
    [check] = preflight.host.check_data_dir(found)
    assert (check.state, check.sentence) == (
        "ok",
        f"The data directory {tmp_path / 'data'} can be written; the database has 2.1 MiB.",
    )


def test_data_directory_that_others_may_read(env, tmp_path):
    """A directory open to others is a warning with the command that mends it; a missing one is fine."""
    tmp_path.chmod(0o750)
    [check] = preflight.host.check_data_dir(settings.load(env))
    assert (check.state, check.advice) == ("warning", f"Try 'chmod 700 {tmp_path}'.")
    tmp_path.chmod(0o700)
    [check] = preflight.host.check_data_dir(settings.load(env))
    assert check.state == "ok"
    missing = {**env, "DISPATCH_DATA_DIR": str(tmp_path / "a" / "b")}
    assert [check.state for check in preflight.host.check_data_dir(settings.load(missing))] == ["ok"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "state", "words"),
    [
        ({}, "warning", "unsigned"),
        ({"DISPATCH_CALLBACK_SECRET": "whsec_" + "A" * 32}, "ok", "People are told nowhere"),
        (
            {"DISPATCH_TELEGRAM_TOKEN": "1:canary", "DISPATCH_TELEGRAM_CHAT_ID": "1"},
            "warning",
            "People are told in: telegram",
        ),
        ({"DISPATCH_TELEGRAM_TOKEN": "1:canary"}, "error", "set both or neither"),
        ({"DISPATCH_CALLBACK_SECRET": "canary"}, "error", "must be whsec_"),
        ({"DISPATCH_CALLBACK_ALLOW_PRIVATE": "10.0.0.0/99"}, "error", "neither a network"),
    ],
)
def test_callbacks_and_chats_are_judged(env, change, state, words):
    """Unsigned callbacks are a warning; what cannot be is an error, which shows no secret."""
    (check,) = preflight.telling.check_callbacks(settings.load({**env, **change}))
    assert check.state == state
    assert words in check.sentence
    assert "canary" not in check.sentence


EXECUTORS = """
[executors.default]
command = "sh -c true"
env = ["PATH", "SPELT_WORNG"]
[executors.gone]
command = "no-such-program {payload.x}"
[executors.post]
kind = "http"
url = "https://h.example/run?secret=1"
headers = { A = "env:NOT_SET_HERE" }
[executors.call]
kind = "python"
function = "json:dumps"
[executors.lost]
kind = "python"
function = "no_such_module.inner:run"
"""


def test_what_a_command_probably_does_not_mean_is_said(tmp_path):
    """Scripts that the kernel would not start, signs of a shell, and braces that stand for nothing are warnings."""
    for name, line in (("bare", "echo x\n"), ("lost", "#!/no/such/sh -e\n"), ("fine", "#!/bin/sh\n")):
        (tmp_path / name).write_text(line)
        (tmp_path / name).chmod(0o755)
    commands = (f"{tmp_path}/bare", f"{tmp_path}/lost", f"{tmp_path}/fine {{titel}}", "sh -c $A", "cat a | wc $HOME")
    tables = "".join(f"[executors.e{at}]\ncommand = {command!r}\n" for at, command in enumerate(commands))
    (tmp_path / "d.toml").write_text("[executors.default]\ncommand = 'sh'\n" + tables)
    found = preflight.host.check_executor(settings.load({"DISPATCH_CONFIG": str(tmp_path / "d.toml")}))
    said = [check.sentence for check in found if check.state == "warning"]
    assert [
        sentence.partition(" " + str(tmp_path))[0].partition(" {")[0].partition(": there")[0] for sentence in said
    ] == [
        "The executor e0:",
        "The executor e1:",
        "In [executors.e2]",
        "In [executors.e4] | is an argument like any other",
    ]
    assert said[0].endswith("is a text without a #! line, which the kernel does not start.")
    assert said[1].endswith("names an interpreter that is not there: /no/such/sh.")
    assert "{titel} is no value of a task and stays as it is" in said[2]


def test_each_executor_is_looked_at(tmp_path, monkeypatch):
    """Only the default is needed for a start; of the others it is said what is missing, and nothing secret."""
    (tmp_path / "d.toml").write_text(EXECUTORS)
    found = preflight.host.check_executor(settings.load({"DISPATCH_CONFIG": str(tmp_path / "d.toml")}))
    assert [check.state for check in found] == ["ok", "warning", "warning", "warning", "ok", "warning"]
    said = " ".join(f"{check.sentence} {check.advice}" for check in found)
    for piece in (
        "may see SPELT_WORNG of",
        "no-such-program was not found on PATH",
        "NOT_SET_HERE",
        "is json:dumps",
        "no_such_module",
    ):
        assert piece in said
    assert "secret" not in said
    (tmp_path / "d.toml").write_text(EXECUTORS.replace("sh -c true", "no-such-default"))
    found = preflight.host.check_executor(settings.load({"DISPATCH_CONFIG": str(tmp_path / "d.toml")}))
    assert (found[0].state, "change [executors.default]" in found[0].advice) == ("error", True)
    monkeypatch.setenv("DISPATCH_COMMAND", "cat")
    path = str(tmp_path / "d.toml")
    found = preflight.host.check_executor(settings.load({"DISPATCH_CONFIG": path, "DISPATCH_COMMAND": "cat"}))
    assert found[-1].sentence.startswith("DISPATCH_COMMAND is set, and does nothing beside [executors.default]")


def test_key_files_that_cannot_be_used_are_an_error(env):
    """While they cannot be read, or others can read them, no task runs; doctor names the file and what to do."""
    found = settings.load(env)
    files = key_files(found)
    assert [(check.state, "no key pair" in check.sentence) for check in check_sealing(found)] == [("ok", True)]
    files.make_key(now_s=0.0)
    files.add_sender(Sender("alice", KeyPair.make().public))
    assert [check.sentence for check in check_sealing(found)] == ["Sealed tasks of 1 sender are opened."]
    ring = files.directory / "dispatcher.json"
    ring.chmod(0o644)
    [check] = check_sealing(found)
    assert (check.state, "no task runs here" in check.sentence, f"chmod 600 {ring}" in check.sentence) == (
        "error",
        True,
        True,
    )
    ring.chmod(0o600)
    (files.directory / "pending.json").write_text("{")
    (files.directory / "pending.json").chmod(0o600)
    assert [check.state for check in check_sealing(found)] == ["error"]


def test_a_demand_that_nobody_can_meet_is_warned_of(env):
    """Only sealed tasks, but no key pair, or nobody who may seal any."""
    found = settings.load({**env, "DISPATCH_REQUIRE_ENCRYPTION": "true"})
    assert [(check.state, "no key pair" in check.sentence) for check in check_sealing(found)] == [("warning", True)]
    key_files(found).make_key(now_s=0.0)
    assert [(check.state, "no trusted sender" in check.sentence) for check in check_sealing(found)] == [
        ("warning", True)
    ]
    key_files(found).add_sender(Sender("alice", KeyPair.make().public))
    assert [(check.state, check.sentence.endswith("nothing else is accepted.")) for check in check_sealing(found)] == [
        ("ok", True)
    ]
