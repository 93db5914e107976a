"""Dependencies on the command line, against our service and against a foreign one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.support.cli import Cli
from tests.support.fake_ats import FakeAts
from tests.support.service import service_on

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Our service."""
    with service_on("sqlite") as service:
        yield service.url


@pytest.fixture
def ours(url: str, tmp_path: Path) -> Iterator[Cli]:
    """The command line, set up for our service."""
    made = Cli(tmp_path, {"DISPATCH_ATS_URL": url})
    yield made
    made.close()


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[tuple[Cli, FakeAts]]:
    """The command line, set up for an ATS without any extension."""
    with FakeAts() as ats:
        made = Cli(tmp_path, {"DISPATCH_ATS_URL": ats.url})
        yield made, ats
        made.close()


def new(cli: Cli, title: str, *options: str) -> str:
    """Create a task and return its id."""
    ended = cli.here("create", title, *options)
    assert ended.code == 0, ended.err
    return ended.out.strip()


@pytest.mark.parametrize("given", ["", " ", "7,", ",7", "7,,8"])
def test_an_empty_id_is_refused(ours: Cli, given: str) -> None:
    """A script whose variable is empty gets wrong usage, not a task that runs at once."""
    before = ours("list").out
    ended = ours.here("create", "After nothing", "--depends-on", given)
    assert (ended.code, ended.out) == (2, "")
    assert "leaves an id empty" in ended.err
    assert ours("list").out == before


@pytest.mark.parametrize(("command", "rejected"), [("cancel", (0, 2)), ("reopen", (1,))])
def test_each_refusal_of_several_names_its_task(ours: Cli, command: str, rejected: tuple[int, ...]) -> None:
    """Of several tasks every sentence on stderr says of which it is; the others are done all the same."""
    ids = [new(ours, "t", "--channel", "several") for _ in range(3)]
    ours("reject", *(ids[at] for at in rejected))
    ended = ours(command, *ids)
    assert (ended.code, f"Task {ids[1]} " in ended.out) == (1, True)
    refused = [line for line in ended.err.splitlines() if line.startswith("dispatch: ")]
    assert [re.findall(rf"\b({'|'.join(ids)})\b", line)[:1] for line in refused] == [[ids[0]], [ids[2]]]


def test_why_names_where_a_cascade_began(ours: Cli) -> None:
    """Of a task at the end of a cascade the advice reopens the first that failed, by itself; following it works."""
    first = new(ours, "First", "--channel", "cascade")
    ids = [first]
    for title in ("Second", "Third"):
        ids.append(new(ours, title, "--channel", "cascade", "--depends-on", ids[-1]))
    ours("reject", first)
    for needed, word, ident in ((first, "rejected", ids[1]), (ids[1], "failed", ids[2])):
        ours("fail", ident, "--reason", f"Blocked: dependency #{needed} ({word})")
    ended = ours("why", ids[2])
    assert ended.out == f"It is failed: Blocked: dependency #{ids[1]} (failed)\n"
    assert f"'dispatch reopen {first} --dependents'" in ended.err
    fourth = new(ours, "Fourth", "--channel", "beside", "--depends-on", ids[2])
    waits = ours("why", fourth)
    assert waits.out == f"It depends on what did not succeed: #{ids[2]} (failed).\n"
    assert f"'dispatch reopen {first} --dependents'" in waits.err
    ours("reopen", first, "--dependents")
    assert [line.split("\t")[1] for line in ours("list", "--channel", "cascade").out.splitlines()] == ["pending"] * 3


def test_why_does_not_advise_what_fails_again(ours: Cli) -> None:
    """What depended on a name that no task has is not advised to be reopened."""
    lost = new(ours, "Lost", "--channel", "cascade", "--payload", '{"depends_on": ["never"]}')
    ours("fail", lost, "--reason", "Blocked: dependency #never (does not exist)")
    assert "Reopened it fails again, because #never does not exist in its project" in ours("why", lost).err


def test_a_graph_on_our_service(ours: Cli) -> None:
    """Created with --depends-on, seen with deps in every form, explained by why."""
    one = new(ours, "One", "--channel", "g")
    two = new(ours, "Two", "--channel", "g", "--depends-on", f"#{one}")
    three = new(ours, "Three", "--channel", "g", "--depends-on", f"{one},{two}", "--depends-on", two)
    shown = [line.partition(", created")[0] for line in ours("deps", "--channel", "g").out.splitlines()]
    assert shown == [
        f"#{three} pending Three (waits for #{one} pending, #{two} pending",
        f"  #{one} pending One (ready)",
        f"  #{two} pending Two (waits for #{one} pending",
        f"    #{one} pending One (see above)",
    ]
    found = ours("deps", "--task", two, "--format", "json").json
    assert [(task["id"], task["depends_on"]) for task in found["tasks"]] == [(int(one), []), (int(two), [int(one)])]
    assert (found["missing"], found["truncated"]) == ([], False)
    assert ours("deps", "--channel", "g", "--format", "dot").out.startswith("digraph")
    assert ours("deps", "--channel", "g", "--format", "mermaid").out.count("-->") == 3
    cut = ours("deps", "--channel", "g", "--limit", "2")
    assert "The graph is larger" in cut.err
    assert f"#{one}" in ours("why", two).out


@pytest.mark.parametrize("names", ["987654321", "x", "1,,0"])
def test_create_refuses_what_it_cannot_depend_on(ours: Cli, names: str) -> None:
    """An unknown task and a word that is none are one sentence, and nothing is created."""
    ended = ours.here("create", "Bad", "--channel", "none", "--depends-on", names)
    assert ended.code == (1 if names.isdigit() else 2)
    assert ended.err.count("\n") == 1
    assert ours.here("list", "--channel", "none").out == ""


def test_reopen_tells_which(ours: Cli) -> None:
    """With --dependents every task that was reopened, and every one that was not, is a line."""
    root, other = new(ours, "Root"), new(ours, "Other")
    child = new(ours, "Child", "--depends-on", root)
    both = new(ours, "Both", "--depends-on", f"{root},{other}")
    ours.here("cancel", root, other)
    ours.here("fail", child, both, "--reason", f"Blocked: dependency #{root} (cancelled)")
    ended = ours.here("reopen", root, "--dependents")
    assert ended.code == 0
    assert ended.out.splitlines()[:2] == [f"Task {root} is pending.", f"Task {child} reopened."]
    assert ended.out.splitlines()[2].startswith(f"Task {both} stays failed")


def test_a_graph_on_a_foreign_service(foreign: tuple[Cli, FakeAts]) -> None:
    """Dependencies go into the payload, unknown ones are refused here, deps and why read them from there."""
    cli, ats = foreign
    one = new(cli, "One")
    two = new(cli, "Two", "--payload", '{"k": 1}', "--depends-on", one)
    assert ats.tasks[int(two)]["payload"] == {"k": 1, "depends_on": [int(one)]}
    refused = cli.here("create", "Bad", "--depends-on", "999")
    assert (refused.code, "There is no task 999" in refused.err, len(ats.tasks)) == (1, True, 2)
    ats.add(title="Lost", payload={"depends_on": "777"})
    shown = cli.here("deps").out
    assert f"#{two} pending Two (waits for #{one} pending" in shown
    assert "#777 missing" in shown
    assert cli.here("deps", "--task", two).out.count("\n") == 2
    assert f"It waits for #{one} (pending)." in cli.here("why", two).out
    assert cli.here("reopen", one, "--dependents").code == 2
