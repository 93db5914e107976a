"""The tools on every store: one store for all tests of a file, one project for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.support.service import STORES, SteppingClock
from tests.support.tools import ToolBench

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from dispatch.service.store import Store


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=sorted(STORES))
async def shared_store(
    request: pytest.FixtureRequest,
) -> AsyncIterator[tuple[Store, SteppingClock]]:
    """A store of every kind, and its clock, which stands still until a test puts it forward."""
    clock = SteppingClock()
    async with STORES[request.param](clock) as store:
        yield store, clock


@pytest.fixture
def bench(shared_store: tuple[Store, SteppingClock]) -> ToolBench:
    """The tools, with a project of their own."""
    return ToolBench(*shared_store)
