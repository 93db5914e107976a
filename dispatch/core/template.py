"""The argv of a command with values of the task in it. Pure.

Each placeholder becomes part of one argument, whatever the value holds: there
is no shell and nothing is split. A value that would turn an argument into an
option is refused, because whoever created the task would then choose options
of the operator's program.
"""

from __future__ import annotations

import difflib
import re
import shlex
from typing import TYPE_CHECKING, Any, Final

from dispatch.core.prompt import INTERNAL_FIELDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PLACEHOLDER: Final = re.compile(r"\{(id|channel|type|attempt|payload\.([A-Za-z0-9_-]{1,64}))\}", re.ASCII)
_VALUE_CHARS_MAX: Final = 65_536
_BRACES: Final = re.compile(r"\{([A-Za-z][\w.-]{0,64})\}", re.ASCII)
_NAMES: Final = ("id", "channel", "type", "attempt", "title", "description", "priority", "prompt", "uuid")
_SHELLS: Final = frozenset({"sh", "ash", "bash", "busybox", "dash", "ksh", "zsh", "ssh"})
_SHELL_SIGNS: Final = frozenset({"&&", "||", "|", "&", ">", ">>", "<", "2>", "2>&1"})
_VARIABLE: Final = re.compile(r"\$\{?[A-Za-z_]\w*\}?", re.ASCII)


class TemplateError(ValueError):
    """The task cannot be put into the argv; the sentence says why, and quotes nothing of the task."""


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
    return tuple(argv)


def doubts(argv: Sequence[str]) -> list[str]:
    """Return sentences about arguments that probably do not mean what their author meant."""
    found = []
    if argv[0].rpartition("/")[2] not in _SHELLS:
        signs = [part for part in argv[1:] if part in _SHELL_SIGNS or _VARIABLE.fullmatch(part)]
        if signs:
            found.append(f"{signs[0]} is an argument like any other: there is no shell; write sh -c '...' to have one.")
    for part in argv[1:]:
        for match in _BRACES.finditer(_PLACEHOLDER.sub("", part)):
            name = match[1].lower()
            if name.startswith("payload") or difflib.get_close_matches(name, _NAMES, n=1, cutoff=0.8):
                found.append(
                    f"{match[0]} is no value of a task and stays as it is; there are {{id}}, {{channel}}, {{type}},"
                    " {attempt} and {payload.NAME}. Title and description come on stdin only."
                )
    return found


def payload_fields(argv: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the payload fields that an argv asks for, each once."""
    found = (match[2] for part in argv for match in _PLACEHOLDER.finditer(part) if match[2])
    return tuple(dict.fromkeys(found))


def names_program(argv: Sequence[str]) -> bool:
    """Say whether the program itself is a fixed one, and not the task's to choose."""
    return bool(argv) and not _PLACEHOLDER.search(argv[0])


def fill(argv: Sequence[str], facts: Mapping[str, Any], payload: Any) -> tuple[str, ...]:
    """Return the argv with the task's values in the places of their names.

    ``facts`` holds id, channel, type and attempt. Braces that are no
    placeholder stay as they are. Raises TemplateError.
    """
    if not names_program(argv):
        raise TemplateError("The executor's program may not come from the task; write its name into the settings.")
    filled = [argv[0]]
    options_end = False
    for part in argv[1:]:
        whole = _PLACEHOLDER.sub(lambda match: _value(match, facts, payload), part)
        if not options_end and whole != part and whole.startswith("-") and not part.startswith("-"):
            _check_number(whole)
        options_end = options_end or part == "--"
        filled.append(whole)
    return tuple(filled)


def _value(match: re.Match[str], facts: Mapping[str, Any], payload: Any) -> str:
    name, field = match[1], match[2]
    if not field:
        return _text(name, facts[name])
    if not isinstance(payload, dict) or field not in payload or field in INTERNAL_FIELDS:
        raise TemplateError(f"The executor needs the payload field {field}, which this task does not have.")
    return _text(f"the payload field {field}", payload[field])


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        raise TemplateError(f"The executor needs {name} as text, a number, true or false.")
    text = str(value)
    if "\0" in text or len(text) > _VALUE_CHARS_MAX or any("\ud800" <= char <= "\udfff" for char in text):
        raise TemplateError(f"What stands in {name} cannot be an argument of a program.")
    return text


def _check_number(argument: str) -> None:
    if not re.fullmatch(r"-\d+(\.\d+)?", argument, re.ASCII):
        raise TemplateError("A value that begins with '-' would be an option of the executor's program.")
