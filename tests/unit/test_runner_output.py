"""Progress lines, redaction, and the buffer of live output: what is kept, what is shown, what never is."""

from __future__ import annotations

import os
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from dispatch.core.retry import EndReason
from dispatch.runner.attempt import AttemptEnd
from dispatch.runner.attempt_log import AttemptLog
from dispatch.runner.janitor import clear_logs
from dispatch.runner.live import ATTEMPT_BYTES_MAX, BUFFER_BYTES_MAX, MESSAGE_BYTES_MAX, LiveBuffer
from dispatch.runner.output import HeadTail
from dispatch.runner.progress import Progress, ProgressFilter
from dispatch.runner.redaction import Redactor, secrets_in, secrets_of
from dispatch.runner.streams import Streams
from dispatch.runner.telling import in_the_open
from dispatch.settings import load

TEXT = (
    b"one\n::progress 10 Begin\ntwo ::progress 20 no\n::progress 101 no\n::progress x\n::prog\r\n"
    b"::progress 30\n\xc3\xbc::\n::progress 40 F\xc3\xbcr \r\nlast"
)
SEEN = b"one\n<10>two ::progress 20 no\n::progress 101 no\n::progress x\n::prog\r\n<30>\xc3\xbc::\n<40>last"
FOUND = [Progress(10, "Begin"), Progress(30, ""), Progress(40, "F\u00fcr")]


@pytest.mark.parametrize("seed", range(50))
def test_progress_lines_are_taken_out_however_they_arrive(seed: int) -> None:
    """Cut into any chunks, the same is kept and found in the same order; only whole lines of the right form count."""
    rand = random.Random(seed)
    progress, at = ProgressFilter(), 0
    found: list[bytes | Progress] = []
    while at < len(TEXT):
        size = rand.choice((1, 2, 7, 30))
        found += progress.feed(TEXT[at : at + size])
        at += size
    found += progress.rest()
    seen = b"".join(one if isinstance(one, bytes) else f"<{one.percent}>".encode() for one in found)
    assert seen == SEEN
    assert [one for one in found if isinstance(one, Progress)] == FOUND


def test_a_progress_line_at_the_very_end_counts() -> None:
    """It needs no line end; and what only looked like one is output."""
    progress = ProgressFilter()
    assert progress.feed(b"::progress 5 x") == []
    assert progress.rest() == [Progress(5, "x")]
    assert (progress.feed(b"::pro"), progress.rest(), progress.rest()) == ([], [b"::pro"], [])


