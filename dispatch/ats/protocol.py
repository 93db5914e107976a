"""The wire protocol without I/O: what to send for each call.

A builder returns a Request; a client adds the base URL, the scope and the
headers, moves the bytes, and gives what came back to ``answers.interpret``.
Both clients (``client``, ``aclient``) share everything here; ``frames`` is the
same for the event feed.
Durations are seconds here and milliseconds on the wire (docs/protocol.md).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode, urlsplit

from dispatch.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dispatch.ats.model import Actor
    from dispatch.settings import Ats

FAILURES_MAX: Final = 500
"""How many tasks one ``fail_many`` may name."""
ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
"""Longest answer that a client reads."""

DEADLINE_S: Final = 10.0
"""Default time for one call, from the connection to the last byte of the answer."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call. ``path`` has no scope and no query; ``body`` None means an empty body."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: Any = None
    scoped: bool = False
    """Whether ``/orgs/{org}/projects/{project}`` goes in front when one is set."""
    repeatable: bool = True
    """Whether sending it twice has the effect of sending it once."""
    leased: bool = False
    """Whether it is made under a lease, so that a conflict means the lease is lost."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a service is: taken apart once, used for every request."""

    scheme: str
    host: str
    port: int
    prefix: str
    """Path of the base URL, without a trailing slash."""
    scope: str
    """``/orgs/{org}/projects/{project}``, or ""."""
    token: str | None = field(default=None, repr=False)
    """Bearer token, or None."""
    traceparent: str = ""
    """The span in which calls are made, as W3C Trace Context writes it, or ""."""

    @property
    def authority(self) -> str:
        """Host and port, as in a Host header."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def base_url(self) -> str:
        """The service's base URL, without a trailing slash."""
        return f"{self.scheme}://{self.authority}{self.prefix}"


def endpoint(url: str, *, org: str | None = None, project: str | None = None, token: str | None = None) -> Endpoint:
    """Take a base URL apart. A missing half of the scope defaults to ``default`` or ``main``.

    Raises ConfigurationError when the URL or the token cannot be used.
    """
    if token and (not (token.isascii() and token.isprintable()) or " " in token):
        raise ConfigurationError("The token of the task service holds spaces or unusual characters; check its file.")
    shown = url.rpartition("@")[2]
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise ConfigurationError(f"The URL of the task service, {shown}, cannot be used: {exc}.") from exc
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"The URL of the task service, {shown}, must look like http://host:port.")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigurationError(
            "The URL of the task service must hold no password and no query; give a token with DISPATCH_ATS_TOKEN."
        )
    scope = f"/orgs/{_segment(org or 'default')}/projects/{_segment(project or 'main')}" if org or project else ""
    return Endpoint(
        scheme=parts.scheme,
        host=parts.hostname,
        port=port or (443 if parts.scheme == "https" else 80),
        prefix=parts.path.rstrip("/"),
        scope=scope,
        token=token or None,
    )


def endpoint_of(ats: Ats) -> Endpoint:
    """Return where the configured task service is. Raises ConfigurationError like ``endpoint``."""
    return endpoint(ats.url, org=ats.org, project=ats.project, token=ats.token.reveal() if ats.token else None)


def target(request: Request, where: Endpoint) -> str:
    """Return the request target: path with prefix, scope and query, percent-encoded."""
    path = f"{where.prefix}{where.scope if request.scoped else ''}{request.path}"
    return f"{path}?{urlencode(request.query)}" if request.query else path


def headers(where: Endpoint, actor: Actor) -> dict[str, str]:
    """Return the headers of every call. Control characters in the actor's names are dropped."""
    found = {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "X-Actor-Type": actor.type,
        "X-Actor-ID": _header(actor.id),
        "X-Actor-Name": _header(actor.name),
    }
    if where.token:
        found["Authorization"] = f"Bearer {where.token}"
    if where.traceparent:
        found["traceparent"] = where.traceparent
    return found


