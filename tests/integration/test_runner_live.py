"""Output while an attempt runs: on the thread, redacted and throttled, in the log on the host, and never in the way."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.processes import eventually
from tests.support.promises import promised
from tests.support.runner_driver import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Start = Callable[..., Worker]

SHELL = "echo one canary-secret; echo two >&2; echo '::progress 40 Fetching'; read x < fifo; echo three"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start workers in the test's directory; afterwards nothing of any attempt may be alive."""
    workers: list[Worker] = []

    def make(script: str, **config: Any) -> Worker:
        script = script.replace("fifo", str(tmp_path / "fifo"))
        workers.append(Worker(tmp_path / f"worker{len(workers)}", ["sh", "-c", script], **config))
        return workers[-1]

    for name in ("fifo", "fifo-2"):
        os.mkfifo(tmp_path / name)
    yield make
    assert [process for worker in workers for process in worker.close()] == []


def go_on(tmp_path: Path, name: str = "fifo") -> None:
    """Let the command go on. Each wait has a name of its own: who opens one again may still see the end of the last."""
    (tmp_path / name).write_text("\n")


def test_a_running_attempt_shows_what_it_writes(start: Start, tmp_path: Path) -> None:
    """Both streams and the progress come in one message, without secrets; the response has no progress lines."""
    worker = start(SHELL, task={"title": "t"}, secrets=["canary-secret"])
    (said,) = eventually(lambda: worker.calls("say"))
    assert sorted(said["text"].split("\n")) == ["[40 %] Fetching", "one ***", "two"]
    assert said["meta"] == {"progress": 40, "text": "Fetching"}
    go_on(tmp_path)
    assert worker.result()["stdout"] == "one ***\nthree\n"
    kept = (worker.directory / "data" / "logs" / "7-1.log").read_text()
    assert sorted(kept.splitlines()) == ["::progress 40 Fetching", "one canary-secret", "three", "two"]


def test_a_service_that_hangs_costs_log_lines_only(start: Start, tmp_path: Path) -> None:
    """While a message hangs, the attempt ends and is reported as ever."""
    worker = start(SHELL, task={"title": "t"}, moods={"say.hang": None})
    eventually(lambda: worker.calls("say"))
    go_on(tmp_path)
    with promised(3.0, "the end of the attempt"):
        assert worker.result()["reason"] == "success"
    assert worker.calls("complete")


@pytest.mark.parametrize(("mood", "sent"), [("unavailable", 2), ("unanswered", 1)])
def test_a_service_that_was_away_gets_every_line_once(start: Start, tmp_path: Path, mood: str, sent: int) -> None:
    """What it did not take comes again, what it took without saying so does not; then come the next lines."""
    worker = start(SHELL + "; read x < fifo-2", task={"title": "t"}, moods={f"say.{mood}": 1})
    eventually(lambda: worker.events("live_output_delayed"))
    go_on(tmp_path)
    *first, last = eventually(lambda: len(said := worker.calls("say")) > sent and said)
    assert len({said["text"] for said in first}) == 1
    assert last["text"] == "three"
    go_on(tmp_path, "fifo-2")
    assert worker.result()["reason"] == "success"
