"""The commands on tasks against a service on a real socket, each kind at least once as a process."""

from __future__ import annotations

import json
import re
import threading

import pytest

from tests.support.cli import Cli
from tests.support.fake_ats import FakeAts
from tests.support.processes import eventually


@pytest.fixture
def ats():
    """A fake ATS with the extensions."""
    with FakeAts(fencing=True) as fake:
        yield fake


@pytest.fixture
def cli(ats, tmp_path):
    """The command line, set up for that service."""
    made = Cli(tmp_path, {"DISPATCH_ATS_URL": ats.url})
    yield made
    made.close()


def bodies(ats, verb):
    """Return the bodies of all calls whose path ends so."""
    return [body for method, path, _, body in ats.calls if method != "GET" and path.endswith(verb)]


# --- create ---------------------------------------------------------------------------------------------------------


def test_create_prints_the_id_and_sends_all_it_was_given(ats, cli):
    """Piped, ``create`` prints the bare id; every option arrives, as a human with the user's name."""
    ended = cli(
        "create",
        "Do it",
        "-d",
        "all of it",
        "--payload",
        '{"w": 1}',
        "--priority",
        "high",
        "--channel",
        "img",
        "--type",
        "x",
    )
    assert (ended.code, ended.out, ended.err) == (0, "100\n", "")
    task = ats.tasks[100]
    assert [task[key] for key in ("title", "description", "payload", "priority", "channel", "type")] == [
        "Do it",
        "all of it",
        {"w": 1},
        7,
        "img",
        "x",
    ]
    headers = ats.calls[-1][2]
    assert (headers["X-Actor-Type"], headers["X-Actor-ID"], headers["X-Actor-Name"]) == ("human", "tester", "tester")


def test_create_json_is_one_document(ats, cli):
    """With --json the whole task comes as one JSON document and nothing else."""
    ended = cli.here("create", "t", "--json")
    assert ended.json["id"] == 100
    assert ended.out.count("\n") == 1


def test_description_and_payload_from_stdin_and_file(ats, cli, tmp_path):
    """- reads stdin, @file reads a file, @- reads JSON from stdin."""
    (tmp_path / "p.json").write_text('{"from": "file"}')
    assert cli("create", "a", "-d", "-", "--payload", "@p.json", stdin="long\ntext").code == 0
    assert cli("create", "b", "--payload", "@-", stdin="[1, 2]").code == 0
    assert (ats.tasks[100]["description"], ats.tasks[100]["payload"]) == ("long\ntext", {"from": "file"})
    assert ats.tasks[101]["payload"] == [1, 2]


@pytest.mark.parametrize("payload", ["{not json", "", "NaN", "@missing.json", "{'a': 1}"])
def test_invalid_payload_is_an_error_and_creates_nothing(ats, cli, payload):
    """D6: a payload that is no JSON is never replaced by something else."""
    ended = cli.here("create", "t", "--payload", payload)
    assert ended.code == 2
    assert ended.err.startswith("dispatch: ")
    assert len(ended.err.splitlines()) == 1
    assert ats.tasks == {}


@pytest.mark.parametrize("priority", ["0", "11", "5.5", "soon", "-1"])
def test_priority_out_of_range_is_wrong_usage(ats, cli, priority):
    """Only 1 to 10 and the known words are priorities."""
    assert cli.here("create", "t", "--priority", priority).code == 2
    assert ats.tasks == {}


def test_create_wait_follows_to_the_end(ats, cli):
    """--wait prints the id at once, ends with the response, and exits 0 because the task completed."""

    def work() -> None:
        eventually(lambda: ats.subscriptions, 20)
        ats.tasks[100] |= {"status": "completed", "outputs": [{"response": "all done\nreally"}]}
        ats.emit("completed", 100)

    thread = threading.Thread(target=work)
    thread.start()
    ended = cli("create", "t", "--wait")
    thread.join()
    assert (ended.code, ended.out) == (0, "100\nall done\nreally\n")


@pytest.mark.parametrize("status", ["failed", "cancelled", "rejected"])
def test_create_wait_exits_1_when_it_did_not_complete(ats, cli, status):
    """Every other end than completed is exit 1, with the reason; JSON shows the task as it ended."""

    def work() -> None:
        eventually(lambda: ats.subscriptions, 20)
        ats.tasks[100] |= {"status": status, "reason": "-1 exit"}
        ats.emit(status, 100)

    thread = threading.Thread(target=work)
    thread.start()
    ended = cli("create", "t", "--wait", "--json")
    thread.join()
    assert (ended.code, ended.json["status"], ended.json["reason"]) == (1, status, "-1 exit")


# --- option values as they are (B25) --------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["-1 exit", "--k=a=b", "a=b=c", "--reason", "-", "  "])
@pytest.mark.parametrize("form", ["separate", "joined"])
def test_reason_arrives_as_typed(ats, cli, reason, form):
    """B25: a value that begins with a dash or holds = arrives whole."""
    ats.add()
    ats.switches.fail_from_pending = True
    option = ["--reason", reason] if form == "separate" else [f"--reason={reason}"]
    assert cli.here("fail", "100", *option).code == 0
    assert bodies(ats, "/fail") == [{"reason": reason}]


