"""How the command line behaves: exit codes, signals, pipes, terminals, hostile text."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys

import pytest

from tests.support.cli import Cli
from tests.support.fake_ats import FakeAts
from tests.support.processes import ROOT, eventually
from tests.support.redis import RedisServer, free_port

HOSTILE = (
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x07bell \u202eright\u2066 a\rb\x9b2J \u2028end"
    "\x1b]52;c;cm0gLXJmIH4=\x07 \x1b[10A\x1b[2K\x1b[1;1H \x1bP+q544e\x1b\\ \x1b(0 \x1bc \u061c\U000e0041"
)
UNSAFE = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u2028-\u202e\u2066-\u2069\U000e0000-\U000e007f]"


@pytest.fixture
def ats():
    """A fake ATS with the extensions."""
    with FakeAts(fencing=True) as fake:
        yield fake


@pytest.fixture
def cli(ats, tmp_path):
    """The command line, set up for that service and for no Redis."""
    env = {"DISPATCH_ATS_URL": ats.url, "DISPATCH_REDIS_URL": f"redis://:pw@127.0.0.1:{free_port()}/0"}
    made = Cli(tmp_path, {**env, "DISPATCH_COMMAND": "/bin/true", "DISPATCH_DATA_DIR": str(tmp_path / "data")})
    yield made
    made.close()


# --- exit codes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "meant"), [("lsit", "list"), ("creat", "create"), ("statsu", "status"), ("xyzzy", "dispatch --help")]
)
def test_unknown_command_is_wrong_usage_with_a_suggestion(cli, typed, meant):
    """D2: a mistyped command does nothing but name the nearest one."""
    ended = cli.here(typed)
    assert ended.code == 2
    assert meant in ended.err
    assert ended.out == ""


@pytest.mark.parametrize("args", [["create"], ["show", "7/../8"], ["cancel"], ["list", "--nonsense"], ["show", "x y"]])
def test_wrong_usage_is_exit_2(ats, cli, args):
    """What cannot be done as typed is refused before anything is sent."""
    assert cli(*args).code == 2
    assert ats.calls == []


def test_unknown_task_is_exit_1(cli):
    """The service's refusal is the sentence on stderr."""
    ended = cli("show", "7")
    assert (ended.code, ended.out, ended.err) == (1, "", "dispatch: There is no task 7.\n")


def test_service_that_is_down_is_exit_69(ats, cli):
    """Unreachable is one line with the address and what to do, for every command that needs the service."""
    ats.stop()
    for args in (["list"], ["create", "t"], ["watch"], ["logs", "7", "-f"]):
        ended = cli(*args)
        assert ended.code == 69
        sentence = f"dispatch: The task service at {ats.url} gave no answer: connection refused."
        assert ended.err.startswith(f"{sentence} Start it with 'dispatch up'")
        assert ended.err.count("\n") == 1


def test_busy_service_is_exit_75(ats, cli):
    """A service that says when to come back is "try again later"."""
    ats.fault("answer", status=429, body=b'{"error": "too many calls"}', headers={"Retry-After": "7"})
    ended = cli("list", "--json")
    assert (ended.code, ended.err) == (75, "dispatch: too many calls\n")


def test_refused_key_is_exit_77(ats, cli):
    """A key that may not do this is "not permitted"; the sentence says where another one is named."""
    ats.fault("answer", status=403, body=b'{"error": "read-only access"}')
    ended = cli("create", "t")
    assert ended.code == 77
    assert ended.err.startswith("dispatch: read-only access. Name a file with a key")
    assert "DISPATCH_ATS_TOKEN_FILE" in ended.err


@pytest.mark.parametrize(
    ("env", "args", "word"),
    [
        ({"DISPATCH_CHANEL": "x"}, [], "DISPATCH_CHANNEL"),
        ({"DISPATCH_LEASE_MS": "soon"}, [], "DISPATCH_LEASE_MS"),
        ({}, ["--url", "ftp://x"], "ats_url"),
        ({}, ["--token-file", "missing"], "missing"),
        ({}, ["--org", "acme"], "DISPATCH_ATS_PROJECT"),
    ],
)
def test_wrong_settings_are_exit_78(cli, env, args, word):
    """A wrong setting is one sentence that names it."""
    ended = cli.here("list", *args, env=env)
    assert ended.code == 78
    assert word in ended.err
    assert len(ended.err.splitlines()) == 1


