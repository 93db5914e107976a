"""JSON lines on stdout, one object per event, one vocabulary of events.

``get_logger(component).info("event_name", key=value)`` writes
``{"ts": ..., "level": ..., "event": ..., "component": ..., ...}``. Event names
are listed in docs/logs.md, and a test compares. Strings are cut at
VALUE_CHARS_MAX; JSON escapes every control character, so one event is one line
whatever a title contains. Secrets are never passed to a logger.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING, Any, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping

VALUE_CHARS_MAX: Final = 2_000


def _shown(value: Any) -> Any:
    """Return a value as it may be written: strings cut, secrets as stars (JSON would write a Secret's letters)."""
    if isinstance(value, str):
        text = str(value)
        return text if len(text) <= VALUE_CHARS_MAX else text[:VALUE_CHARS_MAX] + "..."
    if isinstance(value, dict):
        return {key: _shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    return value


def _cut(_logger: Any, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if type(value) is not int:
            event[key] = _shown(value)
    return event


def _dumps(value: Any, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=True, default=str)


_SHARED: Final[list[Any]] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
    structlog.processors.format_exc_info,
    _cut,
]


def configure(level: str = "info") -> None:
    """Send all logs of this process, those of libraries included, to stdout as JSON lines."""
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=_dumps),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("asyncio", "aiohttp", "websockets", "uvicorn.access", "alembic", "sqlalchemy"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def get_logger(component: str) -> Any:
    """Return a logger whose events carry ``component``."""
    return structlog.get_logger(f"dispatch.{component}").bind(component=component)
