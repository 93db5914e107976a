"""One attempt after another, with real children: how they end, what is reported, what is left."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from dispatch.runner import tree
from tests.support.children import command
from tests.support.processes import eventually
from tests.support.promises import promised
from tests.support.runner_driver import Worker, dead, dead_within

if TYPE_CHECKING:
    from pathlib import Path

Start = Callable[..., Worker]

LIMITED = {"attempt_memory_bytes_max": 1 << 29, "attempt_processes_max": 100}
"""Limits that nothing here reaches: where the kernel holds them, the command is started by way of its control group."""
START = pytest.mark.parametrize("bounds", [{}, LIMITED], ids=["free", "limited"])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start workers in the test's directory; afterwards nothing of any attempt may be alive."""
    workers: list[Worker] = []

    def make(argv: list[str], **config: Any) -> Worker:
        workers.append(Worker(tmp_path / f"worker{len(workers)}", argv, **config))
        return workers[-1]

    yield make
    left = [process for worker in workers for process in worker.close()]
    assert left == []


def work_left(worker: Worker) -> list[str]:
    """Return the work directories that are left."""
    return [path.name for path in (worker.directory / "data" / "work").iterdir()]


def test_success_reports_stdout_as_the_response(start: Start) -> None:
    """The prompt comes on stdin, stdout is the response, and nothing stays on disk."""
    worker = start(command("echo"), task={"title": "Title", "description": "Say \u00e9\u4f60", "payload": {"k": 1}})
    result = worker.result()
    assert result["reason"] == "success"
    response = worker.calls("complete")[0]["outputs"][0]["response"]
    assert response == result["stdout"]
    for piece in ("Title", "Say \u00e9\u4f60", '"k": 1'):
        assert piece in response
    assert "truncated" not in worker.calls("complete")[0]["outputs"][0]
    assert worker.calls("start")[0]["message"] == "Agent processing started"
    worker.wait()
    assert work_left(worker) == []
    assert not (worker.directory / "data" / "spool").exists()


def test_what_hangs_is_ended_and_what_works_or_is_stopped_is_not(start: Start, tmp_path: Path) -> None:
    """Quiet and idle for the limit: the tree is ended, counted, with the reason. Work without a word is no hang.

    Time in which the attempt was stopped, or its worker was, is not counted.
    """
    execution = {"idle_s": 1.0, "grace_s": 0.2}
    hanging, working, stopped, frozen = (
        start(command(*argv), execution=execution)
        for argv in (
            ("family", tmp_path / "hanging", "ignore"),
            ("toil", 0.5, 2.0),
            ("hang", tmp_path / "stopped"),
            ("hang", tmp_path / "frozen"),
        )
    )
    family = hanging.noted("../hanging", 4)
    (leader,) = stopped.noted("../stopped", 1)
    frozen.noted("../frozen", 1)
    tree.send(leader, signal.SIGSTOP)
    frozen.signal("child", signal.SIGSTOP)
    until = tree.boottime() + 2.0
    assert hanging.result()["reason"] == "idle"
    dead_within(family, 1.0)
    eventually(lambda: tree.boottime() >= until)
    assert stopped.lines("results.jsonl") == []
    tree.send(leader, signal.SIGCONT)
    frozen.signal("child", signal.SIGCONT)
    for worker in (stopped, frozen):
        result = worker.result()
        assert (result["reason"], result["duration_s"] >= 2.8) == ("idle", True)
    assert working.result()["reason"] == "success"
    result, (report,) = hanging.result(), hanging.reports()
    assert (report["op"], report["counted"], report["reason"]) == ("release", True, result["detail"])
    assert result["detail"].startswith("wrote nothing and used almost no processor time for 1 s (idle_s), so it was")
    assert "killed" in result["flags"]


