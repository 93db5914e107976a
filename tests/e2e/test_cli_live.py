"""``dispatch logs -f`` shows what a task writes while it runs, from any host that reaches the service."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from tests.support.cli import Cli
from tests.support.stack import Stack

if TYPE_CHECKING:
    from pathlib import Path

LINES = 10
SCRIPT = f"""
import time
for number in range({LINES}):
    print("at", time.time(), flush=True)
    print(f"::progress {{number * 10}} Step {{number}}", flush=True)
    time.sleep(1)
"""


def test_a_line_a_second_is_seen_within_two_seconds(tmp_path: Path) -> None:
    """Each line comes while the task runs, less than 2 s late; progress can be seen, and the response is whole."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    stack = Stack({"DISPATCH_COMMAND": f"{sys.executable} -I -S {script}"})
    cli = Cli(tmp_path, {"DISPATCH_ATS_URL": stack.url})
    try:
        stack.start(1)
        ident = str(stack.create("watch me")["id"])
        logs = cli.start("logs", "-f", ident, env={"PYTHONUNBUFFERED": "1"})
        assert logs.stdout is not None
        delays = []
        for line in logs.stdout:
            text = line.rstrip("\n").rpartition("\t")[2]
            if line.count("\t") == 2 and text.startswith("at "):
                delays.append(time.time() - float(text.split()[1]))
            if len(delays) == LINES - 2:
                shown = cli.here("show", ident).out
                assert "progress" in shown
                assert "Step" in shown
                break
        assert max(delays) < 2.0, delays
        logs.kill()
        response = stack.wait_task(ident)["outputs"][0]["response"]
        assert [line[:3] for line in response.splitlines()] == ["at "] * LINES
        kept = stack.directory / "data" / "logs" / f"{ident}-1.log"
        assert kept.read_text().count("::progress") == LINES
        stack.close()
    except BaseException:
        print(stack.report())
        raise
    finally:
        cli.close()
        stack.abort()
