"""Fixtures for everybody: a private Redis, and a stack of real processes."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.postgres import stop_shared_server
from tests.support.redis import RedisServer
from tests.support.stack import Stack
from tests.support.standing import Standing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# By default examples are the same in every run, and no clock judges them: a test fails by what was changed, never by
# chance or by how busy the machine is. ``make explore`` lets them be new ones.
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("steady", settings.get_profile("explore"), derandomize=True, database=None)
settings.load_profile("steady")

_report = pytest.StashKey[dict[str, pytest.TestReport]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Keep the outcome, so that a fixture can show logs only for a failed test."""
    report = yield
    item.stash.setdefault(_report, {})[report.when] = report
    return report


def pytest_configure() -> None:
    """Hear Ctrl-C and a lost terminal even where the tests were started in the background, or under nohup.

    Programs under test inherit what their starter ignores.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_sessionfinish() -> None:
    """Leave no PostgreSQL behind."""
    stop_shared_server()


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A temporary directory with a path short enough for a Unix socket."""
    with tempfile.TemporaryDirectory(prefix="dispatch-") as path:
        yield Path(path)


@pytest.fixture
def redis_server(short_dir: Path) -> Iterator[RedisServer]:
    """A running private Redis on a Unix socket."""
    with RedisServer(short_dir / "redis") as server:
        yield server


@pytest.fixture
def make_stack(request: pytest.FixtureRequest) -> Iterator[Callable[..., Stack]]:
    """Make stacks that are not started yet; each is stopped and checked for leftovers at the end."""
    made: list[Stack] = []

    def make(**settings: str) -> Stack:
        made.append(Stack(settings))
        return made[-1]

    yield make
    call = request.node.stash.get(_report, {}).get("call")
    try:
        for stack in made:
            if call is None or call.failed:
                print(stack.report())
                stack.abort()
            else:
                stack.close()
    finally:
        for stack in made:
            stack.abort()


@pytest.fixture(scope="module")
def standing(request: pytest.FixtureRequest) -> Iterator[Standing]:
    """The fleet of a file, with the settings that the file names in STANDING, if any."""
    made = Standing(getattr(request.module, "STANDING", {}))
    yield made
    made.close()


@pytest.fixture
def fleet(request: pytest.FixtureRequest, standing: Standing) -> Iterator[Callable[..., Stack]]:
    """Give the file's fleet, running and idle, with as many slots as asked for; a test may kill all of it."""
    yield standing.take
    call = request.node.stash.get(_report, {}).get("call")
    if call is None or call.failed:
        standing.discard()
    else:
        standing.give_back()
