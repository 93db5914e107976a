"""``dispatch top``: what status shows and what runs, every second, until q or Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import click

from dispatch.ats import answers, protocol
from dispatch.cli.fleet_view import look, runs_at
from dispatch.cli.options import State, common_options
from dispatch.cli.output import STYLES, clean_line, duration
from dispatch.cli.status import lines, started_at
from dispatch.cli.stuck import look_for_stuck
from dispatch.cli.thread import shown_progress
from dispatch.core.standing import fleet_troubles
from dispatch.errors import GatewayError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from dispatch.ats.model import Task
    from dispatch.cli.fleet_view import Seen
    from dispatch.cli.stuck import Stuck

EVERY_S: Final = 1.0
ROWS_MAX: Final = 200
_STUCK_EVERY_S: Final = 5.0
"""How often it is asked why tasks are stuck, which takes a call for each."""
_PROGRESS_EVERY_S: Final = 5.0
_PROGRESS_A_LOOK: Final = 5
"""How many threads are read in one look, so that looking stays cheap."""
_LOOKED_AT: Final = 20
"""How many messages of a thread; a heartbeat a minute stands between those that show output."""
_KEPT_MAX: Final = 1_000
COLUMNS: Final = ("TASK", "HOST", "ATTEMPT", "ELAPSED", "CHANNEL", "TITLE", "PROGRESS")


class Progress:
    """The newest line of the threads of running tasks, read now and then."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._known: OrderedDict[str, tuple[float, str]] = OrderedDict()

    def read(self, running: list[Task]) -> None:
        """Read the threads of a few tasks that were not read for a while."""
        now = time.monotonic()
        due = [task for task in running if now - self._known.get(task.id, (-1e9, ""))[0] >= _PROGRESS_EVERY_S]
        for task in due[:_PROGRESS_A_LOOK]:
            with contextlib.suppress(GatewayError):
                self._known[task.id] = (now, "" if task.sealed else self._newest(task))
                self._known.move_to_end(task.id)
        while len(self._known) > _KEPT_MAX:
            self._known.popitem(last=False)

    def of(self, task: Task) -> str:
        """Return the newest line known of a task."""
        return self._known.get(task.id, (0.0, ""))[1]

    def _newest(self, task: Task) -> str:
        """Return how far a task is; if it does not say, its newest line; without one, what was said last."""
        thread = answers.messages_of(self._state.client.send(protocol.list_messages(task.id, limit=_LOOKED_AT)))
        if (progress := answers.progress_of(thread, task)) is not None:
            return shown_progress(progress)
        written = [message for message in thread if message.get("kind") == "log"]
        for message in reversed([*thread, *written]):
            parts = message.get("parts")
            for part in reversed(parts if isinstance(parts, list) else []):
                text = part.get("content") if isinstance(part, dict) else None
                if isinstance(text, str) and text.strip():
                    return clean_line(text.strip().splitlines()[-1])
        return ""


@click.command()
@common_options
@click.pass_obj
def top(state: State) -> None:
    """Show what the fleet does, live.

    Refreshed every second; q or Ctrl-C ends it. Elsewhere than on a terminal, and on one that cannot move
    its cursor, it is shown once: what status shows, then a line for each running task.

    \b
    Examples:
      dispatch top
      dispatch top --channel reports
    """  # noqa: D301 - click's mark
    progress = Progress(state)
    output = state.output
    if output.is_terminal and sys.stdin.isatty() and not (output.is_json or output.console.is_dumb_terminal):
        _live(state, progress)
        return
    seen = look(state)
    progress.read(seen.running)
    rows = rows_of(seen, progress)
    if state.output.is_json:
        names = [name.lower() for name in COLUMNS]
        state.output.json([dict(zip(names, row, strict=True)) for row in rows])
        return
    state.output.fields(lines(state, seen))
    state.output.table(COLUMNS, rows)


def rows_of(seen: Seen, progress: Progress) -> list[tuple[Any, ...]]:
    """Return a row for each task in progress, the one that runs longest first."""
    shown = sorted(seen.running, key=lambda task: (started_at(task) or seen.now_at, task.id))
    return [_row(seen, task, progress) for task in shown[:ROWS_MAX]]


def _row(seen: Seen, task: Task, progress: Progress) -> tuple[Any, ...]:
    began = started_at(task) if task.runner else None
    elapsed = duration((seen.now_at - began).total_seconds()) if began is not None else "queued"
    title = "(sealed)" if task.sealed else clean_line(task.title)
    attempt = task.attempts if task.runner else task.attempts + 1
    return task.id, runs_at(task), attempt, elapsed, task.channel, title, progress.of(task)


def _live(state: State, progress: Progress) -> None:
    from rich.live import Live

    stuck: list[Stuck] = []
    asked_at = -_STUCK_EVERY_S
    with _keys(), Live(console=state.output.console, screen=True, auto_refresh=False) as live:
        while True:
            began = time.monotonic()
            seen = look(state)
            if began - asked_at >= _STUCK_EVERY_S:
                stuck, asked_at = look_for_stuck(state, seen).stuck, time.monotonic()
            if not seen.fleet.service_error:
                progress.read(seen.running)
            live.update(_screen(state, seen, stuck, rows_of(seen, progress)), refresh=True)
            if _quits(max(0.05, EVERY_S - (time.monotonic() - began))):
                return


def _screen(state: State, seen: Seen, stuck: list[Stuck], rows: list[tuple[Any, ...]]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Table.grid(padding=(0, 2))
    head.add_column(justify="right", style="bold", no_wrap=True, min_width=len("oldest running"))
    head.add_column(no_wrap=True, overflow="ellipsis")
    for name, value in lines(state, seen):
        word = clean_line(value)
        head.add_row(name, Text(word, STYLES.get(word.split(":")[0].split(",")[0], "")))
    troubles = {reason.text for reason in fleet_troubles(seen.fleet, [state.settings.broker.queue])}
    for text in dict.fromkeys([*troubles, *(one.text for one in stuck)]):
        head.add_row("stuck", Text(clean_line(text), "yellow"))
    running = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    for name in COLUMNS:
        wide = name in ("TITLE", "PROGRESS")
        running.add_column(name, no_wrap=True, overflow="ellipsis", ratio=1 if wide else None)
    for row in rows[: max(1, state.output.console.height - head.row_count - 4)]:
        running.add_row(*(Text(clean_line(cell)) for cell in row))
    return Group(head, Text(""), running, Text(f"{len(rows)} in progress; q ends", "dim"))


@contextlib.contextmanager
def _keys() -> Iterator[None]:
    """Take single keys from the terminal, and give it back as it was, also when somebody ends us with SIGTERM."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    asked = signal.signal(signal.SIGTERM, _leave)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTERM, asked)


def _leave(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def _quits(patience_s: float) -> bool:
    """Wait for a key; say whether it was q, or nobody can press one any more."""
    descriptor = sys.stdin.fileno()
    if not select.select([descriptor], [], [], patience_s)[0]:
        return False
    typed = os.read(descriptor, 64)
    return not typed or b"q" in typed.lower()
