"""JSON lines on stdout, one object per event, one vocabulary of events.

``get_logger(component).info("event_name", key=value)`` writes
``{"ts": ..., "level": ..., "event": ..., "component": ..., ...}``. Event names
are listed in docs/logs.md, and a test compares. Strings are cut at
VALUE_CHARS_MAX; JSON escapes every control character, so one event is one line
whatever a title contains. Secrets are never passed to a logger.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping


@contextlib.contextmanager
def _without(package: str) -> Iterator[None]:
    """Let what is imported meanwhile find that a package is not installed, unless it is loaded already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


# structlog loads rich for an output in colours that nobody here asks for: a tenth of what a process of ours takes to
# start, in time and in memory.
with _without("rich"):
    import structlog

VALUE_CHARS_MAX: Final = 2_000

_NOISY: Final = (
    "aiohttp",
    "alembic",
    "asyncio",
    "celery.app.trace",
    "celery.worker.strategy",
    "mcp",
    "sqlalchemy",
    "sse_starlette",
    "uvicorn.access",
    "websockets",
)
"""Libraries whose everyday messages repeat what our own events say."""


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


_ENCODE: Final = json.JSONEncoder(ensure_ascii=True, default=str, check_circular=False).encode


def _dumps(value: Any, **_: Any) -> str:
    return _ENCODE(value)


_SHARED: Final[list[Any]] = [
    structlog.contextvars.merge_contextvars,
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
    structlog.processors.format_exc_info,
    _cut,
]


class _Stdout:
    """Writes one line with one system call, so that lines of several processes on one pipe do not mix."""

    def msg(self, line: str) -> None:
        """Write a line; a reader that has gone away is no reason to fail."""
        with contextlib.suppress(OSError):
            os.write(1, line.encode() + b"\n")

    log = debug = info = warning = warn = error = critical = fatal = exception = failure = err = msg


class _StdoutHandler(logging.Handler):
    """The same for what libraries log."""

    def emit(self, record: logging.LogRecord) -> None:
        _Stdout().msg(self.format(record))


def configure(level: str = "info") -> None:
    """Send all logs of this process, those of libraries included, to stdout as JSON lines.

    Our own events do not pass through the standard library's logging: it costs
    more than all the rest of writing a line.
    """
    renderer = structlog.processors.JSONRenderer(serializer=_dumps)
    structlog.configure(
        processors=[*_SHARED, renderer],
        logger_factory=lambda *_: _Stdout(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = _StdoutHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)


def get_logger(component: str) -> Any:
    """Return a logger whose events carry ``component``."""
    return structlog.get_logger(f"dispatch.{component}", component=component)