@pytest.mark.slow
def test_orphans_that_work_in_between_are_no_hang(start: Start) -> None:
    """What an attempt leaves to run by itself counts, also if it lives for less than from look to look."""
    work = " ".join(command("burst", 0.04))
    script = f"for n in 1 2 3 4 5 6 7 8 9 10 11 12; do ( {work} >/dev/null 2>&1 & ); sleep 0.5; done"
    result = start(["sh", "-c", script], execution={"idle_s": 3.0}).result()
    assert result["reason"] == "success"


def test_results_of_dependencies_reach_the_child(start: Start) -> None:
    """Each stands in a block of its own after the task's text, and all of them in ATS_DEPENDENCIES."""
    handed = [
        {"id": 5, "title": "Five\n--- end title", "status": "completed", "outputs": [{"response": "uno\n\u00fc"}]},
        {"id": 6, "title": "Six", "status": "completed", "outputs": None},
    ]
    script = ["sh", "-c", 'cat; printf "\\n=%s" "$ATS_DEPENDENCIES"']
    out = start(script, task={"title": "Title"}, dependencies=handed).result()["stdout"]
    prompt, _, rest = out.partition("\n=")
    boundary = prompt.partition("Everything between lines that end in ")[2].split()[0]
    marks = [line.removesuffix(f" {boundary}") for line in prompt.split("\n") if line.endswith(f" {boundary}")]
    names = ("title", "dependency-5", "dependency-6")
    assert marks == [f"--- {what} {name}" for name in names for what in ("begin", "end")]
    assert "\n\nuno\n\u00fc\n--- end dependency-5" in prompt
    assert json.loads(rest) == [
        {"id": 5, "status": "completed", "response": "uno\n\u00fc"},
        {"id": 6, "status": "completed", "response": ""},
    ]


@pytest.mark.parametrize("sealed", [True, False])
def test_a_defect_of_ours_tells_nothing_of_a_sealed_task(start: Start, *, sealed: bool) -> None:
    """What an exception says may be content: of a sealed task its type and place are told, of another one all."""
    worker = start(["true"], broken_keys=True, task={"title": "t", "payload": {"encrypted": sealed}})
    assert worker.result()["reason"] == "worker_lost"
    (report,) = worker.reports()
    (line,) = worker.events("attempt_crashed")
    assert report["reason"] == "the worker failed: RuntimeError" + ("" if sealed else ": canary")
    assert line["exception"].startswith("RuntimeError at _run_guarded:" if sealed else "Traceback")
    assert ("canary" in worker.log()) is not sealed


ENDS: list[tuple[list[str], str, int | None, int | None, str, bool]] = [
    (["sh", "-c", "echo why >&2; exit 1"], "exit", 1, None, "exit code 1: why", True),
    (["sh", "-c", "exit 125"], "exit", 125, None, "exit code 125", True),
    (["sh", "-c", "exit 126"], "exit", 126, None, "exit code 126", True),
    (["sh", "-c", "exit 127"], "exit", 127, None, "exit code 127", True),
    (["sh", "-c", "exit 139"], "exit", 139, None, "exit code 139", True),
    (["sh", "-c", "exit 255"], "exit", 255, None, "exit code 255", True),
    (["sh", "-c", "echo limit >&2; exit 75"], "tempfail", 75, None, "not now (exit code 75): limit", False),
    (command("die", 15), "signal", None, 15, "ended by signal 15 (SIGTERM)", True),
    (command("die", 9), "signal", None, 9, "ended by signal 9 (SIGKILL)", True),
    (command("die", 11), "signal", None, 11, "ended by signal 11 (SIGSEGV)", True),
    (command("die", 6), "signal", None, 6, "ended by signal 6 (SIGABRT)", True),
]


def ends_of(start: Start, commands: list[list[str]], **config: Any) -> tuple[Worker, list[Any]]:
    """Run several commands as attempts of one process; return how they ended."""
    worker = start(commands[0], commands=commands, **config)
    return worker, worker.results(len(commands))


