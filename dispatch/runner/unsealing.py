"""What an attempt is told: a task in the open as it stands, a sealed one as its sender wrote it.

A sealed task is opened after its start was granted, once per attempt and in
memory only. Of what stands outside the box nothing counts: title, description,
payload and dependencies come from inside. Whoever sent a task that is not
accepted reads one sentence; the operator's log says why, and never what the
task says.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, TypeVar

from dispatch.core import graph, results
from dispatch.core.earlier import Earlier, earlier_of
from dispatch.core.review import Review, bounded
from dispatch.core.sealed import RESULT_NOTE
from dispatch.crypto import encoding, keys, opening, sending
from dispatch.crypto.refusal import SENTENCE, Refusal, SealError
from dispatch.crypto.trust import Trust
from dispatch.errors import (
    AuthenticationError,
    ConfigurationError,
    DispatchError,
    GatewayRejectedError,
    GatewayUnavailableError,
    LeaseLostError,
    SealReplayedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatch.ats.gateway import AttemptRef, TaskGateway
    from dispatch.ats.model import Grant, Task
    from dispatch.crypto.opening import Opened

T = TypeVar("T")

OPEN_SENTENCE: Final = "Encryption required. Plaintext tasks are no longer accepted."
"""What somebody reads who sends a task in the open where only sealed ones are accepted; existing users know it."""
_NO_SUCH_TASK: Final = frozenset({400, 404, 410, 422})
"""How services answer to an id that no task has, or none can have."""
_NOT_TOLD: Final = "The task service did not tell what became of its dependencies."
_NAME: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}", re.ASCII)
"""What may be a task's id. Anything else in a sealed list of dependencies could be text, and is told to nobody."""


class NotAcceptedError(DispatchError):
    """The task is to be failed for good, with this sentence as the reason."""


class NotNowError(DispatchError):
    """The task is to be given back, uncounted, with this sentence as the reason, and rest for a while before."""


class TrustSource(Protocol):
    """Where the keys are: ``dispatch.crypto.files.KeyFiles``."""

    def trust(self) -> Trust:
        """Return what this host trusts now. Raises ConfigurationError."""
        ...


@dataclass(frozen=True, slots=True)
class Work:
    """What an attempt is told. ``opened`` is None for a task in the open."""

    title: str = field(repr=False)
    description: str = field(repr=False)
    payload: Any = field(repr=False)
    dependencies: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    """Results of what the task depends on (core.results), those that only its sender may read opened."""
    opened: Opened | None = None
    review: Review | None = None
    """Why it was sent back, with the result of the attempt before."""
    earlier: Earlier | None = None
    """How an attempt before this one ended, which did not finish."""

    def environment_value(self) -> str:
        """Return ``ATS_DEPENDENCIES``. Environments can be read: for a sealed task it holds ids and states only."""
        if self.opened is None:
            return results.environment_value(self.dependencies)
        return results.environment_value([{**one, "outputs": None} for one in self.dependencies])


