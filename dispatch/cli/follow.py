"""Commands that stay and look: watch, logs -f; and waiting for a task's end."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from dispatch.asynchronous import cancel_all
from dispatch.ats import answers, protocol
from dispatch.ats.aclient import AsyncClient
from dispatch.ats.feed import Connected, Disconnected, Feed
from dispatch.ats.model import Event, Task, parse_task
from dispatch.cli.options import State, TaskId, common_options
from dispatch.cli.output import clean_line
from dispatch.cli.thread import (
    THREAD_MAX,
    outcome,
    print_messages,
    print_response,
    shown_progress,
    standstill,
    thread_is_cut,
)
from dispatch.core.lifecycle import FINISHED_ATS_WORDS
from dispatch.errors import GatewayUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

T = TypeVar("T")

LOOK_S: Final = 5.0
"""How often a followed task is looked at even if no event comes: events may be lost."""
_NEWEST: Final = 50
"""How many messages of a thread are asked for while it is followed; all of them when that leaves a gap."""


@click.command()
@click.option("--event", "-e", "verbs", multiple=True, metavar="VERB", help="Only these: created, claimed, ...")
@click.option("--type", "type_", metavar="NAME", help="Only tasks of this type.")
@click.option("--task", "task_id", type=TaskId(), help="Only this task.")
@common_options
@click.pass_obj
def watch(state: State, verbs: Sequence[str], type_: str | None, task_id: str | None) -> None:
    """Show what happens to tasks, as it happens.

    On all channels, unless --channel names some. Ctrl-C ends it. Of what running
    tasks write only their progress is shown; 'dispatch logs -f ID' shows it all.

    \b
    Examples:
      dispatch watch
      dispatch watch --channel images --event failed --event completed
      dispatch watch --json | jq .type
    """  # noqa: D301 - click's mark
    wanted = {word.strip().removeprefix("task.") for item in verbs for word in item.split(",")}
    # What needs a key, unlike /health: the feed itself would only try again and again.
    state.client.send(protocol.list_tasks(limit=1))
    steps = _Steps()
    is_said = (lambda _: True) if state.output.is_json or "message" in wanted else steps.is_news
    asyncio.run(_watch(state, lambda event: _is_wanted(event, wanted, type_, task_id) and is_said(event)))


class _Steps:
    """Keeps what running attempts write out of what people watch, but for their progress, each step once."""

    def __init__(self) -> None:
        self._told: dict[str, Any] = {}

    def is_news(self, event: Event) -> bool:
        """Say whether an event is shown."""
        if event.message is None or event.message.get("kind") != "log":
            return True
        meta = event.message.get("meta")
        if not isinstance(meta, dict) or self._told.get(event.task_id) == meta:
            return False
        self._told[event.task_id] = meta
        return True


def _is_wanted(event: Event, verbs: set[str], type_: str | None, task_id: str | None) -> bool:
    if verbs and event.verb not in verbs:
        return False
    if task_id is not None and task_id not in (event.task_id, event.task.uuid if event.task else None):
        return False
    return type_ is None or (event.task is not None and event.task.type == type_)


async def _watch(state: State, is_wanted: Callable[[Event], bool]) -> None:
    feed = Feed(state.endpoint, state.actor, state.channels or (), whole=True)
    was_down = True
    async with contextlib.aclosing(feed.run()) as items:
        async for item in items:
            if isinstance(item, Event):
                if is_wanted(item):
                    _print_event(state, item)
            elif isinstance(item, Connected):
                state.output.note("Watching. Ctrl-C ends it." if was_down else "Watching again.")
                was_down = False
            else:
                state.output.note(f"The feed is down ({item.reason}); trying again.")


def _print_event(state: State, event: Event) -> None:
    task = event.task
    if state.output.is_json:
        state.output.json_line(
            {
                "type": f"task.{event.verb}",
                "task_id": event.task_id,
                "channel": event.channel,
                "seq": event.seq,
                "actor_id": event.actor_id,
                "actor_name": event.actor_name,
                "task": task.raw if task else None,
                **({} if event.message is None else {"message": event.message}),
            }
        )
        return
    title, by = (task.title if task else ""), event.actor_name or event.actor_id or ""
    progress = answers.progress_of([event.message], task) if task is not None and event.message else None
    if progress is not None:
        title = f"{title}  [{shown_progress(progress)}]"
    now = datetime.now().astimezone()
    if not state.output.is_terminal:
        cells = (now.isoformat(timespec="seconds"), event.task_id, event.verb, event.channel, by, title)
        click.echo("\t".join(clean_line(cell) for cell in cells))
        return
    from rich.text import Text

    from dispatch.cli.output import STYLES

    style = STYLES.get(event.verb, STYLES.get(task.status if task else "", ""))
    state.output.console.print(
        Text.assemble(
            (f"{now:%H:%M:%S}  ", "dim"),
            f"#{clean_line(event.task_id)} ",
            (f"{clean_line(event.verb):<13}", style),
            (f" {clean_line(event.channel)}  ", "dim"),
            clean_line(title),
            (f"  by {clean_line(by)}" if by else "", "dim"),
        ),
        soft_wrap=True,
    )


@click.command()
@click.argument("task_id", metavar="ID", type=TaskId())
@click.option("--follow", "-f", is_flag=True, help="Stay until the task has ended.")
@common_options
@click.pass_obj
def logs(state: State, task_id: str, follow: bool) -> None:  # noqa: FBT001 - click's signature
    """Show a task's thread and response.

    With --json: one message a line, and at the end the task.

    \b
    Examples:
      dispatch logs 7
      dispatch logs 7 --follow
    """  # noqa: D301 - click's mark
    printer = _ThreadPrinter(state)
    if follow:
        task = asyncio.run(_follow(state, task_id, printer.print_new))
    else:
        task = parse_task(state.client.send(protocol.get(task_id)))
        printer.print(answers.messages_of(state.client.send(protocol.list_messages(task_id))))
    if state.output.is_json:
        state.output.json_line(task.raw)
    else:
        if task.outputs:
            state.output.heading("Response")
        print_response(state.output, task)
        if task.status in FINISHED_ATS_WORDS and task.status != "completed":
            state.output.note(outcome(task))


class _ThreadPrinter:
    """Prints each message of a thread once."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._seen: set[Any] = set()
        self._pause: tuple[str, int | None] = ("", None)

    def print(self, messages: Sequence[dict[str, Any]]) -> None:
        """Print those messages that are new, and say so where some of before are missing."""
        if len(messages) >= THREAD_MAX and str(messages[0].get("id")) not in self._seen:
            self._state.output.note(thread_is_cut(len(messages)))
        for place, message in enumerate(messages):
            mark = str(message.get("id", f"at {place}"))
            if mark in self._seen:
                continue
            self._seen.add(mark)
            if self._state.output.is_json:
                self._state.output.json_line(message)
            else:
                print_messages(self._state.output, [message])

    async def print_new(self, client: AsyncClient, task: Task) -> None:
        """Fetch the end of the thread, as long as it joins what is known, or all of it; print what is new.

        Say once why nothing comes, where nothing does.
        """
        newest = answers.messages_of(await client.send(protocol.list_messages(task.id, limit=_NEWEST)))
        if len(newest) >= _NEWEST and str(newest[0].get("id", "")) not in self._seen:
            newest = answers.messages_of(await client.send(protocol.list_messages(task.id)))
        self.print(newest)
        pause = (standstill(task), task.fencing_token)
        if pause[0] and pause != self._pause:
            self._state.output.note(pause[0])
        self._pause = pause


