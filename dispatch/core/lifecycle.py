"""The one state machine: nine states, 28 legal moves, and the ATS words and verbs on top of it.

Every face (REST, MCP, WebSocket, command line) and every store asks this
module. ``MOVES`` is the Task Tools page's table of legal moves; nothing else
in the project lists moves. An ATS client sees a projection: ``ATS_WORD`` maps
states to words, ``path`` maps a verb to the states it walks through, each step
of which is a legal move.

An illegal move raises and changes nothing.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from dispatch.errors import IllegalMoveError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Status(StrEnum):
    """A state of a task, in the words of the Task Tools page."""

    BACKLOG = "backlog"
    TODO = "todo"
    IN_PROGRESS = "in_progress"
    IN_REVIEW = "in_review"
    COMPLETED = "completed"
    FAILED = "failed"
    BLOCKED = "blocked"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


MOVES: Final[Mapping[Status, frozenset[Status]]] = {
    Status.BACKLOG: frozenset({Status.TODO, Status.CANCELLED, Status.SKIPPED}),
    Status.TODO: frozenset({Status.IN_PROGRESS, Status.BLOCKED, Status.CANCELLED, Status.SKIPPED}),
    Status.IN_PROGRESS: frozenset({Status.IN_REVIEW, Status.TODO, Status.FAILED, Status.BLOCKED, Status.CANCELLED}),
    Status.IN_REVIEW: frozenset({Status.COMPLETED, Status.TODO, Status.IN_REVIEW, Status.FAILED, Status.CANCELLED}),
    Status.COMPLETED: frozenset({Status.TODO}),
    Status.FAILED: frozenset({Status.TODO, Status.BACKLOG, Status.CANCELLED}),
    Status.BLOCKED: frozenset({Status.TODO, Status.BACKLOG, Status.CANCELLED}),
    Status.CANCELLED: frozenset({Status.BACKLOG, Status.TODO}),
    Status.SKIPPED: frozenset({Status.BACKLOG, Status.TODO}),
}

FINISHED: Final = frozenset({Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.SKIPPED})
"""States in which nothing more happens unless somebody reopens the task."""

ATS_WORD: Final[Mapping[Status, str]] = {
    Status.BACKLOG: "backlog",
    Status.TODO: "pending",
    Status.IN_PROGRESS: "in_progress",
    Status.IN_REVIEW: "in_review",
    Status.COMPLETED: "completed",
    Status.FAILED: "failed",
    Status.BLOCKED: "blocked",
    Status.CANCELLED: "cancelled",
    Status.SKIPPED: "rejected",
}
"""What an ATS client calls each state."""

STATUS_OF_ATS_WORD: Final[Mapping[str, Status]] = {word: state for state, word in ATS_WORD.items()}

FINISHED_ATS_WORDS: Final = frozenset(ATS_WORD[state] for state in FINISHED)


class Verb(StrEnum):
    """What an ATS client, the fleet or the clock does to a task."""

    CLAIM = "claim"
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"
    REJECT = "reject"
    REOPEN = "reopen"
    RELEASE = "release"
    EXPIRE = "expire"


_PATHS: Final[Mapping[Verb, Mapping[Status, tuple[Status, ...]]]] = {
    Verb.CLAIM: {Status.TODO: (Status.IN_PROGRESS,)},
    Verb.COMPLETE: {
        Status.IN_PROGRESS: (Status.IN_REVIEW, Status.COMPLETED),
        Status.IN_REVIEW: (Status.COMPLETED,),
    },
    Verb.FAIL: {
        Status.IN_PROGRESS: (Status.FAILED,),
        Status.IN_REVIEW: (Status.FAILED,),
    },
    Verb.CANCEL: dict.fromkeys(
        (Status.BACKLOG, Status.TODO, Status.BLOCKED, Status.IN_PROGRESS, Status.IN_REVIEW), (Status.CANCELLED,)
    ),
    Verb.REJECT: {
        Status.BACKLOG: (Status.SKIPPED,),
        Status.TODO: (Status.SKIPPED,),
    },
    Verb.REOPEN: dict.fromkeys(FINISHED, (Status.TODO,)),
    Verb.RELEASE: {Status.IN_PROGRESS: (Status.TODO,)},
    Verb.EXPIRE: {Status.IN_PROGRESS: (Status.TODO,)},
}


def is_legal(current: Status, target: Status) -> bool:
    """Say whether the page's table allows ``current -> target``."""
    return target in MOVES[current]


def check_move(current: Status, target: Status, words: Mapping[str, str] | None = None) -> None:
    """Raise IllegalMoveError, in ``words`` if given, unless the page's table allows ``current -> target``."""
    if not is_legal(current, target):
        shown = {state.value: state.value for state in Status} if words is None else words
        raise IllegalMoveError(
            current=shown[current], target=shown[target], allowed=sorted(shown[state] for state in MOVES[current])
        )


def path(
    verb: Verb,
    current: Status,
    *,
    needs_review: bool = False,
    dependency_failed: bool = False,
    words: Mapping[str, str] | None = None,
) -> tuple[Status, ...]:
    """Return the states that ``verb`` walks a task through from ``current``, in order.

    ``needs_review`` stops a completion in ``in_review``. ``dependency_failed``
    lets ``fail`` start from ``todo`` (through ``in_progress``), which is how a
    failure cascades. ``words`` are the names of states in refusals, ATS words
    unless given. Raises IllegalMoveError, which lists the verbs that are possible,
    when the verb does not apply.
    """
    steps = _PATHS[verb].get(current)
    if verb is Verb.FAIL and current is Status.TODO and dependency_failed:
        steps = (Status.IN_PROGRESS, Status.FAILED)
    if verb is Verb.COMPLETE and current is Status.IN_PROGRESS and needs_review:
        steps = (Status.IN_REVIEW,)
    if steps is None:
        raise IllegalMoveError(
            current=(ATS_WORD if words is None else words)[current],
            target=verb.value,
            allowed=[v.value for v in Verb if current in _PATHS[v] and v is not Verb.EXPIRE],
        )
    return steps
