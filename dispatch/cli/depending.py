"""``dispatch create --depends-on``: by the field where the service has one, through the payload elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dispatch.ats import answers, protocol
from dispatch.ats.model import parse_task
from dispatch.cli.deps import EXTENSION
from dispatch.core.dependencies import DEPENDENCIES_MAX, ident_of, named_in
from dispatch.errors import GatewayRejectedError, UnknownTaskError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatch.cli.options import State


def with_dependencies(state: State, fields: dict[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """Return the fields of the task to create, with what it depends on.

    Our service checks the ids itself. For another one they are looked up here.
    Raises UsageError, GatewayRejectedError.
    """
    names = read_names(given)
    said = named_in(fields["payload"])
    if said is not None and set(said) != set(names):
        raise UsageError("--depends-on and the payload's depends_on name different tasks; give one of them.")
    if EXTENSION in answers.extensions_of(state.client.send(protocol.health())):
        return {**fields, "depends_on": list(names)}
    payload = {} if fields["payload"] is None else fields["payload"]
    if not isinstance(payload, dict):
        raise UsageError("This task service takes dependencies in the payload only, which must be an object then.")
    return {**fields, "payload": {**payload, "depends_on": [_existing(state, str(name)) for name in names]}}


def read_names(given: Sequence[str]) -> tuple[int | str, ...]:
    """Return the ids that --depends-on names, without repetition. Raises UsageError."""
    words = [word.strip() for item in given for word in item.split(",")]
    if "" in words:
        # Of a script, most likely, in which a create before this one failed: without it the task would run at once.
        shown = ",".join(given)
        raise UsageError(f"--depends-on {shown!r} leaves an id empty; is a variable not set? Nothing was created.")
    found = []
    for word in words:
        ident = ident_of(word)
        if ident is None:
            raise UsageError(f"--depends-on names {word!r}, which is neither a task's number nor a UUID.")
        found.append(ident)
    if len(found) > DEPENDENCIES_MAX:
        raise UsageError(f"--depends-on names {len(found)} tasks; a task depends on at most {DEPENDENCIES_MAX}.")
    return tuple(dict.fromkeys(found))


def _existing(state: State, name: str) -> int | str:
    try:
        task = parse_task(state.client.send(protocol.get(name)))
    except UnknownTaskError as exc:
        raise GatewayRejectedError(f"There is no task {name} to depend on; nothing was created.", status=404) from exc
    return ident_of(task.id) or task.id