def encode(request: Request) -> bytes:
    """Return the body's bytes. Raises ValueError for NaN, infinity and what JSON cannot hold."""
    if request.body is None:
        return b""
    try:
        return json.dumps(request.body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        # A lone surrogate has no UTF-8 form; as an escape it arrives, and the service refuses it in its own words.
        return json.dumps(request.body, allow_nan=False, separators=(",", ":")).encode()


# --- calls of the plain protocol ------------------------------------------------------------------------------------


def health() -> Request:
    """Ask whether the service lives, and what it announces."""
    return Request("GET", "/health")


def stats() -> Request:
    """Ask for counts by status and channel."""
    return Request("GET", "/tasks/stats")


def create(title: str, **fields: Any) -> Request:
    """Create a task. ``fields`` with value None are left out; ``payload`` may be any JSON."""
    body = {"title": title, "type": "task", "channel": "default", "priority": 5}
    body |= {key: value for key, value in fields.items() if value is not None}
    return Request("POST", "/tasks", body=body, scoped=True, repeatable=False)


def list_tasks(**filters: Any) -> Request:
    """List tasks. ``filters`` are the query of the protocol; None is left out, lists are joined by commas."""
    query = tuple((key, _query_value(value)) for key, value in filters.items() if value is not None)
    return Request("GET", "/tasks", query=query, scoped=True)


def get(task_id: str, *, fields: Sequence[str] = ()) -> Request:
    """Ask for one task; ``fields`` (extension): for nothing but these of it."""
    query = (("fields", ",".join(fields)),) if fields else ()
    return Request("GET", _task(task_id), query=query, scoped=True)


def patch(task_id: str, **fields: Any) -> Request:
    """Change fields of a task."""
    return Request("PATCH", _task(task_id), body=fields, scoped=True)


def claim(task_id: str, *, lease_s: float | None = None, claim_id: str | None = None) -> Request:
    """Claim a task; with ``claim_id`` the call may be repeated and gives the same grant."""
    body = _present(lease_duration=_ms(lease_s), claim_id=claim_id)
    return Request("POST", _task(task_id, "claim"), body=body, scoped=True)


def claim_many(task_ids: Sequence[int], *, lease_s: float, claim_id: str) -> Request:
    """Try to claim several tasks at once; ids are numbers. May be repeated and gives the same grants."""
    body = {"ids": list(task_ids), "lease_duration": _ms(lease_s), "claim_id": claim_id}
    return Request("POST", "/tasks/claim", body=body, scoped=True)


def complete(
    task_id: str, outputs: Sequence[Any] | None = None, *, token: int | None = None, review: bool = False
) -> Request:
    """Report success. ``outputs`` is always sent as a list; ``review`` (extension): it waits for approval."""
    body = _present(outputs=None if outputs is None else list(outputs), fencing_token=token, review=review or None)
    return Request("POST", _task(task_id, "complete"), body=body, scoped=True, leased=token is not None)


def fail(task_id: str, reason: str | None = None, *, token: int | None = None) -> Request:
    """Report the final failure."""
    body = _present(reason=reason, fencing_token=token)
    return Request("POST", _task(task_id, "fail"), body=body, scoped=True, leased=token is not None)


def cancel(task_id: str, reason: str | None = None) -> Request:
    """Cancel a task. Without a reason the body is empty, as plain clients send it."""
    return Request("POST", _task(task_id, "cancel"), body=_present(reason=reason) or None, scoped=True)


def reject(task_id: str, reason: str | None = None) -> Request:
    """Refuse a pending task for good."""
    return Request("POST", _task(task_id, "reject"), body=_present(reason=reason), scoped=True)


def reopen(task_id: str, reason: str | None = None, *, dependents: bool = False) -> Request:
    """Bring an ended task back to pending; ``dependents`` (extension): also what failed only because of it."""
    body = _present(reason=reason, dependents=dependents or None)
    return Request("POST", _task(task_id, "reopen"), body=body, scoped=True)


def hurry(task_id: str, reason: str | None = None) -> Request:
    """Offer a task at once that pauses between attempts (``hurry``)."""
    return Request("POST", _task(task_id, "hurry"), body=_present(reason=reason), scoped=True)


def post_message(task_id: str, *texts: str, data: Any = None) -> Request:
    """Append one message, of one or more texts, to the task's thread; ``data`` is the same for programs."""
    parts: list[dict[str, Any]] = [{"type": "text", "content": text} for text in texts]
    body = {"parts": parts if data is None else [*parts, {"type": "data", "data": data}]}
    return Request("POST", _task(task_id, "messages"), body=body, scoped=True, repeatable=False)


def list_messages(task_id: str, *, limit: int | None = None) -> Request:
    """Ask for the task's thread; ``limit``: for the newest of it."""
    query = () if limit is None else (("limit", str(limit)),)
    return Request("GET", _task(task_id, "messages"), query=query, scoped=True)


def list_orgs() -> Request:
    """List organisations."""
    return Request("GET", "/orgs")


def get_org(org: str) -> Request:
    """Ask for one organisation."""
    return Request("GET", f"/orgs/{_segment(org)}")


def create_org(slug: str, name: str) -> Request:
    """Create an organisation."""
    return Request("POST", "/orgs", body={"slug": slug, "name": name}, repeatable=False)


def patch_org(org: str, *, slug: str) -> Request:
    """Rename an organisation."""
    return Request("PATCH", f"/orgs/{_segment(org)}", body={"slug": slug})


def list_projects(org: str, *, counts: bool = True) -> Request:
    """List the projects of an organisation."""
    query = (("counts", "true"),) if counts else ()
    return Request("GET", f"/orgs/{_segment(org)}/projects", query=query)


def create_project(org: str, slug: str, name: str, description: str | None = None) -> Request:
    """Create a project."""
    body = _present(slug=slug, name=name, description=description)
    return Request("POST", f"/orgs/{_segment(org)}/projects", body=body, repeatable=False)


def get_project(org: str, project: str) -> Request:
    """Ask for one project."""
    return Request("GET", f"/orgs/{_segment(org)}/projects/{_segment(project)}")


def patch_project(org: str, project: str, *, slug: str | None = None, name: str | None = None) -> Request:
    """Rename a project."""
    body = _present(slug=slug, name=name)
    return Request("PATCH", f"/orgs/{_segment(org)}/projects/{_segment(project)}", body=body)


# --- calls of the extension -----------------------------------------------------------------------------------------


def me() -> Request:
    """Ask whom the service takes us for, and what we may do (``auth.me``)."""
    return Request("GET", "/auth/me")


def start(
    task_id: str, *, token: int, runner: str, lease_s: float | None = None, message: str | None = None
) -> Request:
    """Begin the attempt that ``token`` names; ``message`` goes onto the thread."""
    body = _present(fencing_token=token, runner=runner, lease_duration=_ms(lease_s), message=message)
    return Request("POST", _task(task_id, "start"), body=body, scoped=True, leased=True)


def renew(task_id: str, *, token: int, lease_s: float | None = None, message: str | None = None) -> Request:
    """Extend the lease from now."""
    body = _present(fencing_token=token, lease_duration=_ms(lease_s), message=message)
    return Request("POST", _task(task_id, "renew"), body=body, scoped=True, leased=True)


def release(
    task_id: str, *, token: int, counted: bool = False, delay_s: float = 0.0, reason: str | None = None
) -> Request:
    """Give the claim back; the task waits ``delay_s`` before it can be claimed again."""
    body = _present(fencing_token=token, counted=counted, delay_ms=_ms(delay_s), reason=reason)
    return Request("POST", _task(task_id, "release"), body=body, scoped=True, leased=True)


def seal(task_id: str, digest: str, *, token: int | None = None) -> Request:
    """Note that a sealed message is the content of the task (``seals``); without a token: of one that ended."""
    body = _present(fencing_token=token, digest=digest)
    return Request("POST", _task(task_id, "seal"), body=body, scoped=True, leased=token is not None)


def post_log(task_id: str, text: str, *, token: int, meta: Mapping[str, Any] | None = None) -> Request:
    """Append a text of kind ``log`` to the task's thread as the attempt that ``token`` names (``messages.fenced``)."""
    body = _present(parts=[{"type": "text", "content": text}], kind="log", fencing_token=token, meta=meta)
    return Request("POST", _task(task_id, "messages"), body=body, scoped=True, repeatable=False, leased=True)


def bounce(task_id: str, note: str) -> Request:
    """Send a task in review back to pending with a note for its next attempt (``review``)."""
    return Request("POST", _task(task_id, "bounce"), body={"note": note}, scoped=True, repeatable=False)


def fail_many(items: Sequence[tuple[int, str]]) -> Request:
    """Fail pending tasks whose dependencies ended badly: (number, reason), at most FAILURES_MAX (``fail.many``)."""
    body = {"items": [{"id": ident, "reason": reason} for ident, reason in items]}
    return Request("POST", "/tasks/fail", body=body, scoped=True)


def list_deliveries(**filters: Any) -> Request:
    """List deliveries (``deliveries``). ``filters``: task, state, channel, limit; None is left out."""
    query = tuple((key, _query_value(value)) for key, value in filters.items() if value is not None)
    return Request("GET", "/deliveries", query=query, scoped=True)


def take_deliveries(channels: Sequence[str], *, lease_s: float, limit: int) -> Request:
    """Take deliveries that are due. What a lost answer took is due again when its lease is over."""
    body = {"channels": list(channels), "lease_duration": _ms(lease_s), "limit": limit}
    return Request("POST", "/deliveries/take", body=body, scoped=True, repeatable=False)


def report_delivery(
    delivery_id: str,
    *,
    token: int,
    outcome: str,
    delay_s: float = 0.0,
    error: str | None = None,
    counted: bool = True,
) -> Request:
    """Say what became of a delivery: delivered, failed, empty, or retry after ``delay_s``."""
    body = _present(token=token, outcome=outcome, delay_ms=_ms(delay_s), error=error, counted=counted)
    return Request("POST", f"/deliveries/{_segment(delivery_id)}/report", body=body, scoped=True)


def resend_delivery(delivery_id: str) -> Request:
    """Make a delivery due now, with all its tries before it."""
    return Request("POST", f"/deliveries/{_segment(delivery_id)}/resend", body={}, scoped=True)


def tools(profile: str) -> Request:
    """Ask what tools there are in a profile."""
    return Request("GET", "/tools", query=(("profile", profile),))


def tool(name: str, arguments: Mapping[str, Any]) -> Request:
    """Run one of the Task Tools; most of them may be repeated, so a call that may not carries an idempotency key.

    claim_next may wait for minutes.
    """
    return Request("POST", f"/tools/{_segment(name)}", body=dict(arguments), repeatable=False)


# --- pieces ---------------------------------------------------------------------------------------------------------


def _segment(value: str) -> str:
    # A dot is legal in a path, but "." and ".." would be resolved by what stands between us and the service.
    return quote(value, safe="").replace(".", "%2E") if value.strip(".") == "" else quote(value, safe="")


def _task(task_id: str, verb: str = "") -> str:
    return f"/tasks/{_segment(task_id)}/{verb}" if verb else f"/tasks/{_segment(task_id)}"


def _present(**fields: Any) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _query_value(value: Any) -> str:
    if isinstance(value, list | tuple | set | frozenset):
        return ",".join(str(item) for item in value)
    return str(value)


def _header(value: str) -> str:
    return "".join(char for char in value if char.isprintable()).strip()
