"""What an operator writes about a command: its argv, what its child sees, and what probably is a mistake. Pure."""

from __future__ import annotations

import difflib
import re
import shlex
from typing import TYPE_CHECKING, Any, Final

from dispatch.core.template import PLACEHOLDER, SHELLS, code_of_a_task

if TYPE_CHECKING:
    from collections.abc import Sequence

_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_BRACES: Final = re.compile(r"\{([A-Za-z][\w.-]{0,64})\}", re.ASCII)
_NAMES: Final = ("id", "channel", "type", "attempt", "title", "description", "priority", "prompt", "uuid")
_SHELL_SIGNS: Final = frozenset({"&&", "||", "|", "&", ">", ">>", "<", "2>", "2>&1"})
_VARIABLE: Final = re.compile(r"\$\{?[A-Za-z_]\w*\}?", re.ASCII)


def argv_of(value: Any) -> tuple[str, ...]:
    """Return the command line that an operator wrote, as text or as a list; each argument stays as it is.

    Raises ValueError with the end of a sentence that begins with the setting's name.
    """
    try:
        argv = shlex.split(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError("must have a second quotation mark for each first one") from None
    if not isinstance(argv, list | tuple) or not argv or not argv[0]:
        raise ValueError("must name a command, as text or as a list of texts")
    if not all(isinstance(one, str) and "\0" not in one for one in argv):
        raise ValueError("must be text or a list of texts, without NUL")
    if value_of_a_task := code_of_a_task(argv):
        raise ValueError(
            f"must not have {value_of_a_task} in what a shell or an interpreter runs as code, or whoever creates a task"
            f" chooses what runs here; let the code take it as an argument: sh -c 'convert \"$1\"' sh {value_of_a_task}"
        )
    return tuple(argv)


def doubts(argv: Sequence[str]) -> list[str]:
    """Return sentences about arguments that probably do not mean what their author meant."""
    found = []
    if argv[0].rpartition("/")[2] not in SHELLS | {"ssh"}:
        signs = [part for part in argv[1:] if part in _SHELL_SIGNS or _VARIABLE.fullmatch(part)]
        if signs:
            found.append(f"{signs[0]} is an argument like any other: there is no shell; write sh -c '...' to have one.")
    for part in argv[1:]:
        for match in _BRACES.finditer(PLACEHOLDER.sub("", part)):
            name = match[1].lower()
            if name.startswith("payload") or difflib.get_close_matches(name, _NAMES, n=1, cutoff=0.8):
                found.append(
                    f"{match[0]} is no value of a task and stays as it is; there are {{id}}, {{channel}}, {{type}},"
                    " {attempt} and {payload.NAME}. Title and description come on stdin only."
                )
    return found


def is_environment_name(name: Any) -> bool:
    """Say whether this can be the name of an environment variable."""
    return isinstance(name, str) and _ENV_NAME.fullmatch(name) is not None


def environment_names(value: Any) -> tuple[str, ...]:
    """Return the names of variables that a child shall see, each once. Raises ValueError as ``argv_of`` does."""
    if not isinstance(value, list | tuple) or not all(is_environment_name(one) for one in value):
        raise ValueError("must be names of environment variables, without values")
    if any(one.startswith("DISPATCH_") for one in value):
        raise ValueError(
            "must not hold names that begin with DISPATCH_; no child sees those, because they may be secrets"
        )
    return tuple(dict.fromkeys(value))
