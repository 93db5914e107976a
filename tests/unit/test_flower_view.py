"""Who may see Flower, and how an attempt is called there."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dispatch import setting_kinds, settings
from dispatch.errors import AuthenticationError, ConfigurationError, GatewayUnavailableError, UnknownTaskError
from dispatch.flower_view import SEALED, Titles, attempt_in, describe, login, title_of

Flower = settings.Flower
Secret = setting_kinds.Secret


def test_without_a_login_it_refuses_unless_asked_for() -> None:
    """Open only by a setting of its own, whose sentence names both ways; several logins are possible."""
    with pytest.raises(ConfigurationError, match=r"DISPATCH_FLOWER_AUTH_FILE.*DISPATCH_FLOWER_OPEN"):
        login(Flower())
    assert login(Flower(open=True)) == []
    assert login(Flower(auth=Secret("ops:a:b"))) == ["ops:a:b"]
    assert login(Flower(auth=Secret("ops:x, eve:y"), open=True)) == ["ops:x", "eve:y"]


@pytest.mark.parametrize("wrong", ["", "ops", "ops:", ":x", "ops:x,eve", ","])
def test_what_is_no_login_is_refused_and_not_shown(wrong: str) -> None:
    """A word without a colon would be a login that nobody can use, or everybody."""
    with pytest.raises(ConfigurationError, match="user:password") as caught:
        login(Flower(auth=Secret(wrong)))
    assert "ops" not in str(caught.value)


@pytest.mark.parametrize(
    ("uuid", "args", "seen"),
    [
        ("12.3", "('12', 2, 3, 'dispatch-a')", ("12", "3", "2", "dispatch-a")),
        ("12.3", ["12", 2, 3, "dispatch-a"], ("12", "3", "2", "dispatch-a")),
        ("12.3", None, ("12", "3", "?", "?")),
        ("12.3", "('12', 2, ...", ("12", "3", "?", "?")),
        ("12.3", "__import__('os')", ("12", "3", "?", "?")),
        ("c0ffee-12", "('12',)", None),
        (".3", "()", None),
        ("12.x", "()", None),
    ],
)
def test_an_attempt_is_read_from_its_message(uuid: str, args: Any, seen: tuple[str, ...] | None) -> None:
    """The id of the message names task and token, its arguments the attempt; nothing in them is run."""
    found = attempt_in(uuid, args)
    assert (found and (found.task_id, found.token, found.attempt, found.actor_id)) == seen


def test_a_title_is_shown_on_one_line_and_never_that_of_a_sealed_task() -> None:
    """Control characters and line ends go, what is long is cut, what is sealed is called so."""
    assert title_of({"task": {"id": 1, "title": "a\nb\x1b[31m\u202ec  d"}}) == "a b [31m c d"
    assert len(title_of({"id": 1, "title": "x" * 500})) == 120
    assert title_of({"id": 1, "title": "in clear", "payload": {"encrypted": True}}) == SEALED
    assert title_of({"id": 1, "title": "in clear", "payload": {"encrypted": False}}) == "in clear"


def test_titles_are_asked_for_once_a_minute_and_not_while_the_service_is_away() -> None:
    """A page costs a call for each new task; a service that is away or slow is left alone for five seconds."""
    now, asked, answers = [0.0], [], cast("dict[str, Any]", {"1": "one"})

    def ask(task_id: str) -> str:
        asked.append(task_id)
        answer = answers.get(task_id, "")
        if isinstance(answer, Exception):
            raise answer
        if answer == "slow":
            now[0] += 0.4
        return answer

    titles = Titles(ask, clock=lambda: now[0])
    assert [titles.of("1"), titles.of("1")] == ["one", "one"]
    assert asked == ["1"]
    now[0] = 61.0
    answers["1"] = GatewayUnavailableError("away")
    assert [titles.of("1"), titles.of("2"), titles.of("3")] == ["one", "", ""]
    assert asked == ["1", "1"]
    now[0] = 67.0
    answers |= {"1": "new", "2": UnknownTaskError("gone", status=404), "3": AuthenticationError("no"), "4": "slow"}
    assert [titles.of(ident) for ident in "1234"] == ["new", "", "", "slow"]
    assert titles.of("5") == ""
    assert asked == ["1", "1", "1", "2", "3", "4"]


def test_flowers_copy_says_id_title_and_attempt() -> None:
    """Other Celery tasks, such as gates, are left as they are."""
    titles = Titles(lambda task_id: f"title of {task_id}")
    task = describe(SimpleNamespace(uuid="12.3", args="('12', 2, 3, 'dispatch-a')", kwargs="{}"), titles)
    assert (task.args, task.kwargs) == ("#12 title of 12", "attempt 2, token 3, claimed by dispatch-a")
    other = SimpleNamespace(uuid="c0ffee", args="(1,)", kwargs="{}")
    assert describe(other, titles).args == "(1,)"
    assert json.dumps(vars(other))


@pytest.mark.parametrize(
    ("state", "result", "shown"),
    [
        ("STARTED", None, ("STARTED", None)),
        ("SUCCESS", "'success'", ("SUCCESS", "success")),
        ("SUCCESS", "'exit'", ("FAILURE", "exit")),
        ("SUCCESS", "'timeout'", ("FAILURE", "timeout")),
        ("SUCCESS", "'tempfail'", ("RETRY", "tempfail")),
        ("SUCCESS", "'cancelled'", ("REVOKED", "cancelled")),
        ("SUCCESS", "None", ("IGNORED", "dropped: the message was stale")),
        ("FAILURE", "None", ("FAILURE", "None")),
    ],
)
def test_the_state_is_that_of_the_attempt(state: str, result: str | None, shown: tuple[str, str | None]) -> None:
    """A failed attempt is no success, although its message was handled; what Celery calls otherwise stays."""
    task = SimpleNamespace(uuid="12.3", args="('12', 2, 3, 'dispatch-a')", kwargs="{}", state=state, result=result)
    task = describe(task, Titles(lambda _: "t"))
    assert (task.state, task.result) == shown