def test_options_win_over_the_environment(ats, cli, tmp_path):
    """--url, --token-file, --org, --project, --actor-id and --actor-name override settings, wherever they stand."""
    (tmp_path / "token").write_text("s3cret\n")
    env = {"DISPATCH_ATS_URL": "http://127.0.0.1:1", "DISPATCH_ATS_TOKEN": "old"}
    ended = cli.here(
        "--url", ats.url, "--org", "o", "list", "--project", "p", "--token-file", "token", "--actor-id", "bot", env=env
    )
    assert ended.code == 0, ended.err
    _, path, headers, _ = ats.calls[-1]
    assert path.startswith("/orgs/o/projects/p/tasks?")
    assert (headers["Authorization"], headers["X-Actor-ID"], headers["X-Actor-Name"]) == ("Bearer s3cret", "bot", "bot")


# --- signals, pipes, terminals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [["watch"], ["watch", "--json"], ["create", "t", "--wait"], ["logs", "100", "-f"]])
def test_interrupt_is_quiet_and_exit_130(ats, cli, args):
    """Ctrl-C ends a command without a traceback."""
    ats.add()
    process = cli.start(*args)
    eventually(lambda: ats.subscriptions)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "Aborted" not in err


def test_closed_pipe_is_quiet(ats, cli):
    """A reader that goes away ends the command without a word."""
    for _ in range(400):
        ats.add(title="x" * 400)
    process = cli.start("list", "--json", "--limit", "400")
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 141


def test_terminal_gets_tables_and_pipes_do_not(ats, cli):
    """On a terminal there are headings, colours and times as people say them."""
    ats.add(title="hello")
    shown = cli.on_terminal("list")
    assert shown.code == 0
    assert "\x1b[" in shown.out
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown.out)
    assert re.search(r"ID +STATUS +PRIO +CHANNEL +CREATED +TITLE", plain)
    assert re.search(r"100 +pending +5 +default +(now|\d+ s ago) +hello", plain)
    assert "\x1b[" not in cli("list").out


def test_a_narrow_terminal_keeps_every_id(ats, cli):
    """Where a table has no room, each task is a block of lines with its whole id, which one would have to type."""
    for _ in range(2):
        ats.add(title="a long title that nobody could show in forty columns", channel="reports")
    cli.env["COLUMNS"] = "40"
    shown = re.sub(r"\x1b\[[0-9;]*m", "", cli.on_terminal("list").out)
    assert sorted(re.findall(r"ID +(\d+)\n", shown)) == ["100", "101"]
    assert "…" not in shown


def test_a_terminal_of_another_encoding(ats, cli):
    """What the terminal cannot write is an escape, not a traceback."""
    ats.add(title="日本")
    shown = cli("list", "--limit", "1", env={"PYTHONIOENCODING": "latin-1:strict"})
    assert shown.code == 0, shown.err
    assert "\\u65e5\\u672c" in shown.out


def test_watch_on_a_terminal_ends_with_ctrl_c(ats, cli):
    """A person sees that it watches, and leaves with Ctrl-C."""
    shown = cli.on_terminal("watch", interrupt_at="Watching.")
    assert shown.code == 130
    assert "Traceback" not in shown.out


