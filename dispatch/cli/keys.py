"""The dispatcher's key pair, and the senders that it trusts: keygen, add-key, remove-key, list-keys."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dispatch.cli.options import State, duration_s, json_option
from dispatch.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dispatch.crypto.trust import OwnKey, Sender

F = TypeVar("F", bound="Callable[..., Any]")


@click.command()
@click.option("--rotate", is_flag=True, help="Make a new pair although there is one.")
@click.option(
    "--overlap",
    metavar="DURATION",
    help="With --rotate: how long the old pair still opens tasks: 12h, 30d, or 0; default: 30d.",
)
@json_option
@click.pass_obj
def keygen(state: State, *, rotate: bool, overlap: str | None) -> None:
    """Make the dispatcher's key pair and print its public key.

    Senders seal tasks for the public key. The pair stays in the directory of keys, and nobody else may read it.

    \b
    Examples:
      dispatch keygen > dispatcher.pub
      dispatch keygen --rotate --overlap 30d
      dispatch keygen --rotate --overlap 0      the old key was stolen
    """  # noqa: D301 - click's mark
    from dispatch.crypto.encoding import encode
    from dispatch.crypto.files import key_files

    if overlap is not None and not rotate:
        raise UsageError("--overlap goes with --rotate.")
    files, now_s = key_files(state.settings), time.time()
    if rotate:
        overlap_s = 0 if overlap == "0" else duration_s(overlap or "30d")
        pair = files.rotate_key(overlap_s=overlap_s, now_s=now_s)
    else:
        pair = files.make_key(now_s=now_s)
    own = [shown_own(key, now_s) for key in files.own_keys()]
    if state.output.is_json:
        state.output.json({**own[0], "directory": str(files.directory), "keys": own})
        return
    click.echo(encode(pair.public))
    state.output.note(f"Fingerprint {pair.kid}. The key pair is in {files.directory}.")
    for old in own[1:]:
        state.output.note(f"The old key {old['fingerprint']} opens tasks until {old['opens_until']}.")


def permission_options(function: F) -> F:
    """Give a command the options that say what a sender may do."""
    for option in reversed(
        (
            click.option("--channel", "channels", metavar="NAME", multiple=True, help="Only this channel; repeatable."),
            click.option(
                "--executor", "executors", metavar="NAME", multiple=True, help="Only this executor; repeatable."
            ),
            click.option(
                "--encrypted-only", is_flag=True, help="Refuse tasks in the open that carry this name or key."
            ),
            click.option(
                "--version",
                "versions",
                type=click.Choice(["1", "2"]),
                multiple=True,
                help="Only this version of the envelope; repeatable.",
            ),
        )
    ):
        function = option(function)
    return function


def sender_of(name: str, public: bytes, given: dict[str, Any]) -> Sender:
    """Return a sender with the permissions that ``permission_options`` gave."""
    from dispatch.crypto.ring_file import iso
    from dispatch.crypto.trust import VERSIONS, Sender

    return Sender(
        name=name,
        public=public,
        added_at=iso(time.time()),
        channels=frozenset(given["channels"]),
        executors=frozenset(given["executors"]),
        versions=frozenset(map(int, given["versions"])) or VERSIONS,
        encrypted_only=given["encrypted_only"],
    )


@click.command("add-key")
@click.argument("name")
@click.argument("key")
@permission_options
@json_option
@click.pass_obj
def add_key(state: State, /, name: str, key: str, **given: Any) -> None:
    """Trust a sender: NAME is what it is called, KEY its public key.

    Without options it may use everything.

    \b
    Examples:
      dispatch add-key alice 3q2+7w...=
      dispatch add-key ci 3q2+7w...= --channel builds --version 2 --encrypted-only
    """  # noqa: D301 - click's mark
    from dispatch.crypto import keys
    from dispatch.crypto.files import key_files

    try:
        public = keys.read_public(key)
    except ValueError as exc:
        raise UsageError(f"KEY {exc}. It must be an X25519 public key: 32 bytes in base64, 44 characters.") from None
    new = sender_of(name, public, given)
    key_files(state.settings).add_sender(new)
    if state.output.is_json:
        state.output.json(shown_sender(new))
    else:
        state.output.note(f"{name} is trusted: fingerprint {keys.kid_of(public)}, {may(new)}.")


@click.command("remove-key")
@click.argument("name")
@json_option
@click.pass_obj
def remove_key(state: State, name: str) -> None:
    """Revoke a sender's key: what it sealed is refused from now on.

    The key is kept as removed and cannot be registered again; the name is free for another key.

    \b
    Examples:
      dispatch remove-key alice
    """  # noqa: D301 - click's mark
    from dispatch.crypto.files import key_files

    gone, was_good = key_files(state.settings).revoke_sender(name, now_s=time.time())
    if state.output.is_json:
        state.output.json(shown_sender(gone))
    elif was_good:
        state.output.note(f"The key of {name} is revoked. Tasks that it sealed and that have not run are refused.")
    else:
        state.output.note(f"The key of {name} was revoked already, on {gone.revoked_at}.")


@click.command("list-keys")
@json_option
@click.pass_obj
def list_keys(state: State) -> None:
    """List the dispatcher's keys and the trusted senders, removed ones included.

    \b
    Examples:
      dispatch list-keys
      dispatch list-keys --json | jq -r '.senders[] | select(.state == "trusted") | .name'
    """  # noqa: D301 - click's mark
    from dispatch.crypto.files import key_files

    trust = key_files(state.settings).trust()
    own = [shown_own(key, time.time()) for key in trust.ring.keys]
    senders = [(shown_sender(one), may(one)) for one in trust.senders.values()]
    if state.output.is_json:
        state.output.json({"dispatcher": own, "senders": [sender for sender, _ in senders]})
        return
    rows = [("own", "-", key["state"], key["fingerprint"], key["public_key"], key["opens_until"] or "") for key in own]
    rows += [
        ("sender", one["name"], one["state"], one["fingerprint"], one["public_key"], words) for one, words in senders
    ]
    if rows or not state.output.is_terminal:
        state.output.table(("WHOSE", "NAME", "STATE", "FINGERPRINT", "PUBLIC KEY", "MAY"), rows)
    if not own:
        state.output.note("There is no key pair yet; 'dispatch keygen' makes one.")
    if not senders:
        state.output.note("No sender is trusted yet; 'dispatch add-key' and 'dispatch approve' add one.")


def shown_own(key: OwnKey, now_s: float) -> dict[str, Any]:
    """Return a key pair of the dispatcher as it is shown: without its private half."""
    from dispatch.crypto.encoding import encode
    from dispatch.crypto.ring_file import iso

    until_s = key.opens_until_s
    return {
        "public_key": encode(key.pair.public),
        "fingerprint": key.pair.kid,
        "state": "current" if until_s is None else "opens" if now_s < until_s else "expired",
        "created_at": key.created_at or None,
        "opens_until": None if until_s is None else iso(until_s),
    }


def shown_sender(sender: Sender) -> dict[str, Any]:
    """Return a sender as it is shown; None where it may use everything."""
    from dispatch.crypto.encoding import encode
    from dispatch.crypto.keys import kid_of

    return {
        "name": sender.name,
        "state": "trusted" if sender.revoked_at is None else "revoked",
        "public_key": encode(sender.public),
        "fingerprint": kid_of(sender.public),
        "added_at": sender.added_at or None,
        "revoked_at": sender.revoked_at,
        "channels": sorted(sender.channels) or None,
        "executors": sorted(sender.executors) or None,
        "versions": sorted(sender.versions),
        "encrypted_only": sender.encrypted_only,
    }


def may(sender: Sender) -> str:
    """Return in words what a sender may use."""
    if sender.revoked_at is not None:
        return f"nothing since {sender.revoked_at}"

    def words(what: str, names: Sequence[str] | frozenset[str]) -> str:
        return f"{what} {', '.join(sorted(names))}" if names else f"all {what}s"

    versions = "" if len(sender.versions) > 1 else f", version {min(sender.versions)}"
    sealed = ", sealed tasks only" if sender.encrypted_only else ""
    return f"{words('channel', sender.channels)}, {words('executor', sender.executors)}{versions}{sealed}"
