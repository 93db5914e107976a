"""``dispatch up``: everything on one machine, one Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.text import Text

from dispatch.asynchronous import on_stop
from dispatch.broker import shown_url
from dispatch.cli.standing import Standing
from dispatch.errors import DispatchError
from dispatch.settings import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatch.settings import Settings

_LEVEL_STYLE: Final = {"warning": "yellow", "error": "red", "critical": "bold red", "debug": "dim"}
_HIDDEN: Final = frozenset({"ts", "level", "event", "component", "logger"})


class Lines:
    """Prints log lines: as they came when piped, readable on a terminal.

    ``on_lost`` is called when nobody can read them any more; nothing is printed from then on.
    """

    def __init__(self, on_lost: Callable[[], None]) -> None:
        self._console = Console(stderr=False)
        self._on_lost = on_lost
        self._is_lost = False

    def __call__(self, part: str, line: dict[str, Any]) -> None:
        """Print one log object of a part; one that says nothing is left out."""
        if line.get("event"):
            self._print(lambda: self._line(part, line))

    def say(self, sentence: str) -> None:
        """Print a sentence for people; nothing when piped."""
        if self._console.is_terminal:
            self._print(lambda: self._console.print(sentence, highlight=False))

    def _print(self, write: Callable[[], None]) -> None:
        if self._is_lost:
            return
        try:
            write()
        except OSError:
            # What cannot be written now would be tried again at the end of the process.
            self._is_lost = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self._on_lost()

    def _line(self, part: str, line: dict[str, Any]) -> None:
        if not self._console.is_terminal:
            sys.stdout.write(json.dumps({"part": part, **line}) + "\n")
            sys.stdout.flush()
            return
        level = str(line.get("level", "info"))
        facts = " ".join(f"{key}={value}" for key, value in line.items() if key not in _HIDDEN)
        text = Text(f"{datetime.now().astimezone():%H:%M:%S} ", style="dim")
        text.append(f"{part:<8}", style="cyan")
        text.append(f"{line.get('event', '')} ", style=_LEVEL_STYLE.get(level, ""))
        text.append(facts, style="dim")
        self._console.print(text, soft_wrap=True)


def embedded_redis_wanted(settings: Settings) -> bool:
    """Say whether nobody named a Redis, so that ``up`` brings its own."""
    default = SETTINGS["redis_url"][1].metadata["default"]
    return settings.broker.url == default and "DISPATCH_REDIS_URL" not in os.environ


async def _run(settings: Settings, slots: int) -> None:
    stopping = asyncio.Event()
    lines = Lines(stopping.set)
    standing = Standing(
        data_dir=settings.local.data_dir,
        environ=os.environ,
        slots=slots,
        drain_s=settings.execution.drain_s,
        redis_url=None if embedded_redis_wanted(settings) else settings.broker.url,
        on_line=lines,
    )

    def stop() -> None:
        if stopping.is_set():
            lines.say("stopping at once: running attempts go back uncounted")
            standing.hurry()
        stopping.set()

    on_stop(stop, hang_up=stopping.set)
    starting = asyncio.create_task(standing.__aenter__())
    stop_wait = asyncio.create_task(stopping.wait())
    failed_wait = asyncio.create_task(standing.failed.wait())
    try:
        await asyncio.wait([starting, stop_wait], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return
        await starting
        redis = "embedded Redis" if standing.redis else shown_url(settings.broker)
        keys = "API keys on" if standing.has_keys else "no API keys: for this machine only"
        lines.say(
            f"\n[bold green]dispatch is up[/bold green]: service {standing.url}, {redis}, {slots} slots, "
            f"channel {', '.join(settings.ats.channels)}, {keys}\n"
            f"Try in another terminal:  dispatch create 'Say hello' --wait\n"
            "Ctrl-C drains and stops everything; a second one does not wait for running attempts.\n"
        )
        await asyncio.wait([stop_wait, failed_wait], return_when=asyncio.FIRST_COMPLETED)
        lines.say(f"\nstopping: running attempts have {settings.execution.drain_s:g} s to finish")
        await standing.__aexit__(None, None, None)
        if standing.failed.is_set():
            raise DispatchError("A part of dispatch could not be started again; its last lines say why.")
    finally:
        for task in (starting, stop_wait, failed_wait):
            task.cancel()


def run(settings: Settings, *, slots: int | None = None) -> None:
    """Run everything until SIGTERM, SIGINT or SIGHUP. Raises DispatchError when a part cannot run."""
    asyncio.run(_run(settings, slots or os.cpu_count() or 2))