@pytest.mark.parametrize("command", [["list"], ["show", "100"], ["logs", "100"], ["show", "100", "--json"]])
def test_text_of_tasks_cannot_drive_the_terminal(ats, cli, command):
    """Control sequences, bells, reordering marks and fake lines in titles, threads and results never get through."""
    ats.add(title=HOSTILE + "\n101  completed", description=HOSTILE, payload={"x": HOSTILE})
    ats.tasks[100] |= {"outputs": [{"response": HOSTILE}], "status": "completed", "reason": HOSTILE}
    for ident, kind in enumerate(("message", "log"), 1):
        said = {"id": ident, "kind": kind, "actor_name": HOSTILE, "parts": [{"type": "text", "content": HOSTILE}]}
        ats.tasks[100]["messages"].append(said)
    shown = cli.on_terminal(*command).out
    shown = re.sub(r"\x1b\[[0-9;]*m", "", shown)  # the colours are ours: those of the title carry no marker
    assert not re.search(UNSAFE, shown)
    piped = cli(*command).out
    assert not re.search(UNSAFE, piped)
    if command == ["list"]:
        assert len(piped.splitlines()) == 1


def test_what_a_program_said_is_shown_as_it_said_it(ats, cli):
    """On a terminal a reason keeps its lines, and a progress bar in a response is seen as it was last."""
    ats.add(title="t")
    ats.tasks[100] |= {"outputs": [{"response": "  5 %\r100 %\nend"}], "status": "failed", "reason": "exit 1: a\nb"}
    lines = re.sub(r"\x1b\[[0-9;]*m", "", cli.on_terminal("show", "100").out).splitlines()
    at = lines.index("Reason")
    assert lines[at + 1 : at + 3] == ["exit 1: a", "b"]
    assert lines[lines.index("Response") + 1 :] == ["100 %", "end"]
    assert "reason\texit 1: a b" in cli("show", "100").out.splitlines()


def test_refusal_of_the_service_cannot_drive_the_terminal(ats, cli):
    """The service's sentence is cleaned as well."""
    ats.fault("answer", status=400, body=b'{"error": "a\\u001b[2J\\nb"}')
    assert cli("list").err == "dispatch: a [2J b\n"


# --- doctor and status ----------------------------------------------------------------------------------------------


@pytest.fixture
def redis_server(tmp_path_factory):
    """A private Redis with a TCP port."""
    with RedisServer(tmp_path_factory.mktemp("r"), tcp=True) as server:
        yield server


def test_doctor_is_content_with_a_good_standing(ats, cli, redis_server):
    """Everything there: exit 0; what could be better is a warning."""
    ended = cli("doctor", "--json", env={"DISPATCH_REDIS_URL": redis_server.tcp_url})
    assert ended.code == 0
    assert [(check["name"], check["state"]) for check in ended.json] == [
        ("settings", "ok"),
        ("service", "ok"),
        ("redis", "ok"),
        ("executor", "ok"),
        ("data_dir", "ok"),
        ("user", "warning" if os.geteuid() == 0 else "ok"),
        ("limits", "ok"),
        ("idle", "ok"),
        ("callbacks", "warning"),
        ("traces", "ok"),
        ("sealing", "ok"),
        ("keys", "ok"),
        ("workers", "warning"),
    ]


def test_doctor_names_everything_that_is_wrong_at_once(ats, cli, tmp_path):
    """Each failing check has a sentence and advice; passwords are not shown."""
    ats.stop()
    (tmp_path / "data").mkdir(mode=0o755)
    (tmp_path / "data").chmod(stat.S_IRWXU | stat.S_IROTH)
    (tmp_path / "tool").write_text("")
    ended = cli("doctor", env={"DISPATCH_COMMAND": str(tmp_path / "tool")})
    assert ended.code == 78
    assert "pw" not in ended.out
    rows = {line.split("\t")[1]: line.split("\t") for line in ended.out.splitlines()}
    assert [rows[name][0] for name in ("service", "redis", "executor", "data_dir")] == [
        "error",
        "error",
        "error",
        "warning",
    ]
    assert "chmod +x" in rows["executor"][3]
    assert "chmod 700" in rows["data_dir"][3]
    assert "dispatch serve" in rows["service"][3]


def test_doctor_on_a_terminal(ats, cli):
    """A person gets sentences with advice below."""
    shown = cli.on_terminal("doctor").out
    assert "The settings are consistent." in shown
    assert "Start Redis, or set DISPATCH_REDIS_URL" in shown


