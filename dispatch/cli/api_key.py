"""``dispatch api-key``: make, list and revoke the keys of the task service.

The commands work on the database itself, so that the first key can be made
before the service is exposed.
"""

from __future__ import annotations

import os
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from dispatch.ats.model import parse_time
from dispatch.cli.options import State, duration_s, json_option
from dispatch.cli.output import ago
from dispatch.errors import ConfigurationError, DispatchError, UsageError
from dispatch.setting_kinds import masked_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatch.service.keys import Key
    from dispatch.service.rows import Scope
    from dispatch.service.store import Tx


@click.group(name="api-key")
def api_key() -> None:
    """Make, list and revoke API keys.

    As soon as the first key is made, the task service wants one from everybody.

    \b
    Examples:
      dispatch api-key create dispatch > fleet.key
      dispatch api-key list
      dispatch api-key revoke 0123456789ab
    """  # noqa: D301 - click's mark
    # Nothing that is made here, the database included, is for others.
    os.umask(0o077)


@api_key.command()
@click.argument("name")
@click.option(
    "--access",
    type=click.Choice(["read", "write", "admin"]),
    default="write",
    show_default=True,
    help="What it allows.",
)
@click.option("--agent", metavar="UUID", help="The agent that the key acts as.")
@click.option("--actor", metavar="ID", help="The actor that the key acts as, and its instances ID-...; default: NAME.")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["agent", "human", "system"]),
    default="agent",
    show_default=True,
    help="What the actor is.",
)
@click.option("--project", "projects", metavar="ORG/PROJECT", multiple=True, help="Only this project; repeatable.")
@click.option("--expires", metavar="DURATION", help="How long it is good: 12h, 90d, 1y; default: for ever.")
@json_option
@click.pass_obj
def create(
    state: State,
    *,
    name: str,
    access: str,
    agent: str | None,
    actor: str | None,
    kind: str,
    projects: Sequence[str],
    expires: str | None,
) -> None:
    """Make a key and print it, this once.

    Only the key goes to stdout. Give it to a client as DISPATCH_ATS_TOKEN_FILE.
    A key for a fleet is named dispatch: ingresses act as dispatch-HOST.

    \b
    Examples:
      dispatch api-key create dispatch > fleet.key
      dispatch api-key create ci --project acme/web --expires 90d > ci.key
      dispatch api-key create dispatch-2027 --actor dispatch > next-fleet.key
    """  # noqa: D301 - click's mark
    from dispatch.ats.model import Actor
    from dispatch.service import direct, keys
    from dispatch.service.access import Access

    if not keys.NAME.fullmatch(name):
        raise UsageError(f"{name[:80]!r} is no name for a key: 1 to 64 letters, digits, dots, underscores and dashes.")
    who = Actor(kind, _actor_id(name, agent, actor, kind), name)
    scopes = [_scope(project) for project in projects]
    life_ms = None if expires is None else duration_s(expires) * 1000

    def work(tx: Tx) -> tuple[bool, Key, str, list[Key], dict[str, Any]]:
        is_first = not keys.exist(tx)
        until = None if life_ms is None else tx.now_ms + life_ms
        key, text = keys.create(tx, name, access=Access[access.upper()], actor=who, scopes=scopes, expires_at=until)
        return is_first, key, text, keys.overlapping(tx, key), _shown(key, projects, tx.now_ms)

    is_first, key, text, others, shown = direct.transaction(_database_url(state), work)
    if state.output.is_json:
        state.output.json({**shown, "key": text})
        return
    click.echo(text)
    state.output.note(f"Key {name} ({key.id}): {access} access as {kind} {key.actor_id}, {_extent(shown)}.")
    state.output.note("It is shown this once; keep it in a file that only its user can read.")
    for other in others:
        wide, narrow = (key, other) if keys.covers(key.actor_id, other.actor_id) else (other, key)
        state.output.note(
            f"Mind: key {wide.name}, which acts as {wide.actor_id}, can also act as {narrow.actor_id}, the actor of key"
            f" {narrow.name}."
        )
    if is_first:
        state.output.note(
            f"This is the first key in {_database_name(state)}: from now on the task service that uses it wants one"
            " from everybody."
        )