def test_every_end_is_recorded_exactly(start: Start) -> None:
    """S8: exit codes and signals are told apart, one report is made, and only exit 75 does not count."""
    worker, results = ends_of(start, [case[0] for case in ENDS])
    assert len(worker.reports()) == len(ENDS)
    for case, result, report in zip(ENDS, results, worker.reports(), strict=True):
        _, reason, exit_code, number, detail, counted = case
        assert (result["reason"], result["exit_code"], result["signal"]) == (reason, exit_code, number), case
        assert result["detail"] == detail
        assert (report["op"], report["counted"], report["reason"]) == ("release", counted, detail)
        assert counted or 30 <= report["delay_s"] <= 60


def test_the_last_attempt_fails_for_good(start: Start) -> None:
    """The third failure is final, in the words that users know, with the last reason behind them."""
    worker = start(["sh", "-c", "echo because >&2; exit 4"], attempt=3)
    worker.result()
    (report,) = worker.reports()
    assert report["op"] == "fail"
    assert report["reason"] == "Exceeded max retry attempts (3): exit code 4: because"


def test_an_attempt_beyond_the_last_is_not_started(start: Start) -> None:
    """A task that has used up its attempts is failed as poison and nothing runs."""
    worker = start(["sh", "-c", "echo ran > ran"], attempt=4)
    assert "reason" not in worker.result()
    assert worker.calls("start") == []
    assert [report["reason"] for report in worker.reports()] == ["Exceeded max retry attempts (3)"]


@pytest.mark.parametrize("mood", ["stale", "unknown", "auth", "cancelled"])
def test_a_refused_start_drops_the_message(start: Start, mood: str) -> None:
    """A message whose claim is gone runs nothing and reports nothing; a refused key is tried for a while."""
    worker = start(command("echo"), moods={f"start.{mood}": None}, start_patience_s=1.0)
    assert "reason" not in worker.result()
    assert worker.reports() == []
    assert (len(worker.calls("start")) > 1) is (mood == "auth")


def test_start_is_tried_again_while_the_service_is_away(start: Start) -> None:
    """A service that does not answer twice costs moments, not the attempt; the runner's name stays the same."""
    worker = start(command("echo"), moods={"start.unavailable": 2})
    assert worker.result()["reason"] == "success"
    assert len({call["runner"] for call in worker.calls("start")}) == 1


def test_stubborn_tree_with_daemons_dies_within_the_grace(start: Start, tmp_path: Path) -> None:
    """S1: a leader, child, setsid grandchild and double-forked daemon that ignore TERM are gone at grace + 1 s.

    When the end is recorded none of the four lives.
    """
    worker = start(command("family", tmp_path / "pids", "ignore"), execution={"timeout_s": 60, "grace_s": 0.3})
    family = worker.noted("../pids", 4)
    with promised(0.3 + 1, "the end of the tree"):
        worker.signal("child", signal.SIGUSR1)
        result = worker.result()
    assert dead(family)
    assert result["reason"] == "timeout"
    assert result["flags"] == ["killed"]
    assert result["detail"].startswith("timed out after 60 s")
    assert worker.reports()[0]["counted"] is True


def test_a_polite_child_is_asked_first(start: Start, tmp_path: Path) -> None:
    """TERM comes before KILL, and an exit 0 after our TERM is still the timeout that was decided."""
    worker = start(command("polite", tmp_path / "said", 0), execution={"grace_s": 30})
    worker.noted("../said.ready", 1)
    with promised(2.0, "the end of the attempt"):
        worker.signal("child", signal.SIGUSR1)
        result = worker.result()
    assert (result["reason"], result["exit_code"], result["flags"]) == ("timeout", 0, [])
    assert (tmp_path / "said").exists()


