"""A child process that calls a Python function with a task: the order comes on stdin, what it returns goes to stdout.

The order is JSON: ``{"function": "module:function", "task", "path"}``; ``path``
is the worker's ``sys.path``. What the function prints goes to stderr, so that
nothing but its result is the response: text as it is, anything else as JSON,
None as nothing. An exception ends with exit code 1 and its traceback on
stderr; SystemExit is an exit like any other, 75 means "not now". The standard
library only; it is run as a file.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
import traceback
from typing import Any


def call(order: dict[str, Any]) -> str:
    """Import and call the function; return the response."""
    sys.path[:] = order["path"]
    module_name, _, name = order["function"].partition(":")
    result = getattr(importlib.import_module(module_name), name)(order["task"])
    if result is None:
        return ""
    return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)


def main() -> int:
    """Read the order, keep stdout for the result, and run."""
    order = json.load(sys.stdin)
    sys.stdout.flush()
    response_fd = os.dup(1)
    os.dup2(2, 1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What it prints is shown while it runs, and is a sign of life.
        sys.stdout.reconfigure(line_buffering=True)
    try:
        text = call(order)
    except Exception as exc:  # noqa: BLE001 - whatever the function raises is a failed attempt
        # Without the frame that is ours.
        found = exc.__traceback__.tb_next if exc.__traceback__ is not None else None
        traceback.print_exception(type(exc), exc, found)
        return 1
    finally:
        sys.stdout.flush()
    with os.fdopen(response_fd, "wb") as response:
        response.write(text.encode("utf-8", "replace"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
