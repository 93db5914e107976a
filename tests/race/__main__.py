"""``make race``: thirty-two claimers in eight processes on one task, a thousand times."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.race.run import race
from tests.support.service import ServiceProcess


def main() -> int:
    """Run the race on a service of its own; 0 if every round had one winner."""
    parser = argparse.ArgumentParser(prog="python -m tests.race", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1_000, help="how many (default 1000)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dispatch-") as directory, ServiceProcess(Path(directory)) as service:
        outcome = race([service.url], given.rounds)
    wins = ", ".join(f"{count} by {face}" for face, count in sorted(outcome.won.items()))
    print(f"{outcome.rounds} rounds of 32 claimers in {outcome.seconds:.1f} s, one winner each: {wins}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
