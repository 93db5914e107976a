"""How processes are told to stop by whoever started them, and what they do when nobody reads them any more."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest

from dispatch.asynchronous import on_stop
from dispatch.cli.up import Lines
from tests.support.processes import ROOT

_HEARS = """
import asyncio, os, signal, sys
from dispatch.asynchronous import on_stop

async def main():
    heard = []
    on_stop(lambda: heard.append("stop"), lambda: heard.append("hang up"))
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
    while "stop" not in heard:
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    print(*heard, sep=",")

asyncio.run(main())
"""


@pytest.mark.parametrize(("before", "heard"), [("", ["hang up", "stop", "stop"]), ("trap '' HUP;", ["stop", "stop"])])
def test_a_lost_terminal_is_heard_unless_under_nohup(before: str, heard: list[str]) -> None:
    """SIGHUP, SIGTERM and SIGINT reach a process; a SIGHUP that its starter ignores stays ignored."""
    shell = ["/bin/sh", "-c", f'{before} exec "$0" -c "$1"', sys.executable, _HEARS]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    assert sorted(done.stdout.strip().split(",")) == heard


async def test_without_a_word_for_it_sighup_is_a_stop() -> None:
    """Who makes no difference is stopped by SIGHUP."""
    stopped = asyncio.Event()
    try:
        on_stop(stopped.set)
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.wait_for(stopped.wait(), 5)
    finally:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)


_LOSES = """
import sys
from dispatch.cli.up import Lines
lost = []
lines = Lines(lambda: lost.append("lost"))
for number in range(3):
    lines("service", {"event": "x" * 100})
sys.stderr.write(",".join(lost))
"""


def test_up_stops_when_nobody_reads_it() -> None:
    """``dispatch up | head -1``, or a terminal that is gone: told once, no traceback, and nothing more is printed."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", _LOSES],
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=True,
    )
    os.close(write)
    assert done.stderr == "lost"


def test_up_prints_no_empty_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """The blank lines that Celery writes around its goodbye are no events."""
    lines = Lines(lambda: None)
    lines("worker", {"event": ""})
    lines("worker", {"event": "worker: Warm shutdown (MainProcess)"})
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"part": "worker", "event": "worker: Warm shutdown (MainProcess)"}
