"""Commands on several tasks: a refusal for one does not keep the others from being tried, and each is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatch.errors import GatewayRejectedError


class Refusals:
    """What was refused. All but the last go to stderr; ``raise_last`` raises that one, so it decides the exit code."""

    def __init__(self, task_ids: Sequence[str]) -> None:
        self._is_one = len(task_ids) == 1
        self._last: GatewayRejectedError | None = None

    def add(self, task_id: str, refusal: GatewayRejectedError) -> None:
        """Note a refusal; one that does not name its task gets the name in front, if there are several."""
        if not self._is_one and f"task {task_id}" not in str(refusal).lower():
            refusal.args = (f"Task {task_id}: {refusal}",)
        if self._last is not None:
            click.echo(f"dispatch: {self._last}", err=True)
        self._last = refusal

    def raise_last(self) -> None:
        """Raise the last one, if there is one."""
        if self._last is not None:
            raise self._last