def test_daemon_that_holds_stdout_does_not_hold_the_task(start: Start, tmp_path: Path) -> None:
    """B5, S2: the leader's exit 0 decides, within 3 s, and the daemon dies although its environment was cleared."""
    worker = start(command("daemonise", tmp_path / "pid", "stdout"))
    (daemon,) = worker.noted("../pid", 1)
    with promised(3.0, "the end of the attempt"):
        result = worker.result()
    assert (result["reason"], result["stdout"].splitlines()[0]) == ("success", "started")
    assert result["flags"] == ["leftovers_killed", "pipes_held"]
    assert dead([daemon])


def test_daemon_that_closed_everything_is_found(start: Start, tmp_path: Path) -> None:
    """A daemon that let go of pipes, session and environment ends with the attempt, at once."""
    worker = start(
        ["sh", "-c", " ".join(command("daemonise", tmp_path / "pid")) + f"; while ! test -s {tmp_path}/pid; do :; done"]
    )
    daemon = worker.noted("../pid", 1)
    with promised(2.0, "the end of the attempt"):
        result = worker.result()
    assert result["flags"] == ["leftovers_killed"]
    assert dead(daemon)


def test_a_chain_of_forks_is_caught(start: Start, tmp_path: Path) -> None:
    """Processes that fork faster than one can look at them do not get away."""
    worker = start(command("forker", tmp_path / "pid", 100_000))
    worker.pid("child")
    result = worker.result()
    assert (result["reason"], result["flags"]) == ("success", ["leftovers_killed"])
    assert worker.strays() == []


@pytest.mark.parametrize(
    ("stream", "kept"),
    [
        pytest.param("out", "stdout", marks=pytest.mark.slow),
        pytest.param("err", "stderr", marks=pytest.mark.slow),
        ("both", "stdout"),
    ],
)
def test_a_gibibyte_goes_through(start: Start, stream: str, kept: str) -> None:
    """S4: 1 GiB without a newline on either stream, or both in turn: bounded memory, right ends, in seconds."""
    size = 1 << 30
    worker = start(command("spam", stream, size, 1 << 20))
    result = worker.result()
    assert result["reason"] == "success"
    assert result[f"{kept}_bytes"] == size
    assert result["max_rss_kib"] < 100 * 1024
    output = worker.calls("complete")[0]["outputs"][0]
    assert len(output["response"]) < 1_050_000
    if kept == "stdout":
        assert (output["truncated"], output["output_bytes"]) == (True, size)
        left_out = size - 1_048_576
        assert f"[... {left_out} bytes of output are left out here ...]" in output["response"]


ODD = [
    ("c3a9e4bda0f09f9880", "\u00e9\u4f60\U0001f600", False),
    ("610d0a1b5b33316d62e2808f", "a\r\n\x1b[31mb\u200f", False),
    ("6100620063", "abc", True),
    ("61ff62c3", "a\ufffdb\ufffd", True),
    ("eda080", "\ufffd\ufffd\ufffd", True),
    ("efbfbd", "\ufffd", False),
]


def test_odd_bytes_become_sound_text(start: Start) -> None:
    """S5: characters split at every border are whole, invalid bytes replaced, NULs gone, and that is flagged."""
    _, results = ends_of(start, [command("raw", raw, 0.001) for raw, _, _ in ODD])
    assert [(result["stdout"], result["stdout_binary"]) for result in results] == [case[1:] for case in ODD]


def test_a_large_prompt_never_hangs(start: Start) -> None:
    """B4, S6: 5 MB of prompt to a child that exits, closes stdin, or reads slowly while writing back."""
    children = [command("deaf"), command("deaf", 0.2), ["true"], command("echo")]
    _, results = ends_of(start, children, prompt_bytes=5_000_000)
    assert [result["reason"] for result in results] == ["success"] * 4
    assert results[3]["stdout_bytes"] > 5_000_000


