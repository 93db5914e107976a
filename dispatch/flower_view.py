"""What ``config/flowerconfig.py`` needs of dispatch: who may see Flower, and how an attempt is called there.

A message in Redis names an attempt and nothing else, so Flower, which sees only
messages, cannot know a title. It asks the task service for it here, with a key
that may only read, when somebody looks at a page: no title ever enters Redis,
and what is sealed stays untitled.
"""

from __future__ import annotations

import ast
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dispatch.ats import protocol
from dispatch.ats.client import Client
from dispatch.ats.model import Actor, parse_task
from dispatch.core.retry import FAILURES, EndReason
from dispatch.errors import ConfigurationError, GatewayError, GatewayUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dispatch.settings import Flower, Settings

SEALED: Final = "(sealed)"
_ACTOR: Final = Actor("system", "dispatch-flower", "dispatch flower")
_KEPT_MAX: Final = 10_000
_KEPT_S: Final = 60.0
_ANSWER_S: Final = 0.5
"""How long a page may wait for one title: Flower does nothing else meanwhile."""
_SLOW_S: Final = 0.25
_PAUSE_S: Final = 5.0
_TITLE_CHARS_MAX: Final = 120


def login(flower: Flower) -> list[str]:
    """Return the logins as Flower takes them: ``user:password``; none if it shall be open.

    Raises ConfigurationError when there is none and nobody asked for that, or when one is no login.
    """
    if flower.auth is None:
        if flower.open:
            return []
        raise ConfigurationError(
            "Flower starts only with a login: set DISPATCH_FLOWER_AUTH_FILE to a file that holds user:password,"
            " or DISPATCH_FLOWER_OPEN=true where nobody reaches it whom you do not trust."
        )
    logins = [one.strip() for one in flower.auth.reveal().split(",") if one.strip()]
    if not logins or any(not all(one.partition(":")[::2]) for one in logins):
        raise ConfigurationError("DISPATCH_FLOWER_AUTH must be user:password, or several of them, comma-separated.")
    return logins


@dataclass(frozen=True, slots=True)
class Seen:
    """An attempt as its Celery message names it."""

    task_id: str
    token: str
    attempt: str
    actor_id: str


def attempt_in(uuid: str, args: Any) -> Seen | None:
    """Read a message's id (``task.token``) and the text of its arguments; None when it is no attempt of ours."""
    task_id, dot, token = uuid.rpartition(".")
    if not (task_id and dot and token.isdigit()):
        return None
    try:
        named = ast.literal_eval(args) if isinstance(args, str) else args
        _, attempt, _, actor_id = named
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        attempt, actor_id = "?", "?"
    return Seen(task_id, token, str(attempt), str(actor_id))


class Titles:
    """Looks titles up in the task service and keeps them for a minute.

    ``ask`` returns a task's title, or raises GatewayError. When the service is
    away or slow nothing is asked for some seconds, so that the pages stay quick.
    """

    def __init__(self, ask: Callable[[str], str], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._kept: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._quiet_until = float("-inf")

    def of(self, task_id: str) -> str:
        """Return a task's title, "" when it is not known (yet)."""
        now = self._clock()
        at, title = self._kept.get(task_id, (float("-inf"), ""))
        if now - at < _KEPT_S or now < self._quiet_until:
            return title
        try:
            title = self._ask(task_id)
        except GatewayUnavailableError:
            self._quiet_until = self._clock() + _PAUSE_S
            return title
        except GatewayError:
            title = ""
        if self._clock() - now > _SLOW_S:
            self._quiet_until = self._clock() + _PAUSE_S
        self._kept[task_id] = (self._clock(), title)
        self._kept.move_to_end(task_id)
        if len(self._kept) > _KEPT_MAX:
            self._kept.popitem(last=False)
        return title


def service_titles(settings: Settings) -> Titles:
    """Return the titles of the task service in the settings. Nothing is sent yet."""
    client = Client(protocol.endpoint_of(settings.ats), _ACTOR)

    def ask(task_id: str) -> str:
        return title_of(client.send(protocol.get(task_id), deadline_s=_ANSWER_S))

    return Titles(ask)


def title_of(answer: Any) -> str:
    """Return the title in a task service's answer as it is shown: on one line, and not that of a sealed task."""
    task = parse_task(answer, keep_raw=False)
    if isinstance(task.payload, dict) and task.payload.get("encrypted"):
        return SEALED
    words = " ".join("".join(char if char.isprintable() else " " for char in task.title).split())
    return words if len(words) <= _TITLE_CHARS_MAX else words[: _TITLE_CHARS_MAX - 1] + "…"


def show_queues(queues: Iterable[str]) -> None:
    """Let Flower's Broker page and ``/api/queues/length`` hold these queues too.

    Flower asks workers for their queues once, when it starts, and knows no others: a queue whose workers came later, or
    are away, would not be there, and its length is what one looks for.
    """
    from flower.views import BaseHandler  # type: ignore[import-untyped]  # noqa: PLC0415 - for Flower alone

    by_workers = BaseHandler.get_active_queue_names
    wanted = tuple(queues)

    def names(handler: Any) -> list[str]:
        return sorted({*by_workers(handler), *wanted})

    BaseHandler.get_active_queue_names = names


def describe(task: Any, titles: Titles) -> Any:
    """Return Flower's copy of a task in an operator's words: ``#12 Title``, which attempt, and how it ended.

    To Celery every attempt that was brought to its end and reported is a
    success; here its state is that of the attempt.
    """
    seen = attempt_in(task.uuid, task.args)
    if seen is not None:
        task.args = f"#{seen.task_id} {titles.of(seen.task_id)}".rstrip()
        task.kwargs = f"attempt {seen.attempt}, token {seen.token}, claimed by {seen.actor_id}"
        if getattr(task, "state", "") == "SUCCESS":
            task.state, task.result = _ended(str(task.result))
    return task


def _ended(result: str) -> tuple[str, str]:
    """Return the state and the word for what the message of an attempt came to, as Celery shows it."""
    word = result.strip("'")
    if word == EndReason.SUCCESS:
        return "SUCCESS", word
    if word in FAILURES:
        return "FAILURE", word
    if word == EndReason.TEMPFAIL:
        return "RETRY", word
    return ("IGNORED", "dropped: the message was stale") if word == "None" else ("REVOKED", word)
