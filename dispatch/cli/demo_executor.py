"""The harmless executor of ``dispatch demo``: reads its prompt, does what the context asks, prints a line.

A stand-alone script on the standard library, as an operator might write one:
prompt on stdin, ``ATS_*`` in the environment, exit 0 for success.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from typing import Any


def block(prompt: str, name: str) -> str:
    """Return the text of one block of the prompt, "" when there is none."""
    found = re.search(rf"^--- begin {name} (\S+)\n(.*?)\n--- end {name} \1$", prompt, re.MULTILINE | re.DOTALL)
    return found.group(2) if found else ""


def main() -> int:
    """Run one attempt."""
    prompt = sys.stdin.read()
    title = block(prompt, "title")
    context: dict[str, Any] = json.loads(block(prompt, "context") or "{}")
    attempt = int(os.environ["ATS_ATTEMPT"])
    time.sleep(float(context.get("seconds", 0)))
    if attempt < int(context.get("fails_before_attempt", 1)):
        sys.stderr.write(f"attempt {attempt} of {title!r} fails on purpose\n")
        return 1
    if "numbers" in context:
        sys.stdout.write(f"the sum is {sum(context['numbers'])}\n")
    else:
        sys.stdout.write(f"done: {title}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
