"""Commands that become a process of dispatch: up, serve, ingress, worker."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from dispatch import log
from dispatch.cli.options import State, common_options
from dispatch.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatch.settings import Settings


@click.command()
@click.option("--slots", "-c", type=click.IntRange(1, 1000), help="Tasks that run at once; default: one per CPU.")
@common_options
@click.pass_obj
def up(state: State, slots: int | None) -> None:
    """Run everything on this machine.

    That is a task service, a Redis, an ingress and a worker. Ctrl-C ends it.

    \b
    Examples:
      dispatch up
      dispatch up --slots 4
    """  # noqa: D301 - click's mark
    from dispatch.cli import up as up_module

    settings = _prepared(state)
    # The processes that it starts read their settings from the environment.
    os.environ.update(state.environment())
    up_module.run(settings, slots=slots)


@click.command()
def demo() -> None:
    """See it work, with everything in a temporary place.

    Tasks of all sorts are created, run and shown; nothing is left behind.

    \b
    Examples:
      dispatch demo
    """  # noqa: D301 - click's mark
    from dispatch.cli import demo as demo_module

    demo_module.run()


@click.command()
@common_options
@click.pass_obj
def serve(state: State) -> None:
    """Run the task service.

    It listens on DISPATCH_BIND.

    \b
    Examples:
      dispatch serve
      DISPATCH_BIND=127.0.0.1:9000 dispatch serve
    """  # noqa: D301 - click's mark
    from dispatch.service import server

    server.serve(_prepared(state))


@click.command()
@common_options
@click.pass_obj
def ingress(state: State) -> None:
    """Run an ingress.

    It watches the channels, claims tasks and queues them for the workers.

    \b
    Examples:
      dispatch ingress
      dispatch ingress --channel images,reports
    """  # noqa: D301 - click's mark
    from dispatch import preflight
    from dispatch.ingress import process

    settings = _prepared(state)
    log.configure(settings.local.log_level)
    logger = log.get_logger("ingress")
    for check in preflight.preflight(settings, ("service", "redis")):
        if check.state == "warning":
            logger.warning("preflight_warning", check=check.name, sentence=check.sentence, advice=check.advice)
    process.run(settings)


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.argument("celery_args", nargs=-1, type=click.UNPROCESSED, metavar="[CELERY ARGUMENTS]...")
@click.pass_obj
def worker(state: State, celery_args: Sequence[str]) -> None:
    """Run a worker.

    Short for 'celery -A dispatch worker'. What follows goes to Celery as it is; options of dispatch stand before the
    word worker.

    \b
    Examples:
      dispatch worker --concurrency 4
      dispatch --url http://tasks.example:8700 worker -c 8
    """  # noqa: D301 - click's mark
    _prepared(state)
    argv = [sys.executable, "-m", "celery", "-A", "dispatch", "worker", *celery_args]
    sys.stdout.flush()
    os.execve(sys.executable, argv, state.environment())  # noqa: S606 - that is the purpose


def _prepared(state: State) -> Settings:
    """Return the settings, with a data directory that only this user can read."""
    settings = state.settings
    try:
        settings.local.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise ConfigurationError(
            f"The data directory {settings.local.data_dir} cannot be made ({exc.strerror or exc}); "
            "set DISPATCH_DATA_DIR to a place that this user may write."
        ) from exc
    return settings
