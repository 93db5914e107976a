"""Many processes claim one task at the same moment, through both faces."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.race.run import race
from tests.support.service import ServiceProcess

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = 100
SECONDS_MAX = 12.0
ROUNDS_MIN = 12
"""A busy machine runs fewer rounds, but never so few that nothing is tested."""


def test_one_winner_of_thirty_two(tmp_path: Path) -> None:
    """Each round one claimer wins, the token grows by one, and the 31 others are told who it is."""
    with ServiceProcess(tmp_path) as service:
        outcome = race([service.url], ROUNDS, SECONDS_MAX)
        assert outcome.rounds >= ROUNDS_MIN
        assert set(outcome.won) == {"tools", "ats"}
        assert [event["event"] for event in service.process.events] == ["service_ready"]
