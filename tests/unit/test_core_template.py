"""Values of a task in the argv of a command."""

from __future__ import annotations

from typing import Any

import pytest

from dispatch.core.command_line import argv_of
from dispatch.core.template import TemplateError, code_of_a_task, fill, payload_fields

FACTS = {"id": "7", "channel": "images", "type": "task", "attempt": 2}


def test_values_take_their_places_and_nothing_is_split() -> None:
    """Blanks, quotes and shell signs stay inside one argument; braces that name nothing stay as they are."""
    argv = ("tool", "--id={id}", "{channel}/{type}", "{attempt}", "{payload.url}", '{"a": {payload.n}}', "{else}")
    payload = {"url": "a b'; rm $(x) `y` {id}", "n": 3}
    assert fill(argv, FACTS, payload) == (
        "tool",
        "--id=7",
        "images/task",
        "2",
        "a b'; rm $(x) `y` {id}",
        '{"a": 3}',
        "{else}",
    )


def test_truth_values_are_written_as_in_json() -> None:
    """Numbers and truth values have one spelling."""
    assert fill(("x", "{payload.a}", "{payload.b}"), FACTS, {"a": True, "b": 1.5}) == ("x", "true", "1.5")


REFUSED: list[tuple[tuple[str, ...], Any, str]] = [
    (("x", "{payload.size}"), {}, "needs the payload field size, which this task does not have"),
    (("x", "{payload.size}"), None, "needs the payload field size"),
    (("x", "{payload.callback_url}"), {"callback_url": "https://h/?t=1"}, "needs the payload field callback_url"),
    (("x", "{payload.size}"), {"size": [1]}, "as text, a number, true or false"),
    (("x", "{payload.size}"), {"size": "a\0b"}, "cannot be an argument"),
    (("x", "{payload.size}"), {"size": "--output=/etc/x"}, "would be an option"),
    (("{payload.size}",), {"size": "sh"}, "program may not come from the task"),
]


@pytest.mark.parametrize(("argv", "payload", "sentence"), REFUSED)
def test_what_cannot_be_filled_in_is_refused(argv: tuple[str, ...], payload: Any, sentence: str) -> None:
    """A missing or unusable value, a value that would be an option, and a program of the task's choice."""
    with pytest.raises(TemplateError, match=sentence):
        fill(argv, FACTS, payload)


def test_a_dash_may_stand_where_it_cannot_be_an_option() -> None:
    """After '--', behind other text, and as a number."""
    filled = fill(("x", "{payload.n}", "-f{payload.v}", "--", "{payload.v}"), FACTS, {"n": -3, "v": "-v"})
    assert filled == ("x", "-3", "-f-v", "--", "-v")


def test_the_fields_that_an_argv_asks_for_are_known() -> None:
    """Each once, in order."""
    assert payload_fields(("x", "{payload.b}{payload.a}", "{payload.b}{id}")) == ("b", "a")


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (("sh", "-c", "echo {payload.name}"), "{payload.name}"),
        (("/bin/bash", "-lc", "cd /srv && make {type}"), "{type}"),
        (("env", "A=b", "sh", "-e", "-c", "echo {id} {channel}"), "{channel}"),
        (("python3.11", "-c", "print('{payload.a}')"), "{payload.a}"),
        (("node", "--eval={payload.a}"), "{payload.a}"),
        (("ssh", "host", "make", "{payload.a}"), "{payload.a}"),
        (("sh", "-c", 'echo "$1"', "sh", "{payload.name}"), ""),
        (("sh", "-c", "echo {id} {attempt}"), ""),
        (("bash", "script.sh", "{payload.name}"), ""),
        (("render", "-c", "{payload.name}"), ""),
    ],
)
def test_a_value_of_a_task_is_never_code(argv: tuple[str, ...], found: str) -> None:
    """In a script's text a quote is all it takes; as an argument of the script it is a value and stays one."""
    assert code_of_a_task(argv) == found
    if found:
        with pytest.raises(ValueError, match="whoever creates a task chooses what runs here"):
            argv_of(list(argv))
    else:
        assert argv_of(list(argv)) == argv
