"""``dispatch callbacks`` as an operator types it."""

from __future__ import annotations

import json
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
    """Our service; nobody delivers."""
    with service_on("sqlite") as service:
        yield service.url


@pytest.fixture
def cli(url: str, tmp_path: Path) -> Iterator[Cli]:
    """The command line, set up for it."""
    made = Cli(tmp_path, {"DISPATCH_ATS_URL": url})
    yield made
    made.close()


def test_callbacks_are_shown_and_sent_again(cli: Cli) -> None:
    """A line for each, filtered by task and state, as JSON when asked for; a resend makes it due anew."""
    payload = json.dumps({"callback_url": "https://example.com/?token=canary"})
    assert "No task that ended had a callback." in cli("callbacks").err
    task = cli("create", "a task", "--payload", payload).out.strip()
    other = cli("create", "a task", "--payload", payload).out.strip()
    assert cli("cancel", task, other).code == 0
    (found,) = cli("callbacks", "--task", task, "--json").json
    assert (found["task_id"], found["status"], found["state"], found["tries"]) == (int(task), "cancelled", "waiting", 0)
    shown = cli("callbacks", "--state", "waiting").out.splitlines()
    assert [line.split("\t")[1:5] for line in shown] == [
        [ident, "cancelled", "waiting", "0"] for ident in (other, task)
    ]
    assert cli("callbacks", "--state", "failed").out == ""
    again = cli("callbacks", "resend", found["id"])
    assert (again.code, again.out) == (0, f"{found['id']} is sent again\n")
    assert cli("callbacks", "resend", found["id"], "--json").json["token"] == 2
    assert "canary" not in cli("callbacks", "--json").out


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("callbacks", "resend", "dlv_nothing"), 1, "There is no delivery 'dlv_nothing'"),
        (("callbacks", "resend", "../tasks"), 1, "There is no"),
        (("callbacks", "resend"), 2, "DELIVERY_ID"),
        (("callbacks", "--task", "99"), 1, "There is no task 99"),
        (("callbacks", "--state", "lost"), 2, "waiting"),
    ],
)
def test_what_cannot_be_done_is_said(cli: Cli, args: tuple[str, ...], code: int, words: str) -> None:
    """A sentence and the exit code that scripts know."""
    ended = cli.here(*args)
    assert ended.code == code
    assert words in ended.err


def test_a_foreign_ats_keeps_no_callbacks(tmp_path: Path) -> None:
    """It is said where they are."""
    with FakeAts() as ats:
        cli = Cli(tmp_path, {"DISPATCH_ATS_URL": ats.url})
        ended = cli("callbacks")
        cli.close()
    assert ended.code == 1
    assert "the ingress keeps them in Redis" in ended.err