@START
def test_a_command_that_cannot_start_is_explained(start: Start, tmp_path: Path, bounds: dict[str, int]) -> None:
    """S7: each reason has its sentence, the attempt counts, and the next attempt of the process runs."""
    cases = [
        ([str(tmp_path / "missing")], "was not found"),
        ([script(tmp_path / "plain", "#!/bin/sh\n", 0o644)], "not an executable file"),
        ([script(tmp_path / "lost", "#!/no/such/interpreter\n", 0o755)], "its interpreter does not"),
        ([script(tmp_path / "noise", "\x7fnot a program", 0o755)], "neither a program"),
        ([str(tmp_path)], "not an executable file"),
        (["true", "E2BIG"], "too long"),
    ]
    worker, results = ends_of(start, [argv for argv, _ in cases], execution=bounds)
    for (_, words), result, report in zip(cases, results, worker.reports(), strict=True):
        assert result["reason"] == "spawn_error"
        assert words in result["detail"]
        assert (report["op"], report["counted"]) == ("release", True)
    worker.wait()
    assert work_left(worker) == []


def script(path: Path, text: str, mode: int) -> str:
    """Write a file with a mode."""
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_a_starved_process_says_so(start: Start) -> None:
    """S7: too many open files is a spawn error with a reason, and the slot works again afterwards."""
    worker = start(["true"], attempts=2, starve=True)
    first, second = worker.results(2)
    assert first["reason"] == "spawn_error"
    assert "open files" in first["detail"]
    assert second["reason"] == "success"


@START
def test_nothing_but_the_allow_list_is_inherited(start: Start, bounds: dict[str, int]) -> None:
    """A child sees the allowed variables, three pipes, default signals, its own session and a private directory."""
    canaries = {
        "DISPATCH_ATS_TOKEN": "canary",
        "DISPATCH_REDIS_URL": "canary",
        "AWS_SECRET_ACCESS_KEY": "canary",
        "PYTHONPATH": "canary",
        "CELERY_BROKER_URL": "canary",
        "LC_TIME": "C",
        "WANTED": "yes",
    }
    worker = start(
        command("surroundings"),
        env=canaries,
        ignore_term=True,
        leaky_fd=True,
        execution={"env": ("WANTED", "DISPATCH_ATS_TOKEN"), **bounds},
    )
    seen = json.loads(worker.result()["stdout"])
    assert "canary" not in json.dumps(seen["env"])
    ours = {"ATS_TASK_ID", "ATS_URL", "ATS_CHANNEL", "ATS_ATTEMPT", "ATS_FENCING_TOKEN", "DISPATCH_ATTEMPT"}
    allowed = {
        "PATH",
        "HOME",
        "LANG",
        "TZ",
        "TMPDIR",
        "USER",
        "LOGNAME",
        "SHELL",
        "WANTED",
        "LC_TIME",
        "LC_CTYPE",
        "LC_ALL",
    }
    assert ours <= set(seen["env"]) <= ours | allowed
    assert seen["env"]["WANTED"] == "yes"
    values = [seen["env"][f"ATS_{name}"] for name in ("TASK_ID", "URL", "CHANNEL", "ATTEMPT", "FENCING_TOKEN")]
    assert values == ["7", "http://service.test", "ch", "1", "5"]
    assert sorted(fd for fd, target in seen["fds"] if not target.startswith("/proc/")) == [0, 1, 2]
    assert all(target.startswith("pipe:") for fd, target in seen["fds"] if fd <= 2)
    assert (seen["blocked"], seen["leader"]) == (0, True)
    assert stat.S_IMODE(seen["mode"]) == 0o700
    assert str(worker.directory / "data" / "work") in seen["cwd"]


@START
def test_no_signal_is_ignored_in_the_child(start: Start, bounds: dict[str, int]) -> None:
    """SIGINT and SIGTERM that the pool child ignores, and Python's SIGPIPE, have their defaults in the child."""
    worker = start(["grep", "SigIgn", "/proc/self/status"], ignore_term=True, execution=bounds)
    # Signals 32 and 33 belong to the C library; nobody but it can change them.
    assert int(worker.result()["stdout"].split()[1], 16) & ~(0b11 << 31) == 0


