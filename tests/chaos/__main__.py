"""``make chaos SEED=7``: kill everything at seeded moments, and check the history."""

from __future__ import annotations

import argparse
import sys

from tests.chaos import hosts
from tests.chaos.plan import make_graph_plan, make_plan
from tests.chaos.run import run


def main() -> int:
    """Run one seed, or several in a row; 0 only if all were valid."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the first run (default 1)")
    parser.add_argument("--runs", type=int, default=1, help="how many seeds in a row (default 1)")
    parser.add_argument("--tasks", type=int, default=300, help="tasks of a run (default 300)")
    parser.add_argument("--faults", type=int, default=12, help="kills of a run (default 12)")
    parser.add_argument("--graph", action="store_true", help="tasks that depend on each other")
    parser.add_argument("--hosts", action="store_true", help="lose whole hosts instead: cut off, killed, frozen (root)")
    given = parser.parse_args()
    if given.hosts:
        return _lose_hosts(range(given.seed, given.seed + given.runs), given.tasks)
    make = make_graph_plan if given.graph else make_plan
    wrong = []
    for seed in range(given.seed, given.seed + given.runs):
        plan = make(seed, given.tasks, given.faults)
        print(plan.text(), flush=True)
        outcome = run(plan)
        print(outcome.text(), flush=True)
        if not outcome.report.ok:
            wrong.append(seed)
    if given.runs > 1:
        print(f"{given.runs} seeds: {f'INVALID: {wrong}' if wrong else 'all valid'}")
    return 1 if wrong else 0


def _lose_hosts(seeds: range, tasks: int) -> int:
    wrong = 0
    for seed in seeds:
        report = hosts.run(tasks, seed)
        sentences = report.wrong()
        print(f"seed {seed}: {report.text()}", *(f"WRONG: {sentence}" for sentence in sentences), sep="\n", flush=True)
        wrong += bool(sentences)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