@pytest.mark.parametrize("text", ["-x", "--verbose is missing", "--k=a=b", "-1 exit", "-hello", "plain"])
def test_message_arrives_as_typed(ats, cli, text):
    """B25: a message that begins with dashes is a message."""
    ats.add()
    assert cli.here("message", "100", text).code == 0
    assert bodies(ats, "/messages") == [{"parts": [{"type": "text", "content": text}]}]


def test_message_from_stdin_and_with_options(ats, cli):
    """- reads stdin; known options may stand before or after the text; -- takes everything literally."""
    ats.add()
    assert cli("message", "100", "-", stdin="piped\n").code == 0
    assert cli("message", "100", "text", "--json").json["parts"][0]["content"] == "text"
    assert cli("message", "--json", "100", "--", "--json").json["parts"][0]["content"] == "--json"
    assert cli("message", "100", " ").code == 2
    assert [m["parts"][0]["content"] for m in ats.tasks[100]["messages"]] == ["piped\n", "text", "--json"]


# --- moves ----------------------------------------------------------------------------------------------------------


def test_moves_say_what_they_did(ats, cli):
    """Each move is one line; several ids are moved one after the other."""
    for _ in range(2):
        ats.add()
    assert cli("cancel", "100", "#101").out == "Task 100 cancelled.\nTask 101 cancelled.\n"
    assert cli("reopen", "100").out == "Task 100 reopened.\n"
    assert cli("reject", "100", "-r", "not ours").out == "Task 100 rejected.\n"
    assert [ats.tasks[n]["status"] for n in (100, 101)] == ["rejected", "cancelled"]


def test_complete_by_hand(ats, cli):
    """A result may be given as text or as JSON; one object is sent as a list."""
    for number in (100, 101, 102):
        ats.add(status="in_progress")
        ats.tasks[number]["assignee_id"] = "w"
    assert cli.here("complete", "100").code == 0
    assert cli.here("complete", "101", "--response", "-text").code == 0
    assert cli.here("complete", "102", "--outputs", '{"a": 1}', "--json").json["outputs"] == [{"a": 1}]
    assert bodies(ats, "/complete") == [{}, {"outputs": [{"response": "-text"}]}, {"outputs": [{"a": 1}]}]
    assert cli.here("complete", "102", "--outputs", "{").code == 2


def test_refused_move_is_one_sentence_and_exit_1(ats, cli):
    """A refusal shows the service's sentence; the other tasks are moved all the same."""
    ats.add(status="completed")
    ats.add()
    ended = cli("cancel", "100", "101", "999")
    assert ended.code == 1
    assert ended.out == "Task 101 cancelled.\n"
    assert ended.err == "dispatch: Task 100: The task is in completed status.\ndispatch: There is no task 999.\n"


# --- list, show, logs -----------------------------------------------------------------------------------------------


def test_list_piped_is_tab_separated(ats, cli):
    """Without a terminal each task is one line of tab-separated fields, without headings or colours."""
    ats.add(title="one", priority=9)
    ats.add(title="two\tlines\nhere", channel="img")
    lines = cli("list", "--sort", "priority").out.splitlines()
    assert [line.split("\t")[:4] for line in lines] == [
        ["100", "pending", "9", "default"],
        ["101", "pending", "5", "img"],
    ]
    assert lines[1].split("\t")[5] == "two lines here"


def test_list_passes_its_filters_on(ats, cli):
    """Every filter of the protocol can be given; times and words are checked before anything is sent."""
    ended = cli.here(
        *[
            "list",
            "--status",
            "pending,in-progress",
            "-s",
            "failed",
            "--type",
            "t",
            "--channel",
            "a,b",
            "--assignee",
            "me",
        ],
        *["--search", "x y", "--min-priority", "high", "--max-priority", "9", "--created-after", "2026-01-01"],
        *[
            "--updated-after",
            "2026-01-01T10:00:00+01:00",
            "--limit",
            "7",
            "--offset",
            "3",
            "--sort",
            "title",
            "--asc",
            "--json",
        ],
    )
    assert (ended.code, ended.json) == (0, [])
    path = ats.calls[-1][1]
    assert path == (
        "/tasks?status=pending%2Cin_progress%2Cfailed&type=t&channel=a%2Cb&assignee_id=me&search=x+y&min_priority=7"
        "&max_priority=9&created_after=2026-01-01T00%3A00%3A00.000Z&updated_after=2026-01-01T09%3A00%3A00.000Z"
        "&limit=7&offset=3&sort_by=title&sort_dir=asc"
    )
    for wrong in (
        ["--status", "done"],
        ["--created-after", "soon"],
        ["--limit", "0"],
        ["--priority", "3", "--min-priority", "2"],
    ):
        assert cli.here("list", *wrong).code == 2


