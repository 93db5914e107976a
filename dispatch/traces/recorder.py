"""Where the parts of a process leave their spans. Without ``begin`` every call returns at once and nothing is loaded.

State is the module's, as with metrics: spans come from everywhere. In a process
whose children record, ``begin`` comes before the fork: they share what was
imported, and each makes its own connection and thread with its first span.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from dispatch.core.trace_ids import trace_of as derived
from dispatch.errors import ConfigurationError
from dispatch.traces.sending import Sender, headers_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dispatch.core.spans import Span
    from dispatch.core.trace_ids import TaskTrace
    from dispatch.settings import Settings, Traces
    from dispatch.traces.export import Exporter

SERVICE: Final = "service"
INGRESS: Final = "ingress"
WORKER: Final = "worker"
GOODBYE_S: Final = 2.0
"""How long the end of a process waits for its last spans."""


@dataclass(slots=True)
class _State:
    process: str
    url: str
    headers: Mapping[str, str]
    ratio: float
    ats_url: str
    log: Any
    exporter: Exporter | None = None
    pid: int = 0


_state: _State | None = None


def prepare(wanted: Traces) -> Mapping[str, str]:
    """Load what sending needs and return the headers of each batch. Raises ConfigurationError."""
    headers = headers_of(wanted.headers.reveal()) if wanted.headers else {}
    try:
        import dispatch.traces.export  # noqa: F401, PLC0415 - only who sends traces pays for it
    except ImportError as exc:
        raise ConfigurationError(
            "DISPATCH_TRACES_URL is set, but OpenTelemetry is not installed; install the extra 'otel'"
            f" or leave the setting out ({exc})."
        ) from exc
    return headers


def begin(process: str, settings: Settings, log: Any, *, ats_url: str = "") -> None:
    """Record from now on, if the settings name a collector. Raises ConfigurationError when that is not possible.

    ``ats_url`` is the base URL of the service that tasks come from, for those that have no UUID there.
    """
    global _state  # noqa: PLW0603 - see the module
    wanted = settings.traces
    if not wanted.url:
        return
    _state = _State(process, wanted.url, prepare(wanted), wanted.ratio, ats_url, log)
    log.info("traces_on", url=wanted.url, ratio=wanted.ratio)


def trace_of(uuid: str | None, task_id: str) -> TaskTrace | None:
    """Return the trace of a task; None while nothing is recorded."""
    if _state is None:
        return None
    return derived(uuid, url=_state.ats_url, task_id=task_id, ratio=_state.ratio)


def record(span: Span) -> None:
    """Send a span in the background, if its trace is sampled."""
    if _state is None or not span.trace.is_sampled:
        return
    try:
        _exporter(_state).add(span)
    except Exception:
        # Whatever it is, say a thread that the system does not allow: no task fails for it.
        _state.log.exception("traces_failed")
        end()


def _exporter(state: _State) -> Exporter:
    if state.exporter is None or state.pid != os.getpid():
        from dispatch.traces.export import Exporter  # noqa: PLC0415 - loaded by begin

        state.exporter = Exporter(state.process, Sender(state.url, state.headers), state.log)
        state.pid = os.getpid()
    return state.exporter


def end() -> None:
    """Send what is left, for GOODBYE_S at most, and record nothing more."""
    global _state
    ended, _state = _state, None
    if ended is not None and ended.exporter is not None and ended.pid == os.getpid():
        ended.exporter.close(GOODBYE_S)
