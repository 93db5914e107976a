"""Answering registrations and reading tasks whole, against a service that fails."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio
import structlog

from dispatch.asynchronous import cancel_all
from dispatch.ats import protocol
from dispatch.ats.aclient import AsyncClient
from dispatch.ats.model import Actor, Task
from dispatch.crypto import encoding
from dispatch.crypto.keys import KeyPair
from dispatch.ingress.errands import Looks
from dispatch.ingress.plain_claims import PlainClaims
from dispatch.ingress.registration import Registrar
from tests.support.fake_ats import FakeAts
from tests.support.processes import PATIENCE_S
from tests.support.sealing import trusting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from pathlib import Path

    from dispatch.crypto.files import KeyFiles
    from tests.support.redis import RedisServer

ME = Actor("agent", "dispatch-a", "dispatch")
REGISTRATION: dict[str, Any] = {
    "title": "register",
    "payload": {"pubkey": encoding.encode(KeyPair.make().public)},
}


@pytest.fixture
def ats() -> Iterator[FakeAts]:
    """A foreign ATS."""
    with FakeAts() as service:
        yield service


@asynccontextmanager
async def looking(ats: FakeAts, taken: list[Task]) -> AsyncIterator[tuple[AsyncClient, Looks]]:
    """Give a client, and what reads tasks into ``taken``."""
    async with AsyncClient(protocol.endpoint(ats.url), ME) as client:
        log = structlog.get_logger()
        yield client, Looks(client, take=taken.append, key_is_refused=lambda _: None, log=log)


@asynccontextmanager
async def registering(
    ats: FakeAts, redis_server: RedisServer, files: KeyFiles, log: Any
) -> AsyncIterator[tuple[PlainClaims, Registrar]]:
    """Give what answers registrations."""
    async with looking(ats, []) as (client, looks):
        broker = redis.asyncio.Redis.from_url(redis_server.url, decode_responses=True)
        claims = PlainClaims(client, broker, ME, 60.0)
        try:
            yield claims, Registrar(claims, files, read=looks.read, log=log, pause_files_s=0.2)
        finally:
            await broker.aclose()


@asynccontextmanager
async def running(*loops: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run loops until the end of the block."""
    tasks = [asyncio.create_task(loop) for loop in loops]
    try:
        yield
    finally:
        await cancel_all(tasks)


async def becomes(is_so: Callable[[], bool]) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110 - what it waits for happens in another thread
            await asyncio.sleep(0.005)


class LogLines:
    """Keeps the events that are logged."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, **_: self.events.append(f"{level}:{event}")


async def test_unusable_key_files_give_the_task_back(ats: FakeAts, redis_server: RedisServer, tmp_path: Path):
    """Each try claims once, says so for the operator, gives back, and rests; once mended, the task is answered."""
    files, _ = trusting(tmp_path / "keys")
    broken = tmp_path / "keys" / "pending.json"
    broken.write_text("{")
    broken.chmod(0o600)
    ident = ats.add(**REGISTRATION)["id"]
    log = LogLines()

    def tries() -> int:
        return sum(method == "PATCH" for method, _, _, _ in ats.calls)

    async with registering(ats, redis_server, files, log) as (claims, registrar):
        began = asyncio.get_running_loop().time()
        async with running(registrar.run()):

            def told(is_so: bool) -> bool:
                registrar.add(str(ident))  # as news of the release does
                return is_so

            await becomes(lambda: told(tries() >= 3))
            assert asyncio.get_running_loop().time() - began > 2 * 0.2, "it did not rest in between"
            await becomes(lambda: ats.tasks[ident]["status"] == "pending" and not claims.in_hand)
            assert set(log.events) == {"error:registration_not_possible"}
            broken.unlink()
            await becomes(lambda: told(ats.tasks[ident]["status"] == "completed"))
    assert ats.tasks[ident]["outputs"][0]["status"] == "pending_approval"


async def test_a_mistake_in_one_registration_ends_nothing(
    ats: FakeAts, redis_server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whatever goes wrong with one, it fails with a sentence, and the next one is answered."""
    files, _ = trusting(tmp_path / "keys")
    idents = [ats.add(**REGISTRATION)["id"] for _ in range(2)]
    asked = files.ask

    def ask(public: bytes, *, task_id: str, now_s: float) -> Any:
        if task_id == str(idents[0]):
            raise ZeroDivisionError
        return asked(public, task_id=task_id, now_s=now_s)

    monkeypatch.setattr(files, "ask", ask)
    log = LogLines()
    async with registering(ats, redis_server, files, log) as (_, registrar):
        for ident in idents:
            registrar.add(str(ident))
        async with running(registrar.run()):
            await becomes(lambda: ats.tasks[idents[1]]["status"] == "completed")
    assert ats.tasks[idents[0]]["status"] == "failed"
    assert "operator" in ats.tasks[idents[0]]["reason"]
    assert "error:registration_broken" in log.events


async def test_what_changed_before_the_claim_is_given_back(ats: FakeAts, redis_server: RedisServer, tmp_path: Path):
    """A task that is no registration any more is not ended, and a service that is away for a moment is asked again."""
    files, _ = trusting(tmp_path / "keys")
    changed, other = ats.add(title="register", payload={})["id"], ats.add(**REGISTRATION)["id"]
    ats.fault("hang_up", "claim", times=3)
    async with registering(ats, redis_server, files, structlog.get_logger()) as (_, registrar):
        registrar.add(str(changed))
        registrar.add(str(other))
        async with running(registrar.run()):
            await becomes(lambda: ats.tasks[other]["status"] == "completed")
            await becomes(lambda: ("PATCH", f"/tasks/{changed}") in [call[:2] for call in ats.calls])
    assert ats.tasks[changed]["status"] == "pending"


async def test_looks_read_each_task_once_and_go_on(ats: FakeAts):
    """Asked ten times, a task is read once; unknown tasks, and a service that is away for a moment, end nothing."""
    idents = [str(ats.add()["id"]) for _ in range(20)]
    taken: list[Task] = []
    ats.fault("answer", f"GET /tasks/{idents[3]}")
    async with looking(ats, taken) as (_, looks):
        for ident in ("99999", *idents * 10):
            looks.add(ident)
        async with running(looks.run()):
            await becomes(lambda: len(taken) == len(idents))
            looks.add(idents[0])
            await becomes(lambda: len(taken) == len(idents) + 1)
    assert sorted(task.id for task in taken) == sorted([*idents, idents[0]])