def test_list_json_is_whole_tasks(ats, cli):
    """--json gives an array of tasks as the service has them."""
    ats.add(payload={"a": 1})
    assert cli.here("list", "--json").json[0]["payload"] == {"a": 1}
    assert cli.here("--json", "list").json[0]["id"] == 100


def test_list_says_when_there_may_be_more(ats, cli):
    """A full page is not mistaken for everything."""
    for _ in range(3):
        ats.add()
    ended = cli.here("list", "--limit", "2")
    assert len(ended.out.splitlines()) == 2
    assert "--offset 2" in ended.err


def test_show_tells_the_whole_story(ats, cli):
    """Fields, holder with the rest of the lease, attempts, thread and response; JSON has the thread inside."""
    ats.add(title="t", description="line 1\nline 2", payload={"k": "v"})
    ats.tasks[100] |= {
        "status": "in_progress",
        "assignee_id": "d-1",
        "assignee_name": "dispatch",
        "lease_ttl_ms": 90_000,
        "attempts": 2,
        "runner": "host:7",
        "fencing_token": 3,
        "outputs": [{"name": "result", "parts": [{"type": "text", "content": "Approved"}]}],
    }
    cli("message", "100", "Agent processing started")
    out = cli("show", "100").out
    for part in (
        "status\tin_progress",
        "held by\tdispatch (d-1), lease for another 2 min",
        "attempts\t2 counted",
        "fencing token\t3",
        "line 1\nline 2",
        '"k": "v"',
        "\ttester\tAgent processing started",
        "Approved",
    ):
        assert part in out
    assert cli("show", "100", "--json").json["messages"][0]["actor_name"] == "tester"


def test_logs_shows_thread_and_response(ats, cli):
    """The thread, then the response; with --json one message a line and the task last."""
    ats.add()
    cli.here("message", "100", "hello")
    ats.tasks[100] |= {"status": "completed", "outputs": [{"response": "done"}, {"other": 1}]}
    assert cli.here("logs", "100").out.splitlines()[0].endswith("\ttester\thello")
    assert cli.here("logs", "100").out.splitlines()[1:] == ["done", "{", '  "other": 1', "}"]
    message, task = (json.loads(line) for line in cli.here("logs", "100", "--json").out.splitlines())
    assert (message["parts"][0]["content"], task["status"]) == ("hello", "completed")


def test_logs_follow_prints_what_comes_and_ends_with_the_task(ats, cli):
    """-f shows each message once, as it comes, and ends when the task has ended."""
    ats.add()
    cli("message", "100", "first")
    process = cli.start("logs", "100", "-f")
    assert process.stdout.readline().endswith("\tfirst\n")
    eventually(lambda: ats.subscriptions, 20)
    cli("message", "100", "second")
    assert process.stdout.readline().endswith("\tsecond\n")
    ats.tasks[100] |= {"status": "completed", "outputs": [{"response": "done"}]}
    ats.emit("completed", 100)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "done\n", "")


def test_who_reads_a_long_thread_is_told_that_it_is_cut(ats, cli):
    """The service shows the newest thousand messages; that there were more is said beside them, once."""
    ats.add()
    ats.tasks[100]["messages"] = [
        {"id": number, "kind": "log", "parts": [{"type": "text", "content": "x"}]} for number in range(1000)
    ]
    for command in ("logs", "show"):
        err = cli.here(command, "100").err
        assert err.count("Only the newest 1,000 messages") == 1, command
    ats.tasks[100]["messages"].pop()
    assert cli.here("logs", "100").err == ""


def test_logs_says_how_a_task_ended_that_was_not_completed(ats, cli):
    """The reason of a failure comes last, beside the result: a program that reads the thread does not get it."""
    ats.add()
    ats.tasks[100] |= {"status": "failed", "reason": "exit code 3"}
    ended = cli.here("logs", "100")
    assert ended.out == ""
    assert re.fullmatch(r"Task 100 failed.*: exit code 3\n", ended.err)


def test_watch_prints_events_as_json_lines(ats, cli):
    """watch --json prints one object an event, with the whole task, filtered as asked."""
    process = cli.start("watch", "--json", "--channel", "img", "--event", "created,failed")
    eventually(lambda: ats.subscriptions, 20)
    assert ats.subscriptions[0]["channels"] == ["img"]
    assert ats.subscriptions[0]["thin"] is False
    ats.add(channel="other")
    ats.add(channel="img", title="mine")
    ats.emit("updated", 101)
    ats.emit("failed", 101)
    events = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert [(event["type"], event["task_id"], event["task"]["title"]) for event in events] == [
        ("task.created", "101", "mine"),
        ("task.failed", "101", "mine"),
    ]


def test_plain_service_is_enough(ats, cli):
    """All of it works against a service without any extension, bare objects included."""
    ats.switches.fencing = ats.switches.envelope = False
    assert cli.here("create", "t").out == "100\n"
    assert cli.here("list").out.startswith("100\tpending\t")
    assert "status\tpending" in cli.here("show", "100").out
    assert cli.here("cancel", "100").code == 0