def wait_until_ended(state: State, task_id: str) -> Task:
    """Wait until a task has ended and return it. Raises what the client raises if it cannot be seen at all."""
    shown: set[str] = set()

    async def tell(_: AsyncClient, task: Task) -> None:
        if task.status not in shown and task.status not in FINISHED_ATS_WORDS:
            shown.add(task.status)
            state.output.note(f"Task {task.id} is {task.status}.")

    return asyncio.run(_follow(state, task_id, tell))


async def _follow(state: State, task_id: str, look: Callable[[AsyncClient, Task], Awaitable[None]]) -> Task:
    """Look at a task whenever something happens to it, until it has ended. A service that goes away is waited for."""
    async with AsyncClient(state.endpoint, state.actor) as client:
        task = parse_task(await client.send(protocol.get(task_id)))
        wake = asyncio.Event()
        pump = asyncio.create_task(_wake_on_events(state, task, wake))
        try:
            while True:
                await _insist(state, partial(look, client, task))
                if task.status in FINISHED_ATS_WORDS:
                    return task
                # Not wait_for: before Python 3.12 it swallows a Ctrl-C that comes together with the news.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await wake.wait()
                wake.clear()
                task = parse_task(await _insist(state, partial(client.send, protocol.get(task.id))))
        finally:
            await cancel_all([pump])


async def _insist(state: State, call: Callable[[], Awaitable[T]]) -> T:
    is_told = False
    while True:
        try:
            return await call()
        except GatewayUnavailableError as exc:
            if not is_told:
                state.output.note(f"{exc} Trying again.")
                is_told = True
            await asyncio.sleep(exc.retry_after_s or 1.0)


async def _wake_on_events(state: State, task: Task, wake: asyncio.Event) -> None:
    channels = [task.channel] if task.channel else []
    async with contextlib.aclosing(Feed(state.endpoint, state.actor, channels).run()) as items:
        async for item in items:
            if isinstance(item, Connected) or (isinstance(item, Event) and item.task_id == task.id):
                wake.set()
            elif isinstance(item, Disconnected):
                continue
