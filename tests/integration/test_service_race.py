"""Many processes claim one task at the same moment, through both faces and several services."""

from __future__ import annotations

import pytest

from tests.race.run import race, services
from tests.support.service import FAST_STORES

ROUNDS = 100
SECONDS_MAX = 3.0
ROUNDS_MIN = 6
"""A busy machine runs fewer rounds, but never so few that not every kind of round was there twice."""


@pytest.mark.parametrize("engine", FAST_STORES)
def test_one_winner_of_thirty_two(engine: str) -> None:
    """Each round one claimer wins, the token grows by one, and the 31 others are told who it is."""
    with services(engine) as running:
        outcome = race([service.url for service in running], ROUNDS, SECONDS_MAX)
        assert outcome.rounds >= ROUNDS_MIN
        assert set(outcome.won) == {"tools", "ats"}
        for service in running:
            assert [event["event"] for event in service.process.events] == ["service_ready"]