def test_exit_0_just_before_the_timeout_is_success(start: Start) -> None:
    """Exit 0 and the time limit at nearly the same moment, many times: one outcome, one report, never both."""
    worker = start(["sleep", "0.1"], attempts=12, execution={"timeout_s": 0.102, "grace_s": 1.0, "max_attempts": 3})
    results = worker.results(12)
    assert {result["reason"] for result in results} <= {"success", "timeout"}
    expected = ["complete" if result["reason"] == "success" else "release" for result in results]
    assert [report["op"] for report in worker.reports()] == expected


def test_nothing_accumulates(start: Start) -> None:
    """After 50 attempts, daemons and failures among them, fds, threads, zombies and directories are as before."""
    worker = start(["sh", "-c", "(setsid sleep 60 >/dev/null 2>&1 &); exit $((ATS_FENCING_TOKEN % 2))"], attempts=50)
    (left,) = eventually(lambda: worker.lines("left.jsonl"), "the end of the attempts")
    # 0, 1, 2, the self-pipe and the directory being listed.
    assert len(left["fds"]) <= 7
    assert left["threads"] == 1
    assert work_left(worker) == []


def test_soft_limit_signal_is_a_timeout(start: Start, tmp_path: Path) -> None:
    """Celery's soft limit (SIGUSR1) ends the attempt as a timeout, without an exception in the middle of anything."""
    worker = start(command("hang", tmp_path / "pid"), execution={"grace_s": 1})
    worker.noted("../pid", 1)
    worker.signal("child", signal.SIGUSR1)
    assert worker.result()["reason"] == "timeout"


def test_sigterm_drains_and_a_second_one_stops(start: Start, tmp_path: Path) -> None:
    """The first SIGTERM lets the attempt run on; the second stops it; it is released at once and uncounted."""
    worker = start(command("hang", tmp_path / "pid"), execution={"grace_s": 1, "drain_s": 60})
    worker.noted("../pid", 1)
    worker.signal_heard("child", signal.SIGTERM)
    time.sleep(0.3)
    assert worker.lines("results.jsonl") == []
    worker.signal("child", signal.SIGTERM)
    assert worker.result()["reason"] == "shutdown"
    (report,) = worker.reports()
    assert (report["op"], report["counted"], report["delay_s"]) == ("release", False, 0.0)


def test_a_drain_ends_after_its_time(start: Start, tmp_path: Path) -> None:
    """A drain lets the attempt run for drain_s and then stops it."""
    worker = start(command("hang", tmp_path / "pid"), execution={"grace_s": 1, "drain_s": 0.3})
    worker.noted("../pid", 1)
    worker.signal("child", signal.SIGTERM)
    assert worker.result()["reason"] == "shutdown"


def test_a_drained_attempt_may_finish(start: Start) -> None:
    """An attempt that finishes within the drain is a success like any other."""
    worker = start(["sh", "-c", "echo ready; sleep 0.6; echo done"], execution={"drain_s": 60})
    eventually(lambda: worker.events("attempt_started"))
    worker.signal("child", signal.SIGTERM)
    assert worker.result()["reason"] == "success"


def test_a_stop_that_hit_the_whole_group_is_a_shutdown(start: Start, tmp_path: Path) -> None:
    """TERM to every process of the host at once, the leader first: not the task's failure, nothing counted."""
    worker = start(command("hang", tmp_path / "pid"), execution={"drain_s": 30})
    (leader,) = worker.noted("../pid", 1)
    child = worker.pid("child")
    os.kill(leader.pid, signal.SIGTERM)
    os.kill(child, signal.SIGTERM)
    assert worker.result()["reason"] == "shutdown"
    assert worker.reports()[0]["counted"] is False
