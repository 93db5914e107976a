"""``dispatch demo``: the main job on real parts, in a temporary place, watched live and checked at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.live import Live
from rich.table import Table

from dispatch.ats import protocol
from dispatch.ats.aclient import AsyncClient
from dispatch.ats.feed import Connected, Feed
from dispatch.ats.model import Actor, Event, parse_task
from dispatch.cli.standing import Standing
from dispatch.core.lifecycle import FINISHED_ATS_WORDS
from dispatch.errors import DispatchError

if TYPE_CHECKING:
    from collections.abc import Iterator

CHANNEL: Final = "demo"
SLOTS: Final = 2
FINISH_TIMEOUT_S: Final = 60.0
_STYLE: Final = {
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
    "in_progress": "cyan",
    "pending": "dim",
}


@dataclass(slots=True)
class Case:
    """One task of the demo: what to create, what must come of it, and what was seen."""

    title: str
    payload: dict[str, Any] | None = None
    expect_status: str = "completed"
    expect_attempts: int = 1
    expect_text: str = "done"
    cancel_when_running: bool = False
    task_id: str = ""
    status: str = "pending"
    attempts: int = 0
    text: str = ""
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    running: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def went_well(self) -> bool:
        """Whether the task ended exactly as it should."""
        return (self.status, self.attempts) == (
            self.expect_status,
            self.expect_attempts,
        ) and self.expect_text in self.text


def cases() -> list[Case]:
    """Return the demo's tasks."""
    return [
        Case("Say hello", expect_text="done: Say hello"),
        Case("Add numbers from the payload", {"numbers": [19, 23]}, expect_text="the sum is 42"),
        *(Case(f"One of ten at once, number {n}", {"seconds": 0.2}) for n in range(1, 11)),
        Case("Fail twice, then succeed", {"fails_before_attempt": 3}, expect_attempts=3),
        Case(
            "Fail always (poison)",
            {"fails_before_attempt": 99},
            expect_status="failed",
            expect_attempts=3,
            expect_text="Exceeded max retry attempts (3)",
        ),
        Case(
            "Cancelled while it runs",
            {"seconds": 50},
            expect_status="cancelled",
            expect_text="cancelled by the demo",
            cancel_when_running=True,
        ),
    ]