class Clock:
    """A clock that stands still until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


def buffer(*secrets: str, clock: Any = None) -> LiveBuffer:
    """Make a buffer that hides these."""
    return LiveBuffer(Redactor(secrets), where="there is host:/log", changed=lambda: None, clock=clock or Clock())


def test_no_secret_is_shown_however_it_arrives() -> None:
    """Byte by byte and drained all the time, also without a line end: never the secret, nor an end of it."""
    clock = Clock()
    live, shown = buffer("s3cret-canary", "line-one-1\nline-two-2", clock=clock), []
    for byte in b"a s3cret-canary b\ns3cret-s3cret-canary c line-one-1\nline-two-2 d":
        live.feed("stdout", bytes([byte]))
        clock.now += 1.1
        shown.append(live.drain()[0])
    text = "".join(shown)
    assert "".join(text.split()) == "a***bs3cret-***c******d", text


def test_the_newest_of_much_is_shown_and_the_rest_counted() -> None:
    """One message is bounded; what is left out is said with its size and where it is."""
    live = buffer()
    lines = b"".join(b"%06d\n" % number for number in range(50_000))
    live.feed("stdout", lines)
    text, _ = live.drain()
    assert len(text) < 8_000
    head, *rest = text.split("\n")
    assert head == f"[... {len(lines) - 7 * len(rest)} bytes are left out here; there is host:/log ...]"
    assert (rest[-1], len(rest)) == ("049999", MESSAGE_BYTES_MAX // 7)


def test_after_an_outage_the_oldest_comes_first_and_nothing_is_left_out() -> None:
    """Who could say nothing for a while says all of it, a message at a time; then again the newest of much."""
    live, said = buffer(), ""
    lines = b"".join(b"%06d\n" % number for number in range(4_000))
    live.feed("stdout", lines)
    live.fall_behind()
    while live.is_behind:
        text, _ = live.drain()
        assert len(text) <= MESSAGE_BYTES_MAX
        said += text + "\n"
    assert said.encode() == lines
    live.feed("stdout", lines)
    assert "bytes are left out here" in live.drain()[0]


def test_a_line_without_end_costs_no_memory() -> None:
    """It is left out beyond a bound, and what follows it is shown."""
    live = buffer()
    for _ in range(100):
        live.feed("stderr", b"x" * 10_000)
    live.feed("stderr", b"\nnext\n")
    text, _ = live.drain()
    assert text.endswith("...]\nnext")
    assert len(live._partial["stderr"]) <= BUFFER_BYTES_MAX


def test_an_attempt_shows_so_much_and_then_only_progress() -> None:
    """The thread stays readable; how far it is can still be seen."""
    live, last = buffer(), ""
    for _ in range(ATTEMPT_BYTES_MAX // 7_000 + 2):
        live.feed("stdout", b"x" * 6_999 + b"\n")
        before, last = last, live.drain()[0]
    assert last == ""
    assert before.endswith(
        "[... this attempt has written 1 MiB here, which is all that a thread shows. It runs on, and its progress is "
        "still shown; there is host:/log ...]"
    )
    live.tell(Progress(50, "half"))
    assert live.drain() == ("[50 %] half", {"progress": 50, "text": "half"})


def test_a_split_character_waits_for_its_rest() -> None:
    """A line that waits for its end is shown in whole characters."""
    clock = Clock()
    live = buffer(clock=clock)
    live.feed("stdout", "ab\u00fc".encode()[:-1])
    clock.now = 1.5
    assert live.drain()[0] == "ab"
    live.feed("stdout", "\u00fc".encode()[1:] + b"\n")
    assert live.drain()[0] == "\u00fc"


def test_secrets_are_found_in_settings_and_environment() -> None:
    """Passwords of URLs and secret settings; and of the environment what is called like a secret."""
    settings = load({"DISPATCH_ATS_TOKEN": "tok-1", "DISPATCH_REDIS_URL": "redis://:pass%2Fword@h/0"})
    assert {"tok-1", "pass%2Fword", "pass/word"} <= set(secrets_of(settings))
    environ = {"API_KEY": "k", "HOME": "/h", "DB_PASSWORD": "p"}
    assert secrets_in(environ, ("API_KEY", "HOME", "DB_PASSWORD", "MISSING_TOKEN")) == ("k", "p")


def test_a_log_ends_at_its_cap_and_goes_on_after_an_uncounted_attempt(tmp_path: Path) -> None:
    """Private, bounded also over several attempts of one number, and never made for nothing."""
    path = tmp_path / "logs" / "7-1.log"
    AttemptLog(path, 10, None).close()
    assert not path.exists()
    for chunk in (b"abcd", b"efghijkl", b"mn"):
        log = AttemptLog(path, 10, None)
        log.write(chunk)
        log.write(chunk)
        log.close()
    assert path.read_bytes().startswith(b"abcdabcdef\n[... the log ends here")
    assert path.stat().st_mode & 0o777 == 0o600


def test_nobody_is_sent_to_a_log_that_is_not_kept(tmp_path: Path) -> None:
    """Where more of the output is stands in the sentence about what was left out; without logs it is nowhere."""
    assert AttemptLog(tmp_path / "7-1.log", 10, None).where("host").endswith(f" host:{tmp_path}/7-1.log")
    assert AttemptLog(tmp_path / "7-1.log", 0, None).where("host") == "no log of it is kept"


@pytest.mark.parametrize("at", range(18, 34))
def test_a_secret_is_hidden_where_the_middle_is_left_out(at: int) -> None:
    """Cut in two it is no longer there whole; neither half is shown, wherever the cut falls."""
    sink = HeadTail(80)  # 20 bytes before the cut, 60 behind
    sink.feed(b"x" * at + b"canary-secret" + b"y" * 50)
    text = Streams(progress=False, redactor=Redactor(["canary-secret"])).end("stdout", sink).text
    assert not re.search("can|ary|sec|ret", text)
    shown = re.sub(
        r"\n\[\.\.\. (\d+) bytes of output are left out here \.\.\.\]\n", lambda found: "z" * int(found[1]), text
    )
    assert len(shown.replace("***", "z" * 13)) == at + 13 + 50


def test_a_response_says_what_is_not_as_it_was_written() -> None:
    """Left out in the middle, or bytes replaced that are no text: nobody takes it for whole."""
    sink = HeadTail(16)
    sink.feed(b"ab\xff\0" + b"c" * 20)
    (output,) = in_the_open(AttemptEnd(EndReason.SUCCESS, stdout=sink.result())).outputs or []
    assert (output.pop("response")[:2], output) == ("ab", {"truncated": True, "output_bytes": 24, "binary": True})


def test_old_logs_are_cleared(tmp_path: Path) -> None:
    """Only logs of attempts, and only those that nothing was written to for long."""
    for name, age_s in (("7-1.log", 100), ("7-2.log", 10), ("other.txt", 100)):
        path = tmp_path / name
        path.touch()
        os.utime(path, (time.time() - age_s,) * 2)
    assert clear_logs(tmp_path, 60) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["7-2.log", "other.txt"]
    assert clear_logs(tmp_path / "none", 60) == 0