@api_key.command("list")
@json_option
@click.pass_obj
def list_(state: State) -> None:
    """List all keys, those that are no good any more included.

    \b
    Examples:
      dispatch api-key list
      dispatch api-key list --json | jq '.[] | select(.state == "live")'
    """  # noqa: D301 - click's mark
    from dispatch.service import direct, keys

    found = direct.transaction(
        _database_url(state), lambda tx: [_shown(key, _names(tx, key), tx.now_ms) for key in keys.every(tx)]
    )
    if state.output.is_json:
        state.output.json(found)
        return
    columns = ("ID", "STATE", "NAME", "ACCESS", "ACTOR", "CREATED", "EXPIRES", "PROJECTS")
    state.output.table(
        columns,
        [
            (
                key["id"],
                key["state"],
                key["name"],
                key["access"],
                f"{key['actor']['type']}:{key['actor']['id']}",
                _when(state, key["created_at"]),
                _when(state, key["expires_at"]),
                "all" if key["projects"] is None else ",".join(key["projects"]),
            )
            for key in found
        ],
    )
    if not found:
        state.output.note(
            f"There are no keys in {_database_name(state)}: a task service that uses it takes everybody on this machine"
            " at their word."
        )


@api_key.command()
@click.argument("ident", metavar="ID")
@json_option
@click.pass_obj
def revoke(state: State, ident: str) -> None:
    """Revoke a key: it is refused from now on.

    Its WebSockets are closed within a second. ID is the key's id, or its name.

    \b
    Examples:
      dispatch api-key revoke 0123456789ab
      dispatch api-key revoke ci
    """  # noqa: D301 - click's mark
    from dispatch.service import direct, keys

    if keys.split(ident) is not None:
        raise UsageError("Give the key's id or name, never the key itself: everybody on this host can see arguments.")

    def work(tx: Tx) -> tuple[Key, bool, dict[str, Any]]:
        key, was_live = keys.revoke(tx, ident)
        return key, was_live, _shown(key, _names(tx, key), tx.now_ms)

    key, was_live, shown = direct.transaction(_database_url(state), work)
    if state.output.is_json:
        state.output.json(shown)
    else:
        state.output.note(f"Key {key.name} ({key.id}) {'is revoked' if was_live else 'was revoked already'}.")


def _database_url(state: State) -> str:
    settings = state.settings
    try:
        settings.local.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigurationError(
            f"The data directory {settings.local.data_dir} cannot be made ({exc.strerror or exc});"
            " set DISPATCH_DATA_DIR."
        ) from exc
    return settings.database_url


def _database_name(state: State) -> str:
    """Return what the database is called: with the wrong user or directory it is not that of the service."""
    return masked_url(state.settings.database_url).removeprefix("sqlite:///")


def _when(state: State, time: str | None) -> str:
    if state.output.is_terminal and time:
        return ago(parse_time(time))
    return time or "-"


def _actor_id(name: str, agent: str | None, actor: str | None, kind: str) -> str:
    if agent is None:
        ident = actor or name
        if len(ident) > 200 or not ident.isprintable() or " " in ident:
            raise UsageError(f"{ident[:80]!r} is no actor id: at most 200 characters, no spaces.")
        return ident
    if actor is not None or kind != "agent":
        raise UsageError("--agent names an agent; it does not go with --actor or another --type.")
    try:
        return str(uuid.UUID(agent))
    except ValueError:
        raise UsageError(f"{agent!r} is not a UUID; --actor takes other ids.") from None


def _scope(project: str) -> Scope:
    from dispatch.service.rows import Scope

    org, slash, slug = project.partition("/")
    if not (org and slash and slug) or "/" in slug:
        raise UsageError(f"{project!r} does not name a project; write ORG/PROJECT.")
    return Scope(org, slug)


def _names(tx: Any, key: Key) -> list[str]:
    import json

    from dispatch.service import keys

    return [] if key.projects is None else keys.project_names(tx, json.loads(key.projects))


def _shown(key: Key, projects: Sequence[str], now_ms: int) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "state": key.state(now_ms),
        "access": key.access,
        "actor": {"type": key.actor_type, "id": key.actor_id},
        "projects": None if key.projects is None else sorted(set(projects)),
        "created_at": _iso(key.created_at),
        "expires_at": _iso(key.expires_at),
        "revoked_at": _iso(key.revoked_at),
    }


def _extent(shown: dict[str, Any]) -> str:
    where = "all projects" if shown["projects"] is None else ", ".join(shown["projects"])
    return f"{where}, {'until ' + shown['expires_at'] if shown['expires_at'] else 'until it is revoked'}"


def _iso(at_ms: int | None) -> str | None:
    if at_ms is None:
        return None
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (OverflowError, ValueError):
        raise DispatchError(f"{at_ms} is not a time that can be shown.") from None
