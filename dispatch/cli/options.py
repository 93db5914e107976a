"""Options that every command takes, and what they amount to: settings, a client, a way to print."""

from __future__ import annotations

import getpass
import os
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from dispatch import settings as settings_module
from dispatch.ats.protocol import Endpoint, endpoint_of
from dispatch.cli.output import Output
from dispatch.core.priority import NUMBER_OF
from dispatch.core.trace_ids import link_of
from dispatch.errors import ConfigurationError, UsageError
from dispatch.setting_kinds import Url, secret_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from dispatch.ats.client import Client
    from dispatch.ats.model import Actor
    from dispatch.settings import Settings

    # Generic for type checkers; at run time only since a late release of click.
    _TextType = click.ParamType[str]
    _NumberType = click.ParamType[int]
else:
    _TextType = _NumberType = click.ParamType

F = TypeVar("F", bound="Callable[..., Any]")

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800, "y": 31_536_000}
_DURATION: Final = re.compile(r"([1-9][0-9]{0,8})([smhdwy])", re.ASCII)
_DURATION_MAX_S: Final = 100 * _UNITS_S["y"]

_TASK_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


@dataclass
class State:
    """What the common options of one run amount to."""

    overrides: dict[str, Any] = field(default_factory=dict)
    """Setting name -> raw value, from options."""
    token_file: Path | None = None
    is_json: bool = False

    @cached_property
    def settings(self) -> Settings:
        """The settings, options included."""
        return settings_module.load(overrides=self.overrides)

    @cached_property
    def seen_settings(self) -> Settings:
        """The settings for looking: where no Redis is configured and 'dispatch up' runs, its own Redis is meant."""
        found = self.settings
        if found.broker.url != settings_module.SETTINGS["redis_url"][1].metadata["default"]:
            return found
        from dispatch.embedded import EmbeddedRedis, answers_ping

        embedded = EmbeddedRedis(found.local.data_dir / "redis")
        if not embedded.socket_path.exists() or not answers_ping(embedded.socket_path):
            return found
        return replace(found, broker=replace(found.broker, url=Url(embedded.url)))

    @cached_property
    def output(self) -> Output:
        """Where results go."""
        return Output(is_json=self.is_json)

    @cached_property
    def actor(self) -> Actor:
        """The person who types, unless options name somebody else."""
        from dispatch.ats.model import Actor

        name = _user_name()
        ident = str(self.overrides.get("actor_id") or name)
        return Actor("human", ident, str(self.overrides.get("actor_name") or ident))

    @cached_property
    def endpoint(self) -> Endpoint:
        """Where the task service is. In an attempt that is traced, calls are made in its trace."""
        found, link = endpoint_of(self.settings.ats), link_of(os.environ.get("TRACEPARENT", ""))
        return found if link is None else replace(found, traceparent=link.traceparent())

    @cached_property
    def client(self) -> Client:
        """A client of the task service that speaks as ``actor``."""
        from dispatch.ats.client import Client

        client = Client(self.endpoint, self.actor)
        click.get_current_context().find_root().call_on_close(client.close)
        return client

    @property
    def channels(self) -> tuple[str, ...] | None:
        """The channels named on the command line, or None."""
        return self.settings.ats.channels if "channel" in self.overrides else None

    def environment(self) -> dict[str, str]:
        """Return the environment with the options in it, for processes that this one starts or becomes."""
        given = {
            f"DISPATCH_{name.upper()}": str(value) for name, value in self.overrides.items() if name != "ats_token"
        }
        inherited = dict(os.environ)
        if self.token_file is not None:
            given["DISPATCH_ATS_TOKEN_FILE"] = str(self.token_file)
            inherited.pop("DISPATCH_ATS_TOKEN", None)
        return inherited | given


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"


def _keep(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def callback(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None:
            ctx.ensure_object(State).overrides[name] = value

    return callback


def _keep_token(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    try:
        token = secret_in(Path(value).expanduser())
    except ValueError as exc:
        raise ConfigurationError(f"--token-file names {value}, {exc}.") from exc
    state = ctx.ensure_object(State)
    state.overrides["ats_token"], state.token_file = token, Path(value).expanduser().absolute()


def _keep_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's signature
    if value:
        ctx.ensure_object(State).is_json = True


json_option: Final = click.option("--json", is_flag=True, expose_value=False, callback=_keep_json, help="Print JSON.")
"""The one common option of commands that do not talk to the service."""

_SERVICE: Final = (
    json_option,
    click.option("--url", metavar="URL", expose_value=False, callback=_keep("ats_url"), help="The task service."),
    click.option(
        "--token-file",
        metavar="FILE",
        expose_value=False,
        callback=_keep_token,
        help="File that holds the token for the task service.",
    ),
    click.option("--org", metavar="SLUG", expose_value=False, callback=_keep("ats_org"), help="Organisation."),
    click.option("--project", metavar="SLUG", expose_value=False, callback=_keep("ats_project"), help="Project."),
    click.option("--actor-id", metavar="ID", expose_value=False, callback=_keep("actor_id"), help="Act as this id."),
    click.option(
        "--actor-name", metavar="NAME", expose_value=False, callback=_keep("actor_name"), help="Act under this name."
    ),
)


_CHANNEL: Final = click.option(
    "--channel", metavar="NAME[,NAME]", expose_value=False, callback=_keep("channel"), help="Channel."
)


def service_options(function: F) -> F:
    """Give a command the options that every command has, but for --channel, which it uses in another sense."""
    for option in reversed(_SERVICE):
        function = option(function)
    return function


def common_options(function: F) -> F:
    """Give a command the options that every command has. They may stand before or after the command's name."""
    return service_options(_CHANNEL(function))


def duration_s(text: str) -> int:
    """Read a duration such as 90d. Raises UsageError."""
    found = _DURATION.fullmatch(text)
    if found is None or (seconds := int(found[1]) * _UNITS_S[found[2]]) > _DURATION_MAX_S:
        raise UsageError(f"{text!r} is not a duration such as 12h, 90d, 4w or 1y, at most 100y.")
    return seconds


def refuse_constant(name: str) -> None:
    """Refuse NaN and infinity, which Python reads but JSON does not know."""
    raise ValueError(f"{name} is not JSON")


class TaskId(_TextType):
    """A task's number or UUID; a leading # is allowed."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check what was typed."""
        text = str(value).removeprefix("#")
        if not _TASK_ID.fullmatch(text):
            self.fail(f"{value!r} is not the id of a task: it is a number such as 7, or a UUID.", param, ctx)
        return text


class Priority(_NumberType):
    """1 to 10, or a word."""

    name = "1-10|word"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read a number or a word."""
        text = str(value).lower()
        if text in NUMBER_OF:
            return NUMBER_OF[text]
        if not (text.isascii() and text.isdigit() and 1 <= int(text[:3]) <= 10):
            self.fail(f"{value!r} is neither a number from 1 to 10 nor one of {', '.join(NUMBER_OF)}.", param, ctx)
        return int(text)
