"""A child process that calls a Python function with a task: the order comes on stdin, what it returns goes to stdout.

The order is JSON: ``{"function": "module:function", "task", "path"}``; ``path``
is the worker's ``sys.path``. What the function prints goes to stderr, so that
nothing but its result is the response: text as it is, anything else as JSON,
None as nothing. An exception ends with exit code 1 and its traceback on
stderr; SystemExit is an exit like any other, 75 means "not now". So does a
module that is not on this host: another one may have it. The standard library
only; it is run as a file.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_EXIT_TEMPFAIL = 75


class _UnusableError(Exception):
    """The sentence says all; ``exit_code`` is what the attempt ends with."""

    def __init__(self, sentence: str, exit_code: int = 1) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


def _function(name: str) -> Callable[[Any], Any]:
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{module_name}.".startswith(f"{exc.name}."):
            raise
        raise _UnusableError(f"There is no module {exc.name} on this host.", _EXIT_TEMPFAIL) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise _UnusableError(f"The module {module_name} has no function {function_name}.")
    return function  # type: ignore[no-any-return]


def _text(result: Any, name: str) -> str:
    if result is None:
        return ""
    if isinstance(result, str):
        return result
    try:
        return json.dumps(result, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as exc:
        kind = type(result).__name__
        raise _UnusableError(
            f"What {name} returned, of type {kind}, is no text and not to be had as JSON: {exc}."
        ) from None


def call(order: dict[str, Any]) -> str:
    """Import and call the function; return the response. Ends here in a process that the function forked."""
    pid = os.getpid()
    result = _function(order["function"])(order["task"])
    if os.getpid() != pid:
        os._exit(0)
    return _text(result, order["function"])


def _tell(exc: Exception) -> None:
    """Write the traceback without the frames that are ours."""
    found = exc.__traceback__
    while found is not None and found.tb_frame.f_code.co_filename == __file__:
        found = found.tb_next
    traceback.print_exception(type(exc), exc, found)


def main() -> int:
    """Read the order, keep stdout for the result, and run."""
    order = json.load(sys.stdin)
    sys.path[:] = order["path"]
    sys.stdout.flush()
    response_fd = os.dup(1)
    os.dup2(2, 1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What it prints is shown while it runs, and is a sign of life.
        sys.stdout.reconfigure(line_buffering=True)
    try:
        text = call(order)
    except _UnusableError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_code
    except Exception as exc:  # noqa: BLE001 - whatever the function raises is a failed attempt
        _tell(exc)
        return 1
    finally:
        sys.stdout.flush()
    with os.fdopen(response_fd, "wb") as response:
        response.write(text.encode("utf-8", "replace"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
