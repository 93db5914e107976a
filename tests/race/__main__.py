"""``make race``: thirty-two claimers in eight processes on one task, a thousand times on each database."""

from __future__ import annotations

import argparse
import sys

from tests.race.run import race, services
from tests.support.service import STORES


def main() -> int:
    """Run the races on services of their own; 0 if every round had one winner."""
    parser = argparse.ArgumentParser(prog="python -m tests.race", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1_000, help="how many (default 1000)")
    parser.add_argument("--database", choices=sorted(STORES), action="append", help="only on this one")
    given = parser.parse_args()
    for engine in given.database or sorted(STORES, reverse=True):
        with services(engine) as running:
            outcome = race([service.url for service in running], given.rounds)
        wins = ", ".join(f"{count} by {face}" for face, count in sorted(outcome.won.items()))
        print(f"{engine}: {outcome.rounds} rounds of 32 claimers in {outcome.seconds:.1f} s, one winner each: {wins}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
