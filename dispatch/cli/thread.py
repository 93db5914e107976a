"""A task's thread and response as people read them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import click

from dispatch.ats.model import parse_time
from dispatch.cli.output import ago, clean_line, clean_text, duration, settled_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dispatch.ats.model import Task
    from dispatch.cli.output import Output


THREAD_MAX: Final = 1_000
"""How many messages our service shows of a thread at most, the newest."""


def thread_is_cut(shown: int) -> str:
    """Return the sentence that the beginning of a thread is missing, and where to find it."""
    return (
        f"Only the newest {shown:,} messages of this thread are shown; all that an attempt wrote is in its log on the "
        "host that ran it, in logs/ of the data directory."
    )


def text_of(parts: Any) -> str:
    """Return the parts of a message or an output as text; what is no text is shown as JSON."""
    if not isinstance(parts, list):
        return "" if parts is None else _shown(parts)
    return "\n".join(_part(part) for part in parts)


def _part(part: Any) -> str:
    if isinstance(part, dict):
        for key in ("content", "text", "url"):
            if isinstance(part.get(key), str):
                return str(part[key])
        if "data" in part:
            return _shown(part["data"])
    return _shown(part)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)


def shown_progress(progress: tuple[int, str] | None) -> str:
    """Return how far an attempt is, for people."""
    return "" if progress is None else f"{progress[0]} % {clean_line(progress[1])}".rstrip()


def response_of(task: Task) -> str:
    """Return a task's outputs as text: responses as they are, artifacts by their parts, the rest as JSON."""
    outputs = task.outputs if isinstance(task.outputs, list) else [] if task.outputs is None else [task.outputs]
    texts = []
    for output in outputs:
        if isinstance(output, dict) and isinstance(output.get("response"), str):
            texts.append(output["response"])
        elif isinstance(output, dict) and "parts" in output:
            texts.append(text_of(output["parts"]))
        else:
            texts.append(_shown(output))
    return "\n".join(texts)


def print_response(output: Output, task: Task) -> None:
    """Print a task's response, if it has one; on a terminal a line that was written over as it was last."""
    text = response_of(task)
    if text:
        text = settled_text(text) if output.is_terminal else text
        output.text(text.rstrip("\n"))


def outcome(task: Task) -> str:
    """Return one sentence about how a task ended."""
    raw = task.raw or {}
    begun, ended = parse_time(raw.get("created_at")), parse_time(raw.get("completed_at"))
    took = f" after {duration((ended - begun).total_seconds())}" if begun and ended else ""
    reason = f": {raw['reason']}" if raw.get("reason") and task.status != "completed" else ""
    return f"Task {task.id} {task.status}{took}{reason}"


def standstill(task: Task) -> str:
    """Return why a task that has not ended says nothing at the moment, as a sentence; "" when it may."""
    if task.status == "in_review":
        return f"Task {task.id} waits for a review: 'dispatch complete {task.id}' or 'dispatch bounce {task.id} NOTE'."
    reason = (task.raw or {}).get("reason")
    return f"Task {task.id} is pending again: {reason}" if task.status == "pending" and reason else ""


def print_messages(output: Output, messages: Iterable[Mapping[str, Any]]) -> None:
    """Print messages: who and how long ago, then the text, on a terminal; time, name and text elsewhere.

    What a running attempt writes is printed line by line, a line that it wrote over as it was last.
    """
    for message in messages:
        who = clean_line(message.get("actor_name") or message.get("actor_type") or "somebody")
        clean = settled_text if message.get("kind") == "log" else clean_text
        text = clean(text_of(message.get("parts")))
        at = parse_time(message.get("created_at"))
        if not output.is_terminal:
            at_once = text.rstrip("\n").split("\n") if message.get("kind") == "log" else [text]
            for line in at_once:
                click.echo(f"{clean_line(message.get('created_at'))}\t{who}\t{clean_line(line)}")
            continue
        from rich.text import Text

        lines = text.rstrip("\n").split("\n")
        if message.get("kind") == "log":
            for line in lines:
                output.console.print(Text(f"  | {line}", "dim"), soft_wrap=True)
            continue
        head = Text.assemble((who, "bold cyan"), (f"  {ago(at)}" if at else "", "dim"))
        output.console.print(head)
        for line in lines:
            output.console.print(Text(f"  {line}"), soft_wrap=True)