def test_doctor_with_broken_settings(cli):
    """Settings that cannot be read are the one thing it says."""
    ended = cli("doctor", "--json", env={"DISPATCH_LEASE_MS": "soon"})
    assert ended.code == 78
    assert [(check["name"], check["state"]) for check in ended.json] == [("settings", "error")]


def test_foreign_service_is_a_warning(ats, cli, redis_server):
    """A service without fencing tokens works, and the doctor says what that means."""
    ats.switches.fencing = False
    ended = cli("doctor", "--json", env={"DISPATCH_REDIS_URL": redis_server.tcp_url})
    assert ended.code == 0
    assert "no fencing tokens" in ended.json[1]["sentence"]


def test_status_shows_counts_queue_and_workers(ats, cli, redis_server):
    """Service, counts, oldest pending task, queue and workers on one screen."""
    ats.add()
    ats.add(status="failed")
    with redis_server.client() as client:
        client.rpush("dispatch:dispatch", "a", "b")
        worker = '{"node": "w1@h", "host": "h", "pid": 7, "slots": 4, "queues": ["dispatch"]}'
        client.set("dispatch:worker:w1@h:7", worker)
        client.set("dispatch:worker:odd", "[]")
    env = {"DISPATCH_REDIS_URL": redis_server.tcp_url}
    found = cli("status", "--json", env=env)
    assert found.code == 0
    assert (found.json["tasks"]["pending"], found.json["tasks"]["failed"]) == (1, 1)
    assert found.json["tasks"]["oldest_pending"]["id"] == "100"
    assert found.json["redis"]["queued"] == 2
    assert [worker["node"] for worker in found.json["workers"]] == ["w1@h"]
    out = cli("status", env=env).out
    assert "tasks\t1 pending, 1 failed\n" in out
    assert "w1@h\th\t7\t4\tok\t\tdispatch\t0\n" in out


def test_redis_of_dispatch_up_is_found(ats, cli, short_dir):
    """Where nobody named a Redis, looking means the one that 'dispatch up' runs in the data directory."""
    here = Cli(short_dir, {"DISPATCH_ATS_URL": ats.url, "DISPATCH_DATA_DIR": str(short_dir / "data")})
    with RedisServer(short_dir / "data" / "redis"):
        assert here("status", "--json").json["redis"]["reachable"] is True
    here.close()


def test_status_says_what_is_down(ats, cli):
    """Without Redis or the service the rest is shown, and the exit code is 69."""
    ended = cli("status", "--json")
    assert ended.code == 69
    assert (ended.json["service"]["reachable"], ended.json["redis"]["reachable"]) == (True, False)
    ats.stop()
    ended = cli("status")
    assert ended.code == 69
    assert "service\terror" in ended.out
    assert "redis\terror" in ended.out


def test_ingress_without_redis_claims_nothing_and_is_exit_69(ats, cli):
    """Preflight: one sentence on stderr before anything is claimed, the password not in it."""
    ats.add()
    ended = cli("ingress")
    assert ended.code == 69
    assert ended.err.startswith("dispatch: Redis at redis://:***@127.0.0.1:")
    assert not [call for call in ats.calls if call[0] == "POST"]


def test_worker_takes_the_place_of_celery(cli):
    """``dispatch worker`` ends in the same Celery command, its arguments untouched."""
    ended = cli("worker", "--help")
    assert "dispatch worker" in ended.out
    ended = cli("--channel", "img", "worker", "--no-such-option")
    assert ended.code == 2
    assert "celery" in ended.err.lower() or "no such option" in ended.err.lower()


@pytest.mark.parametrize("command", ["worker", "flower"])
def test_celery_says_what_is_wrong_with_a_setting(tmp_path, command):
    """``celery -A dispatch ...`` with a wrong setting: one sentence and 78, which no supervisor starts again."""
    env = {"PATH": os.defpath, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "DISPATCH_LEASE_MS": "abc"}
    argv = [sys.executable, "-m", "celery", "-A", "dispatch", command]
    done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == "DISPATCH_LEASE_MS must be a number of milliseconds (it is 'abc').\n"
