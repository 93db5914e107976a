"""A child program with secrets: it reads a prompt, takes its orders from ``payload``, and says more than it should.

Standard library only; run by path with ``-I -S``. Orders, each a list by attempt of which the last repeats::

    exits   exit codes
    says    what to print on stdout; "<prompt>" is the whole prompt
    groans  what to print on stderr
    holds   a path, or "": having said it, write one's pid there, then wait until the file is gone
"""

import json
import os
import re
import sys
import time
from pathlib import Path

WAIT_S = 30.0


def main() -> int:
    """Do what the orders say and return the exit code."""
    prompt = sys.stdin.read()
    block = re.search(r"^--- begin context (\S+)\n(.*)\n--- end context \1$", prompt, re.DOTALL | re.MULTILINE)
    orders = json.loads(block[2]) if block else {}
    attempt = int(os.environ["ATS_ATTEMPT"])

    def order(name: str, default: str) -> str:
        found = orders.get(name) or [default]
        return found[min(attempt, len(found)) - 1]

    sys.stderr.write(order("groans", ""))
    sys.stdout.write(order("says", "done").replace("<prompt>", prompt))
    sys.stdout.write("\n")
    sys.stdout.flush()
    hold = order("holds", "")
    if hold:
        partial = Path(hold + ".part")
        partial.write_text(str(os.getpid()))
        partial.rename(hold)
        until = time.monotonic() + WAIT_S
        while Path(hold).exists() and time.monotonic() < until:
            time.sleep(0.01)
    sys.stdout.write(os.environ.get("ATS_DEPENDENCIES", ""))
    return int(order("exits", "0"))


if __name__ == "__main__":
    sys.exit(main())
