"""``make watch SECONDS=600``: watch an agent from another host while ingress, Redis and service are restarted."""

from __future__ import annotations

import argparse
import sys

from tests.watch.run import run


def main() -> int:
    """Watch once; 0 if everything came, once, in order and in time."""
    parser = argparse.ArgumentParser(prog="python -m tests.watch", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long the child prints (default 600)")
    report = run(parser.parse_args().seconds)
    print(report.text(), *(f"WRONG: {sentence}" for sentence in report.wrong()), sep="\n")
    return 1 if report.wrong() else 0


if __name__ == "__main__":
    sys.exit(main())
