"""The argv of a command with values of the task in it. Pure.

Each placeholder becomes part of one argument, whatever the value holds: there
is no shell and nothing is split. A value that would turn an argument into an
option is refused, because whoever created the task would then choose options
of the operator's program.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from dispatch.core.prompt import INTERNAL_FIELDS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PLACEHOLDER: Final = re.compile(r"\{(id|channel|type|attempt|payload\.([A-Za-z0-9_-]{1,64}))\}", re.ASCII)
_VALUE_CHARS_MAX: Final = 65_536
SHELLS: Final = frozenset({"ash", "bash", "busybox", "dash", "ksh", "sh", "zsh"})
_INTERPRETERS: Final = SHELLS | {"fish", "lua", "node", "perl", "php", "python", "ruby", "su"}
_CODE_FOLLOWS: Final = re.compile(r"-[A-Za-z]*[ceEr]|--command|--eval", re.ASCII)
_NUMBERS: Final = frozenset({"id", "attempt"})


class TemplateError(ValueError):
    """The task cannot be put into the argv; the sentence says why, and quotes nothing of the task."""


def payload_fields(argv: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the payload fields that an argv asks for, each once."""
    found = (match[2] for part in argv for match in PLACEHOLDER.finditer(part) if match[2])
    return tuple(dict.fromkeys(found))


def names_program(argv: Sequence[str]) -> bool:
    """Say whether the program itself is a fixed one, and not the task's to choose."""
    return bool(argv) and not PLACEHOLDER.search(argv[0])


def code_of_a_task(argv: Sequence[str]) -> str:
    """Return the placeholder whose value would be run as code, by a shell, an interpreter or over ssh; "" if none is.

    Numbers are harmless. What is handed to a script as an argument of its own is, too.
    """
    is_interpreter = is_remote = False
    for before, part in pairwise(argv):
        program = before.rpartition("/")[2].rstrip("0123456789.")
        is_interpreter = is_interpreter or program in _INTERPRETERS
        is_remote = is_remote or program == "ssh"
        is_code = is_interpreter and (_CODE_FOLLOWS.fullmatch(before) or part.startswith(("--command=", "--eval=")))
        if is_code or is_remote:
            for match in PLACEHOLDER.finditer(part):
                if match[1] not in _NUMBERS:
                    return match[0]
    return ""


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
        whole = PLACEHOLDER.sub(lambda match: _value(match, facts, payload), part)
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
