"""``dispatch top`` on a terminal and elsewhere."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.support.cli import Cli
from tests.support.service import service_on

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.redis import RedisServer


@pytest.fixture
def cli(tmp_path: Path, redis_server: RedisServer) -> Iterator[Cli]:
    """The command line, on a service where two tasks run, one of them sealed."""
    with service_on("sqlite") as service:
        worker = service.client()
        for title, payload in (("draw a map", {}), ("canary", {"encrypted": True, "content": "x"})):
            task = worker.create(title=title, payload=payload)["id"]
            token = worker.post(f"/tasks/{task}/claim", {"claim_id": "c"})["lease"]["fencing_token"]
            start = {"fencing_token": token, "runner": "host-7", "message": "Agent processing started"}
            worker.post(f"/tasks/{task}/start", start)
        made = Cli(tmp_path, {"DISPATCH_ATS_URL": service.url, "DISPATCH_REDIS_URL": redis_server.url})
        yield made
        made.close()


def test_top_is_live_on_a_terminal_and_plain_elsewhere(cli: Cli) -> None:
    """Id, host, attempt, title unless sealed, newest message; Ctrl-C ends it and gives the terminal back."""
    ended = cli("top")
    assert ended.code == 0, ended.err
    rows = [line.split("\t") for line in ended.out.splitlines() if "\thost-7\t" in line]
    assert [(row[1], row[2], row[5], row[6]) for row in rows] == [
        ("host-7", "1", "draw a map", "Agent processing started"),
        ("host-7", "1", "(sealed)", ""),
    ]
    assert "canary" not in ended.out
    live = cli.on_terminal("top", interrupt_at="in progress; q ends")
    assert (live.code, live.err) == (130, "")
    assert "draw a map" in live.out
    assert live.out.endswith("\x1b[?25h\x1b[?1049l")


def test_a_terminal_that_cannot_move_its_cursor_sees_it_once(cli: Cli) -> None:
    """TERM=dumb, as in an editor's shell: shown once as lines, where a live view showed nothing at all."""
    cli.env["TERM"] = "dumb"
    ended = cli.on_terminal("top")
    assert (ended.code, ended.err) == (0, "")
    assert "draw a map" in ended.out


def test_agents_are_named_and_what_nobody_holds_is_stuck(cli: Cli) -> None:
    """Status shows who runs a task by name, counts only leases that there are, and tells of a lock that was let go."""
    held, dropped = (cli("create", title).out.strip() for title in ("held", "dropped"))
    cli("move", held, "in_progress", "--actor-name", "Ann")
    cli("move", dropped, "in_progress", "--release-lock")
    shown = cli("status", "--json").json
    running = {one["id"]: one["at"] for one in shown["tasks"]["running"]}
    assert running.pop(held) == "Ann"
    assert sorted(running.values()) == ["host-7", "host-7"]
    assert (shown["leases"]["live"], shown["leases"]["endless"]) == (3, 0)
    assert [(one["code"], one["tasks"]) for one in shown["stuck"] if dropped in one["tasks"]] == [
        ("ORPHANED", [dropped])
    ]
    assert f"dispatch recover {dropped} todo" in cli("status", "--json").out
    assert f"{held}\t-\tAnn\theld" in cli("status").out


def test_a_top_that_is_ended_gives_the_terminal_back(cli: Cli) -> None:
    """Whoever ends it from elsewhere (SIGTERM) leaves a terminal that can be typed on."""
    ended = cli.on_terminal("top", steps=[("q ends", signal.SIGTERM)])
    assert (ended.code, ended.err) == (143, "")
    assert ended.out.endswith("\x1b[?25h\x1b[?1049l")


def test_q_ends_top_after_the_terminal_became_tiny(cli: Cli) -> None:
    """A new size is drawn for, however small; q ends it well and leaves cursor, echo and screen as they were."""
    del cli.env["COLUMNS"]
    cut = "2 in\r\n"  # of "2 in progress", where 20 columns end
    steps = [("q ends", (5, 20)), (cut, b"q")]
    ended = cli.on_terminal("top", steps=steps)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.endswith("\x1b[?25h\x1b[?1049l")
    assert "Traceback" not in ended.out
