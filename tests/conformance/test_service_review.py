"""Handing in for review, sending back, and what the next attempt is told, on every store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from dispatch.ats.model import Actor
from dispatch.errors import UnexpectedStatusError
from dispatch.service import leases, messages, moves, review, tasks, wire
from dispatch.service.rows import Ref, fetch

if TYPE_CHECKING:
    from dispatch.service.store import Store
    from tests.support.service import SteppingClock

ANN = Actor("agent", "ann", "Ann")
EVE = Actor("human", "eve", "Eve")
RESULT = [{"response": "first"}]


class Desk:
    """A store, and a task that Ann works on."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def begun(self, payload: str | None = None) -> int:
        """Return a task whose second attempt runs."""
        row = await self.store.write(
            lambda tx: tasks.create(tx, None, EVE, tasks.NewTask(title="a task", payload=payload))
        )
        await self.begin(row.id)
        await self.store.write(lambda tx: leases.release(tx, Ref(row.id), ANN, token=1, counted=True))
        await self.begin(row.id)
        return int(row.id)

    async def begin(self, ident: int) -> Any:
        """Claim and start."""

        def work(tx: Any) -> Any:
            token = leases.claim(tx, Ref(ident), ANN, lease_ms=60_000).task.fencing_token
            return leases.start(
                tx, Ref(ident), ANN, token=token, runner=f"r{token}", message="Agent processing started"
            )

        return (await self.store.write(work)).task

    async def hand_in(self, ident: int, *, asked: bool) -> Any:
        """Complete as the attempt that runs."""
        token = (await self.row(ident)).fencing_token
        return await self.store.write(
            lambda tx: moves.complete(tx, Ref(ident), ANN, outputs=RESULT, token=token, review=asked)
        )

    async def bounce(self, ident: int, note: str = "better", actor: Actor = EVE) -> Any:
        """Send it back."""
        return await self.store.write(lambda tx: review.bounce(tx, Ref(ident), actor, note=note, default_lease_ms=1))

    async def row(self, ident: int) -> Any:
        """Return the task."""
        return await self.store.read(lambda tx: fetch(tx, Ref(ident)))


@pytest.fixture
def desk(shared_store: tuple[Store, SteppingClock]) -> Desk:
    """The store."""
    return Desk(shared_store[0])


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    ("payload", "asked", "status"),
    [
        (None, False, "completed"),
        (None, True, "in_review"),
        ('{"review":true}', False, "in_review"),
        ('{"review":1}', False, "completed"),
        ('{"a":{"review":true}}', False, "completed"),
    ],
)
async def test_who_asks_for_review_gets_it(desk: Desk, payload: str | None, status: str, *, asked: bool) -> None:
    """The worker with its report, or the task's payload at its top; a repeated report is answered alike."""
    ident = await desk.begun(payload)
    for _ in range(2):
        assert (await desk.hand_in(ident, asked=asked)).status == status


async def test_sent_back_it_begins_afresh_with_the_note(desk: Desk) -> None:
    """Counters at 0, the result kept; the next attempt is told the newest note, those before it, what people said."""
    ident = await desk.begun()
    await desk.hand_in(ident, asked=True)
    await desk.bounce(ident, "first note")
    row = await desk.row(ident)
    assert (row.status, row.attempts, row.held, row.outputs) == ("todo", 0, False, wire.dumps(RESULT))
    await desk.begin(ident)
    await desk.store.write(lambda tx: messages.append_text(tx, row, EVE, "said by Eve"))
    await desk.store.write(
        lambda tx: messages.append(tx, row, EVE, [{"type": "text", "content": "a line"}], kind="log")
    )
    await desk.hand_in(ident, asked=True)
    await desk.bounce(ident, "second note")
    told = await desk.store.read(lambda tx: review.of_task(tx, ident))
    assert told["note"] == "second note"
    assert [(one["from"], one["text"]) for one in told["messages"]] == [("Eve", "first note"), ("Eve", "said by Eve")]


async def test_what_the_next_attempt_is_told_is_bounded(desk: Desk) -> None:
    """However much is said, the newest of it fits into 32 KiB."""
    ident = await desk.begun()
    await desk.hand_in(ident, asked=True)
    row = await desk.row(ident)
    for number in range(6):
        await desk.store.write(lambda tx, n=number: messages.append_text(tx, row, EVE, f"{n}" + "\U0001f600" * 1_900))
    await desk.bounce(ident, "\u00fc" * 8_000)
    told = await desk.store.read(lambda tx: review.of_task(tx, ident))
    assert len(wire.dumps(told).encode()) < 32_768
    assert [one["text"][0] for one in told["messages"]] == ["5"]


async def test_only_what_is_in_review_can_be_sent_back(desk: Desk) -> None:
    """Running, pending and ended tasks are not, and nothing is said on their thread."""
    ident = await desk.begun()
    with pytest.raises(UnexpectedStatusError, match="not in in_review"):
        await desk.bounce(ident)
    await desk.hand_in(ident, asked=False)
    with pytest.raises(UnexpectedStatusError):
        await desk.bounce(ident)
    assert (await desk.store.read(lambda tx: review.of_task(tx, ident)))["note"] == ""
