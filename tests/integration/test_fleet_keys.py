"""A fleet with API keys, on real processes: the main job, a key that ends in the middle, and keys that will not do."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.cli import Cli, Ended
from tests.support.processes import ROOT, eventually
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WRONG = f"dsk_0123456789ab_{'0' * 64}"


def command(stack: Stack, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command of dispatch with the stack's settings."""
    argv = [sys.executable, "-m", *arguments]
    return subprocess.run(
        argv, env={**stack.env, **env}, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def key(stack: Stack, *arguments: str) -> str:
    """Make a key as an operator does, and return it."""
    made = here(stack, "api-key", "create", *arguments)
    assert made.code == 0, made.err
    return made.out.strip()


def here(stack: Stack, *arguments: str) -> Ended:
    """Run a command of dispatch in this process."""
    return Cli(stack.directory, stack.env).here(*arguments)


def started(stack: Stack) -> Stack:
    """Give a stack a key, a service and a Redis, and nothing else."""
    stack.env["DISPATCH_ATS_TOKEN"] = key(stack, "dispatch")
    stack.redis.start()
    stack.start_service()
    return stack


@pytest.fixture
def stack(make_stack: Callable[..., Stack]) -> Stack:
    """A stack with a service and a Redis, one key, and nothing else running."""
    return started(make_stack())


@pytest.fixture(scope="module")
def shared() -> Iterator[Stack]:
    """One for all tests that only knock at its door. Its environment has the key."""
    stack = Stack()
    try:
        yield started(stack)
        stack.close()
    finally:
        stack.abort()


# A fleet with keys is also what tests/e2e/test_operations_docs.py runs, in every run.
@pytest.mark.slow
def test_the_main_job_with_a_key(stack: Stack) -> None:
    """``api-key create dispatch`` makes all that a fleet needs; the key is in no log and no argument."""
    secret = stack.env["DISPATCH_ATS_TOKEN"].rpartition("_")[2]
    file = stack.directory / "fleet.key"
    file.write_text(stack.env["DISPATCH_ATS_TOKEN"] + "\n")
    by_file = {"DISPATCH_ATS_TOKEN_FILE": str(file)}
    stack.env.pop("DISPATCH_ATS_TOKEN")
    stack.start_ingress(by_file)
    stack.start_ingress(by_file)
    stack.start_worker(2, by_file)
    stack.env["DISPATCH_ATS_TOKEN"] = file.read_text().strip()
    made = [stack.create(f"task {number}", tick={"exits": [1, 0]})["id"] for number in range(6)]
    for ident in made:
        task = stack.wait_task(ident)
        assert (task["status"], task["attempts"]) == ("completed", 2), task
        assert task["assignee_id"].startswith("dispatch-")
    long = stack.create("a long one", tick={"duration_s": 300})["id"]
    stack.wait_task(long, "in_progress")
    eventually(lambda: stack.tick_lines(long), "the long task's child")
    arguments = [p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline") if p.exists()]
    assert not [line for line in arguments if secret.encode() in line]
    stack.call("POST", f"/tasks/{long}/cancel")
    assert stack.wait_task(long)["status"] == "cancelled"
    for process in stack.processes:
        process.stop()
        assert secret not in "\n".join(process.output)
    assert not stack.processes[0].find("key_refused")


def test_a_refused_renewal_does_not_kill_and_nothing_is_lost(stack: Stack) -> None:
    """A key refused for a while: the attempt runs on, its report waits, the ingress says it once and tries on."""
    ingress, worker = stack.start_ingress(), stack.start_worker(1)
    go = stack.directory / "go"
    ident = stack.create("mid work", tick={"duration_s": 300, "until": str(go)})["id"]
    eventually(lambda: stack.tick_lines(ident), "the child")
    revoked = here(stack, "api-key", "revoke", "dispatch")
    assert revoked.code == 0, revoked.err
    worker.wait_event("lease_renewal_failed")
    ingress.wait_event("service_refuses_key")
    go.touch()
    worker.wait_event("report_delayed")
    eventually(lambda: len(stack.processes[0].find("key_refused")) > 8, "more tries")
    assert ingress.exit_code is None
    with closing(sqlite3.connect(stack.directory / "data/tasks.db", timeout=60)) as database:
        database.execute("UPDATE api_keys SET revoked_at = NULL")
        database.commit()
    ingress.wait_event("service_accepts_key")
    assert len(ingress.find("service_refuses_key")) == 1
    done = stack.wait_task(ident)
    assert (done["status"], done["attempts"]) == ("completed", 1), done
    assert {line["token"] for line in stack.tick_lines(ident)} == {1}
    after = stack.create("afterwards")["id"]
    assert stack.wait_task(after)["status"] == "completed"
    assert len(ingress.find("claiming_paused")) <= 1
    assert not ingress.find("sweep_failed")
    assert len(ingress.find("feed_disconnected")) <= 2


@pytest.fixture
def keyless(shared: Stack) -> Iterator[dict[str, str]]:
    """The environment of the shared stack without its key; a test may change the environment."""
    before = shared.env
    yield {name: value for name, value in before.items() if name != "DISPATCH_ATS_TOKEN"}
    shared.env = before


def test_the_doctor_says_whether_there_are_keys(shared: Stack, make_stack: Callable[..., Stack]) -> None:
    """Of a service with keys and of one without."""
    assert "wants an API key" in here(shared, "doctor").out
    open_one = make_stack()
    open_one.start_service()
    assert "has no API keys" in here(open_one, "doctor").out


def test_an_ingress_must_be_who_its_key_says(shared: Stack) -> None:
    """With a key for another actor the ingress would not find its own claims: it says so and exits 78."""
    ended = command(shared, "dispatch", "ingress", DISPATCH_ATS_TOKEN=key(shared, "fleet"))
    assert ended.returncode == 78, ended
    assert "acts as fleet" in ended.stderr
    assert "DISPATCH_ACTOR_ID" in ended.stderr
    shared.start_ingress(
        {"DISPATCH_ACTOR_ID": "fleet-here", "DISPATCH_ATS_TOKEN": key(shared, "fleet-2", "--actor", "fleet")}
    ).stop()


WORKER = ("celery", "-A", "dispatch", "worker", "-c", "1")


@pytest.mark.parametrize("what", [("dispatch", "ingress"), WORKER, ("doctor",), ("create", "t")], ids=lambda w: w[-1])
def test_keys_that_will_not_do_are_exit_77(shared: Stack, keyless: dict[str, str], what: tuple[str, ...]) -> None:
    """No key, a wrong one and one that may only read: ingress, worker, doctor and create say so and exit 77."""
    read = key(shared, f"reader-{what[0]}-{what[-1]}", "--access", "read")
    for token, word in ((None, "no API key"), (WRONG, "not accepted"), (read, "only read")):
        shared.env = keyless if token is None else {**keyless, "DISPATCH_ATS_TOKEN": token}
        if what[-1] in ("doctor", "t"):
            ended = here(shared, *what)
            code, said = ended.code, ended.out + ended.err
        else:
            process = command(shared, *what)
            code, said = process.returncode, process.stdout + process.stderr
        assert code == 77, (what, token, said)
        assert word in said or (word == "only read" and "read access" in said), said
        assert "DISPATCH_ATS_TOKEN_FILE" in said, said
        assert "Traceback" not in said
        assert token is None or token.rpartition("_")[2] not in said


def test_who_only_looks_needs_a_key_that_reads(shared: Stack, keyless: dict[str, str]) -> None:
    """list, show and watch exit 77 without a key; a key that may only read is enough."""
    read = key(shared, "reader", "--access", "read")
    shared.env = keyless
    for what in (("list",), ("show", "1"), ("watch",)):
        assert command(shared, "dispatch", *what).returncode == 77
    shared.env = {**keyless, "DISPATCH_ATS_TOKEN": read}
    assert here(shared, "list").code == 0


def test_up_needs_the_key_as_well(shared: Stack, keyless: dict[str, str]) -> None:
    """With keys in its database ``dispatch up`` without one exits 77."""
    shared.processes[0].stop()
    shared.env = keyless
    assert command(shared, "dispatch", "up").returncode == 77
