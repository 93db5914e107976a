"""One event is one line of JSON, whatever is in it."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from dispatch import log
from dispatch.setting_kinds import Secret

if TYPE_CHECKING:
    from collections.abc import Iterator

HOSTILE = [
    "two\r\nlines",
    '\n{"event": "forged", "level": "info"}',
    "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "para\u2028graph\u2029sep\x85nel",
    "\x00\x01\x7f\x9b",
    "\ud800 lone",
    "right\u202eto left",
    "🙂 ümlaut",
]


class Output:
    """What was written to file descriptor 1 since the beginning."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self._seen = ""

    def getvalue(self) -> str:
        """Return all of it."""
        self._seen += self._capture.readouterr().out
        return self._seen


@pytest.fixture
def output(capfd: pytest.CaptureFixture[str]) -> Iterator[Output]:
    """Configure logging, and put everything back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    log.configure("debug")
    yield Output(capfd)
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


def lines(output: Output) -> list[str]:
    """What was written, one entry a line as any reader of lines would see it."""
    return output.getvalue().splitlines()


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_one_event_is_one_printable_line(text: str, output: Output) -> None:
    """Line breaks, escapes, separators and lone surrogates come out escaped, and come back unchanged."""
    log.get_logger("test").info("task_claimed", title=text, nested={"deep": [text]})
    (line,) = lines(output)
    assert line.isascii()
    assert line.isprintable()
    event = json.loads(line)
    assert event["title"] == text
    assert event["nested"] == {"deep": [text]}


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_library_loggers_obey_the_same(text: str, output: Output) -> None:
    """What a library logs through the standard module is one such line too."""
    logging.getLogger("some.library").warning("said %s", text)
    (line,) = lines(output)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["event"] == f"said {text}"


def test_an_event_has_its_four_fields(output: Output) -> None:
    """Time in UTC, level, name and component are always there."""
    log.get_logger("ingress").warning("feed_lost", attempt=2)
    event = json.loads(lines(output)[0])
    assert event.pop("ts").endswith("Z")
    assert event == {"level": "warning", "event": "feed_lost", "component": "ingress", "attempt": 2}


def test_long_values_are_cut(output: Output) -> None:
    """A megabyte of title makes a short line."""
    log.get_logger("test").info("task_claimed", title="x" * 1_000_000)
    (line,) = lines(output)
    assert json.loads(line)["title"] == "x" * log.VALUE_CHARS_MAX + "..."
    logging.getLogger("some.library").warning("y" * 1_000_000)
    (_, line) = lines(output)
    assert len(line) < log.VALUE_CHARS_MAX + 500


def test_a_traceback_is_one_line(output: Output) -> None:
    """An exception is a field of its event, not lines of its own."""
    try:
        raise ValueError("bad\nnews")
    except ValueError:
        log.get_logger("test").exception("attempt_failed")
    (line,) = lines(output)
    assert "ValueError: bad\nnews" in json.loads(line)["exception"]


@pytest.mark.parametrize("value", [object(), {1, 2}, b"\xff", float("nan"), Secret("hunter2"), [Secret("hunter2")]])
def test_anything_can_be_logged(value: Any, output: Output) -> None:
    """A value that JSON does not know is shown as text, a secret as stars."""
    log.get_logger("test").info("event", value=value)
    (line,) = lines(output)
    assert "hunter2" not in line
    assert json.loads(line)["event"] == "event"


def test_the_level_is_respected(output: Output) -> None:
    """Below the configured level nothing is written."""
    log.configure("warning")
    log.get_logger("test").info("quiet")
    log.get_logger("test").warning("loud")
    assert [json.loads(line)["event"] for line in lines(output)] == ["loud"]
