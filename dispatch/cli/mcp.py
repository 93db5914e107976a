"""``dispatch mcp``: the Task Tools for a program that talks over stdin and stdout."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from dispatch.cli.options import State, common_options

if TYPE_CHECKING:
    from dispatch.ats.protocol import Endpoint
    from dispatch.service.access import Caller


@click.command()
@click.option(
    "--profile", default="default", metavar="NAME", help="Which tools to list: default, page, worker or reader."
)
@common_options
@click.pass_obj
def mcp(state: State, profile: str) -> int:
    """Serve the Task Tools over stdin and stdout.

    For programs that start their MCP servers themselves. What is called is done by the task service at
    DISPATCH_ATS_URL, with the token DISPATCH_ATS_TOKEN. The log goes to stderr.

    \b
    Examples:
      claude mcp add dispatch -- dispatch mcp
      dispatch mcp --profile worker --actor-id reviewer-2
    """  # noqa: D301 - click's mark
    endpoint, level = state.endpoint, state.settings.local.log_level
    # Only with settings that are right: loading the SDK takes about a second.
    from dispatch import log
    from dispatch.ats.model import Actor
    from dispatch.service.access import Caller
    from dispatch.service.mcp import stdio

    # Whoever starts this is a program; the person only lends it the name.
    actor = Actor("agent", state.actor.id, state.actor.name)
    wire = stdio.claim_stdout()
    log.configure(level)
    return asyncio.run(_serve(endpoint, Caller(actor), profile, wire))


async def _serve(endpoint: Endpoint, caller: Caller, profile: str, wire: int) -> int:
    from dispatch.ats.aclient import AsyncClient
    from dispatch.service.mcp import stdio
    from dispatch.service.mcp.remote import RemoteToolbox

    async with AsyncClient(endpoint, caller.actor) as client:
        return await stdio.serve(RemoteToolbox(client), caller, profile, wire)