@dataclass(frozen=True, slots=True)
class Unsealing:
    """Prepares attempts of one process.

    ``executor_of`` names the executor that a sealed task is for. ``ask`` makes a
    call to the service and repeats it for a while when no answer comes;
    ``before_reading`` is called before each of the calls that together may take
    long, and raises NotNowError when there is no time for them.
    """

    gateway: TaskGateway
    keys: TrustSource | None
    executor_of: Callable[[Task, Opened], str]
    log: Any
    ask: Callable[[Callable[[], Any]], Any]
    before_reading: Callable[[], None]

    def prepare(self, ref: AttemptRef, grant: Grant) -> Work:
        """Return what the attempt is told.

        Raises NotAcceptedError, NotNowError, and LeaseLostError when the task is no longer ours.
        """
        task = grant.task
        earlier = earlier_of(ref.attempt, task.reason, task.lease_losses)
        trust = self._trust(ref)
        created_at_s = task.created_at.timestamp() if task.created_at is not None else None
        outside = opening.Outside(task.id, task.title, task.channel, task.payload, created_at_s)
        if not opening.is_sealed(task.payload):
            try:
                opening.check_open(outside, trust)
            except SealError as exc:
                self._refuse(ref, exc.refusal, str(exc), OPEN_SENTENCE)
            review = _reviewed(grant, results.text_of(task.outputs))
            return Work(task.title, task.description, task.payload, grant.dependencies, review=review, earlier=earlier)
        opened = self._opened(ref, task, outside, trust)
        self._register(ref, opened)
        said = opened.content
        sealed = sending.sealed_in(task.outputs)
        answer = None if sealed is None else _opened_answer(sealed, task.id, opened, trust)
        review = _reviewed(grant, RESULT_NOTE if answer is None else answer)
        needed = self._dependencies(ref, opened, trust)
        return Work(said.title, said.description, said.payload, needed, opened, review, earlier)

    def _trust(self, ref: AttemptRef) -> Trust:
        try:
            return Trust() if self.keys is None else self.keys.trust()
        except ConfigurationError as exc:
            # Who may send what stands in these files: without them even a task in the open may not run.
            self.log.error("keys_unreadable", task=ref.task_id, token=ref.token, error=str(exc))  # noqa: TRY400
            raise NotNowError("The key files of this worker cannot be used; its log says why.") from None

    def _refuse(self, ref: AttemptRef, refusal: Refusal, detail: str, sentence: str = SENTENCE) -> NoReturn:
        self.log.warning(
            "sealed_task_refused",
            task=ref.task_id,
            attempt=ref.attempt,
            token=ref.token,
            refusal=refusal.value,
            detail=detail,
        )
        raise NotAcceptedError(sentence) from None

    def _opened(self, ref: AttemptRef, task: Task, outside: opening.Outside, trust: Trust) -> Opened:
        if not trust.ring.keys:
            self.log.error(
                "keys_missing",
                task=ref.task_id,
                token=ref.token,
                advice="This host cannot open sealed tasks. Run 'dispatch keygen' here if the fleet has no key yet, or"
                " copy the key directory from a host that has it; hosts without keys belong on other channels.",
            )
            raise NotNowError("This worker has no key for sealed tasks; another one may have it.")
        try:
            opened = opening.open_task(outside, trust, now_s=time.time())
            opening.check_permitted(opened.sender, self.executor_of(task, opened))
        except SealError as exc:
            self._refuse(ref, exc.refusal, str(exc))
        return opened

    def _register(self, ref: AttemptRef, opened: Opened) -> None:
        try:
            self.ask(lambda: self.gateway.seen(ref, opened.digest))
        except SealReplayedError as exc:
            first = exc.facts.get("first_id")
            self._refuse(ref, Refusal.REPLAY, f"{exc} It was task {first}." if first is not None else str(exc))
        except LeaseLostError:
            raise
        except GatewayRejectedError as exc:
            # Without the register a copy of this message could run a second time.
            self.log.error("seal_not_registered", task=ref.task_id, token=ref.token, error=str(exc))  # noqa: TRY400
            raise NotNowError("The task service keeps no register of sealed messages for this worker.") from None
        except (GatewayUnavailableError, AuthenticationError):
            raise NotNowError("The task service did not answer.") from None

    # Dependencies

    def _dependencies(self, ref: AttemptRef, opened: Opened, trust: Trust) -> tuple[dict[str, Any], ...]:
        """Return the results of what a sealed task depends on, all of it completed."""
        names = opened.content.depends_on
        statuses: dict[str, str] = {}
        found = []
        for name in names:
            one = self._read(name)
            if one is None:
                statuses[name if _NAME.fullmatch(name) else "?"] = graph.MISSING
                continue
            if one.id == ref.task_id:
                raise NotAcceptedError(graph.circle_reason([one.id, one.id]))
            statuses[one.id] = one.status
            found += _result(one, opened, trust)
        decided = graph.verdict(statuses.values())
        if decided is graph.Verdict.FAIL:
            raise NotAcceptedError(graph.blocked_reason(statuses))
        if decided is graph.Verdict.WAIT:
            raise NotNowError("It waits for tasks that it depends on.")
        return tuple(results.bounded(found))

    def _read(self, name: str) -> Task | None:
        if not _NAME.fullmatch(name):
            return None
        self.before_reading()
        try:
            one: Task = self.ask(lambda: self.gateway.read(name))
        except GatewayRejectedError as exc:
            if exc.status in _NO_SUCH_TASK:
                return None
            raise NotNowError(_NOT_TOLD) from None
        except (GatewayUnavailableError, AuthenticationError):
            raise NotNowError(_NOT_TOLD) from None
        return one


def _reviewed(grant: Grant, result: str) -> Review | None:
    if grant.review is None:
        return None
    return bounded(grant.review.note, result, grant.review.messages)


def _result(one: Task, opened: Opened, trust: Trust) -> list[dict[str, Any]]:
    """Return a dependency's result, cut to what will be shown at most; a list of one."""
    outputs = one.outputs
    sealed = sending.sealed_in(outputs)
    if sealed is not None:
        text = _opened_answer(sealed, one.id, opened, trust)
        outputs = [{"response": RESULT_NOTE if text is None else text}]
        if text is not None and sealed.get("truncated") is True:
            outputs[0]["truncated"] = True
    ident = int(one.id) if one.id.isdigit() else one.id
    return results.bounded([{"id": ident, "title": one.title, "status": one.status, "outputs": outputs}])


def _opened_answer(sealed: dict[str, Any], task_id: str, opened: Opened, trust: Trust) -> str | None:
    """Return the text of an answer of ours to the same sender, None when it is anything else."""
    try:
        nonce = encoding.decode(sealed["encrypted_response"].get("nonce"), keys.NONCE_BYTES)
    except ValueError:
        return None
    for own in trust.ring.keys:
        if not own.pair.has_marked(nonce):
            continue
        try:
            return sending.open_answer(sealed, pair=own.pair, by=opened.sender.public, task_id=task_id).text
        except SealError:
            return None
    return None