def environment() -> dict[str, str]:
    """Return the environment of the demo's processes: ours, without anybody's DISPATCH_* settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DISPATCH_")}
    executor = Path(__file__).with_name("demo_executor.py")
    return clean | {
        "DISPATCH_CONFIG": os.devnull,
        "DISPATCH_BIND": "127.0.0.1:0",
        "DISPATCH_CHANNEL": CHANNEL,
        "DISPATCH_COMMAND": f"'{sys.executable}' '{executor}'",
        "DISPATCH_RETRY_BACKOFF_S": "0.4",
        "DISPATCH_GRACE_S": "2",
        "DISPATCH_DRAIN_S": "2",
    }


class Demo:
    """One run. ``console`` shows a live table on a terminal and one line per change elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._cases = cases()
        self._by_id: dict[str, Case] = {}
        self._early: list[Event] = []
        self._log: list[str] = []
        self._changed = asyncio.Event()

    async def run(self) -> bool:
        """Run everything and say whether all went as it should."""
        self._console.print("dispatch demo: Redis, a task service, an ingress and a worker with two slots, all real")
        place = Path(tempfile.mkdtemp(prefix="dispatch-demo-"))
        began_at = time.monotonic()
        try:
            with self._console.status("starting Redis, service, ingress, worker"):
                standing = Standing(
                    data_dir=place,
                    environ=environment(),
                    slots=SLOTS,
                    drain_s=2.0,
                    redis_url=None,
                    on_line=self._on_line,
                )
                await standing.__aenter__()
            try:
                self._console.print(f"all up after {time.monotonic() - began_at:.1f} s")
                await self._work(standing.url)
            finally:
                with self._console.status("stopping everything"):
                    await standing.__aexit__(None, None, None)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        self._console.print(self._table())
        left = left_behind(place)
        for problem in (*self._problems(), *left):
            self._console.print(f"[red]{problem}[/red]", highlight=False)
        well = not left and all(case.went_well for case in self._cases)
        if well:
            count = len(self._cases)
            self._console.print(f"[green]All {count} tasks ended as they should[/green]; nothing is left behind.")
        return well

    async def _work(self, url: str) -> None:
        actor = Actor("human", "demo", "demo")
        where = protocol.endpoint(url)
        async with AsyncClient(where, actor) as client:
            ready = asyncio.Event()
            listener = asyncio.create_task(self._listen(Feed(where, actor, [CHANNEL]), ready))
            try:
                await asyncio.wait_for(ready.wait(), 15)
                with self._live():
                    chores = [asyncio.create_task(self._create(client, case)) for case in self._cases]
                    await asyncio.gather(*chores)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._all_ended(), FINISH_TIMEOUT_S)
            finally:
                listener.cancel()
                await asyncio.gather(listener, return_exceptions=True)
            for case in self._cases:
                await self._read_result(client, case)

    def _live(self) -> contextlib.AbstractContextManager[Any]:
        """Show the table while it changes; drawn by the clock, because drawing at every event would delay them."""
        if not self._console.is_terminal:
            return contextlib.nullcontext()
        return Live(console=self._console, get_renderable=self._table, refresh_per_second=8, transient=True)

    async def _create(self, client: AsyncClient, case: Case) -> None:
        answer = await client.send(protocol.create(case.title, channel=CHANNEL, payload=case.payload))
        case.created_at = time.monotonic()
        case.task_id = parse_task(answer).id
        self._by_id[case.task_id] = case
        for event in [e for e in self._early if e.task_id == case.task_id]:
            self._on_event(event)
        if case.cancel_when_running:
            await asyncio.wait_for(case.running.wait(), FINISH_TIMEOUT_S)
            await client.send(protocol.cancel(case.task_id, "cancelled by the demo"))

    async def _listen(self, feed: Feed, ready: asyncio.Event) -> None:
        async for item in feed.run():
            if isinstance(item, Connected):
                ready.set()
            elif isinstance(item, Event):
                self._on_event(item)

    def _on_event(self, event: Event) -> None:
        case = self._by_id.get(event.task_id)
        if case is None:
            # The event was faster than the answer to our own call.
            self._early.append(event)
            return
        now = time.monotonic()
        if event.verb == "started":
            case.started_at = case.started_at or now
            case.running.set()
        if event.task is not None and event.task.status:
            case.status = event.task.status
            case.attempts = event.task.attempts
            if case.status in FINISHED_ATS_WORDS:
                case.ended_at = now
        self._show(case, event.verb)

    def _show(self, case: Case, verb: str) -> None:
        self._changed.set()
        if not self._console.is_terminal and verb not in ("claimed", "message"):
            self._console.print(f"task {case.task_id:>2} {verb:<10} {case.title}", highlight=False, soft_wrap=True)

    async def _all_ended(self) -> None:
        while not all(case.ended_at for case in self._cases):
            self._changed.clear()
            await self._changed.wait()

    async def _read_result(self, client: AsyncClient, case: Case) -> None:
        if not case.task_id:
            return
        task = parse_task(await client.send(protocol.get(case.task_id)))
        case.status, case.attempts = task.status, task.attempts
        outputs = task.outputs if isinstance(task.outputs, list) else []
        responses = [str(o.get("response", "")) for o in outputs if isinstance(o, dict)]
        case.text = (" ".join(responses) or task.reason or "").strip()

    def _on_line(self, part: str, line: dict[str, Any]) -> None:
        if line.get("level") not in ("info", "debug"):
            self._log.append(f"{part}: {line}")

    def _problems(self) -> Iterator[str]:
        for case in self._cases:
            if not case.went_well:
                yield (
                    f"{case.title!r} should have ended {case.expect_status} after {case.expect_attempts} attempt(s), "
                    f"but is {case.status} after {case.attempts}: {case.text[:200]}"
                )
        if not all(case.went_well for case in self._cases):
            yield from self._log[-20:]

    def _table(self) -> Table:
        table = Table(title=None, show_edge=False, pad_edge=False, header_style="bold")
        table.add_column("task", no_wrap=True, min_width=16)
        table.add_column("state", no_wrap=True, min_width=9)
        for name in ("attempts", "pickup", "duration"):
            table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
        table.add_column("result", no_wrap=True, overflow="ellipsis", max_width=40)
        for case in self._cases:
            pickup = f"{(case.started_at - case.created_at) * 1000:.0f} ms" if case.started_at else ""
            lasted = f"{case.ended_at - case.started_at:.2f} s" if case.ended_at and case.started_at else ""
            state = f"[{_STYLE.get(case.status, '')}]{case.status}[/]" if case.status in _STYLE else case.status
            first_line = case.text.partition("\n")[0]
            table.add_row(case.title, state, str(case.attempts or ""), pickup, lasted, first_line)
        return table


def left_behind(place: Path) -> list[str]:
    """Return a sentence for everything of the demo that is still there."""
    found = [f"{place} was not removed."] if place.exists() else []
    mark = os.fsencode(place)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes() and int(entry.name) != os.getpid():
                    found.append(f"Process {entry.name} is still running.")
    return found


def run() -> None:
    """Run the demo. Raises DispatchError when anything did not end as it should."""
    console = Console()
    if not console.is_terminal:
        # A pipe has no width; a table must not be cut to a guess.
        console = Console(width=140)
    if not asyncio.run(Demo(console).run()):
        raise DispatchError("The demo did not go as it should; the lines above say what and why.")
