"""What reaches the terminal, and the words it is said in."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from dispatch.ats.model import Task
from dispatch.cli.main import COMMANDS, cli
from dispatch.cli.output import ago, clean_line, clean_text, dumps, duration, fitted, settled_text
from dispatch.cli.thread import response_of, standstill, text_of

NAMES = [name for section in COMMANDS.values() for name in section]


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        ("plain", "plain"),
        ("a\nb\r\nc\td", "a b c d"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b31mx\x07", "31mx"),
        ("\x1b]52;c;cm0gLXJmIH4=\x07paste", "paste"),
        ("\x1b]52;c;cm0gLXJmIH4=\nnext", "next"),
        ("\x1bPq#0;2\x1b\\\x1b_G;\x1b\\\x1b^x\x1b\\\x1bXy\x1b\\z", "z"),
        ("\x1b(B\x1b)0\x1b7\x1b[10A\x1b8\x1bc\x1b=bold\x1b(B\x1b[m", "bold"),
        ("\x1b\x1b[31m\x1b", ""),
        ("a\u061cb\u180ec\ufff9d\U000e0041\U000e007fe", "a b c d e"),
        ("a\u202eb\u2066c\u200bd\u2028e\ufefff\ud800g", "a b c d e f g"),
        ("\x00\x7f", ""),
        (None, ""),
        (7, "7"),
        ("wörter 漢字 👩‍💻", "wörter 漢字 👩‍💻"),
    ],
)
def test_line_is_one_line_without_controls(raw, line):
    """Whatever stands in a title, it is one line that cannot move the cursor or reorder text."""
    assert clean_line(raw) == line


def test_text_keeps_its_lines_and_nothing_else():
    """A description keeps line ends and tabs; the rest of the control characters goes."""
    assert clean_text("a\r\nb\tc\rd\x1b[2Je\x08") == "a\nb\tcde"


@pytest.mark.parametrize(
    ("written", "seen"),
    [
        ("\r 10 %\r 20 %\r100 %\ndone\r\n", "100 %\ndone\n"),
        (" 10 %\r 20 %\r", " 20 %"),
        ("\x1b[2K\r 10 %\x1b[2K\r 20 %", " 20 %"),
        ("one\ntwo\r\nthree", "one\ntwo\nthree"),
        ("\x1b[32mPASS\x1b[0m a\x1b(B", "PASS a"),
    ],
)
def test_a_line_that_was_written_over_is_shown_as_it_was_last(written, seen):
    """Progress bars are one line, and colours are none."""
    assert settled_text(written) == seen


@pytest.mark.parametrize(
    ("natural", "room", "widths"),
    [
        ([2, 11, 4, 20], 40, [2, 11, 4, 20]),
        ([2, 11, 4, 90], 60, [2, 11, 4, 43]),
        ([2, 90, 4, 90], 60, [2, 27, 4, 27]),
        ([36, 5, 20, 20], 60, [36, 5, 9, 10]),
        ([90, 5], 80, [60, 5]),
        ([20, 20], 27, []),
        ([36, 4, 9, 9], 40, []),
    ],
)
def test_what_is_widest_gives_way_first(natural, room, widths):
    """A long title costs no other column a character, an id in front is never cut, and no column vanishes."""
    assert fitted(natural, room) == widths


def test_json_is_safe_and_means_the_same():
    """Control characters and surrogates are escapes, other text stays readable, and parsing gives it all back."""
    value = {"t": "\x1b[2J\x9b\u202e\ud800 é\n"}
    text = dumps(value)
    assert text == '{"t": "\\u001b[2J\\u009b\\u202e\\ud800 é\\n"}'
    assert json.loads(text) == value


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3599, "60 min"),
        (5400, "2 h"),
        (86_400, "24 h"),
        (172_800, "2 d"),
        (-5, "5 s"),
    ],
)
def test_duration_as_people_say_it(seconds, said):
    """Durations have one unit, the one that reads best."""
    assert duration(seconds) == said


def test_times_are_relative():
    """Past times are "ago", future ones "in", no time is nothing."""
    now = datetime(2026, 11, 21, tzinfo=UTC)
    assert ago(now - timedelta(minutes=5), now) == "5 min ago"
    assert ago(now + timedelta(seconds=30), now) == "in 30 s"
    assert ago(now, now) == "now"
    assert ago(None) == ""


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        (None, ""),
        ([], ""),
        ([{"response": "a"}, {"response": "b"}], "a\nb"),
        ([{"name": "r", "parts": [{"type": "text", "content": "x"}, {"type": "data", "data": [1]}]}], "x\n[\n  1\n]"),
        (["plain", 3], "plain\n3"),
        ({"response": "bare"}, "bare"),
    ],
)
def test_response_is_read_from_every_form_of_outputs(outputs, text):
    """Responses, artifacts with parts, and anything else a service may hold."""
    assert response_of(Task("1", outputs=outputs)) == text


def test_parts_of_odd_messages_do_not_raise():
    """A thread is shown whatever its parts are."""
    assert text_of([{"url": "http://x"}, 7, {"odd": None}, None]) == 'http://x\n7\n{\n  "odd": null\n}\nnull'
    assert text_of("text") == "text"
    assert text_of(None) == ""


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_help_with_examples(name):
    """Each command's help shows how it is used, and its line in the overview is whole."""
    shown = CliRunner().invoke(cli, [name, "--help"])
    assert shown.exit_code == 0
    assert f"dispatch {name}" in shown.output.partition("Examples:")[2]
    overview = CliRunner().invoke(cli, ["--help"]).output
    assert f"\n  {name} " in overview
    assert "..." not in overview.partition("Processes:")[2]


@pytest.mark.parametrize(
    ("status", "reason", "begins"),
    [
        ("in_review", None, "Task 7 waits for a review: 'dispatch complete 7'"),
        ("pending", "exit code 1: no", "Task 7 is pending again: exit code 1: no"),
        ("pending", None, ""),
        ("in_progress", "exit code 1: no", ""),
    ],
)
def test_who_follows_a_task_is_told_why_it_says_nothing(status: str, reason: str | None, begins: str) -> None:
    """Between two attempts, and while somebody is to decide; a running task speaks for itself."""
    said = standstill(Task("7", status=status, raw={"reason": reason}))
    assert said.startswith(begins)
    assert bool(said) == bool(begins)


@pytest.mark.parametrize(
    ("typed", "begun", "offered"),
    [
        ([], "pau", ["pause", "paused"]),
        (["pause"], "", ["channel", "queue"]),
        (["list", "--status"], "pen", ["pending"]),
        (["list", "--status"], "failed,in_p", ["failed,in_progress"]),
        (["deps"], "--sta", ["--status"]),
        (["move", "7"], "in_r", ["in_review"]),
        (["api-key"], "", ["create", "list", "revoke"]),
    ],
)
def test_the_shell_completes_what_was_begun(typed, begun, offered):
    """Commands, options and the words of the lifecycle, also behind a comma."""
    completion = ShellComplete(cli, {}, "dispatch", "_DISPATCH_COMPLETE")
    assert [item.value for item in completion.get_completions(typed, begun)] == offered
