"""What one look before the start found out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dispatch.errors import ConfigurationError, DispatchError


@dataclass(frozen=True, slots=True)
class Check:
    """What one look found out. ``state`` is ok, warning or error; ``advice`` says what to do, or is ""."""

    name: str
    state: Literal["ok", "warning", "error"]
    sentence: str
    advice: str = ""
    kind: type[DispatchError] = ConfigurationError
    """What to raise for an error."""
    extensions: frozenset[str] = frozenset()
    """What the task service announces."""

    def error(self) -> DispatchError:
        """Return the error that this check amounts to."""
        return self.kind(f"{self.sentence} {self.advice}".strip())
