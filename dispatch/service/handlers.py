"""What each route does: read the fields, run the use case, write the objects.

``ROUTES`` is the table of the whole REST face: shape of the path -> method ->
(handler, largest body in bytes).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import dispatch
from dispatch import metrics
from dispatch.errors import InvalidInputError, NotFoundError, TaskError
from dispatch.service import (
    delivery_handlers,
    dependencies,
    fields,
    graph_handlers,
    leases,
    messages,
    moves,
    results,
    review,
    review_handlers,
    steering_handlers,
    strict,
    tasks,
    tenant_handlers,
    thread_handlers,
    wire,
)
from dispatch.service.access import agent_uuid
from dispatch.service.rows import Ref, Scope, fetch
from dispatch.service.tools.registry import TOOLS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from dispatch.ats.model import Actor
    from dispatch.service.access import Caller
    from dispatch.service.store import Store, Tx
    from dispatch.service.tools.model import Toolbox

EXTENSIONS: Final = (
    "fencing",
    "start",
    "renew",
    "release",
    "claim.many",
    "not_before",
    "events.since",
    "events.thin",
    "fields",
    "auth.me",
    "claimable",
    "tools",
    "depends_on",
    "fail.many",
    "dependencies",
    "seals",
    "messages.fenced",
    "deliveries",
    "steering",
    "hurry",
    "review",
    "after",
)


@dataclass(frozen=True, slots=True)
class Context:
    """What every handler needs."""

    store: Store
    default_lease_ms: int
    toolbox: Toolbox
    origins: frozenset[str] = frozenset()
    """Web sites whose pages may call, where there are keys."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request, read as far as every route needs it."""

    context: Context
    caller: Caller
    scope: Scope | None
    names: tuple[str, ...]
    """The variable parts of the path."""
    body: Any
    query: list[tuple[str, str]]

    @property
    def actor(self) -> Actor:
        """Who does it."""
        return self.caller.actor

    @property
    def within(self) -> frozenset[int] | None:
        """The projects that the caller may see, None for all."""
        return self.caller.projects

    @property
    def store(self) -> Store:
        """The database."""
        return self.context.store

    def ref(self) -> Ref:
        """Return the task that the path names. Raises NotFoundError when it cannot be a task."""
        ident = strict.task_ident(self.names[0])
        if ident is None:
            raise NotFoundError(f"There is no task {self.names[0][:80]!r}; a task is named by its number or its UUID.")
        return Ref(ident, self.scope, self.within)

    def report_ref(self, token: int | None) -> Ref:
        """Return the task that the path names, for a call that is made under its fencing token."""
        return replace(self.ref(), reporter=self.caller.reporter(token))


Answer = tuple[int, str]


def _envelope(row: Any, now_ms: int) -> str:
    return f'{{"task":{wire.task_json(row, now_ms)}}}'


def _granted(
    granted: leases.Granted,
    now_ms: int,
    results: list[dict[str, Any]] | None = None,
    said: dict[str, Any] | None = None,
) -> Answer:
    lease = f'{{"fencing_token":{granted.task.fencing_token},"ttl_ms":{granted.ttl_ms}}}'
    more = f',"dependencies":{wire.dumps(results)}' if results else ""
    more += f',"review":{wire.dumps(said)}' if said else ""
    return 200, f'{{"task":{wire.task_json(granted.task, now_ms)},"lease":{lease}{more}}}'


async def health(call: Call) -> Answer:
    """GET /health."""
    return 200, wire.dumps(
        {
            "status": "ok",
            "timestamp": wire.iso(call.store.clock.now_ms()),
            "service": "dispatch",
            "version": dispatch.__version__,
            "extensions": EXTENSIONS,
        }
    )


async def stats(call: Call) -> Answer:
    """GET /tasks/stats."""
    strict.parse_query(call.query, {})
    return 200, wire.dumps({"stats": await call.store.read(lambda tx: tasks.stats(tx, call.within))})


async def create(call: Call) -> Answer:
    """POST T."""
    found = strict.parse_object(call.body, fields.CREATE, required=("title",))
    found["description"] = found.get("description") or ""
    wish = dependencies.asked(found)
    new = tasks.NewTask(**found)
    row = await call.store.write(lambda tx: tasks.create(tx, call.scope, call.actor, new, call.within, wish))
    return 201, _envelope(row, row.created_at)


async def list_tasks(call: Call) -> Answer:
    """GET T."""
    found = strict.parse_query(call.query, fields.LIST)
    exact = found.pop("priority", None)
    if exact is not None:
        if "min_priority" in found or "max_priority" in found:
            raise InvalidInputError("Give priority, or min_priority and max_priority, not both.")
        found["min_priority"] = found["max_priority"] = exact
    if "after" in found and found.get("sort_by", "created_at") != "created_at":
        raise InvalidInputError("after goes with lists by creation only: leave sort_by out, or page by offset.")
    if found.pop("claimable", False):
        found["claimable_by"] = agent_uuid(call.actor.type, call.actor.id)
    if "sort_dir" in found:
        found["descending"] = found.pop("sort_dir")
    query = tasks.Query(scope=call.scope, within=call.within, **found)
    now_ms = call.store.clock.now_ms()

    def work(tx: Tx) -> list[str]:
        rows = tasks.find(tx, query)
        if query.fields is None:
            return [wire.task_json(row, now_ms) for row in rows]
        return [wire.partial_task_json(row, query.fields, now_ms) for row in rows]

    objects = await call.store.read(work)
    return 200, f'{{"tasks":[{",".join(objects)}],"count":{len(objects)}}}'


async def get(call: Call) -> Answer:
    """GET T/{id}: the task with its newest messages."""
    ref = call.ref()
    names: tuple[str, ...] | None = strict.parse_query(call.query, {"fields": fields.LIST["fields"]}).get("fields")

    def work(tx: Tx) -> str:
        row = fetch(tx, ref)
        if names is not None:
            return wire.partial_task_json(row, names, tx.now_ms)
        thread = ",".join(wire.message_json(m) for m in messages.thread(tx, row.id, fields.EMBEDDED_MESSAGES_MAX))
        return f'{wire.task_json(row, tx.now_ms)[:-1]},"messages":[{thread}]}}'

    return 200, f'{{"task":{await call.store.read(work)}}}'


async def patch(call: Call) -> Answer:
    """PATCH T/{id}."""
    ref = call.ref()
    changes = strict.parse_object(call.body, fields.PATCH)
    if not changes:
        raise InvalidInputError(f"Nothing to change was given; known fields are {', '.join(sorted(fields.PATCH))}.")
    status = changes.pop("status", None)
    wish = dependencies.asked(changes)
    if "description" in changes:
        changes["description"] = changes["description"] or ""
    lease_ms = call.context.default_lease_ms
    row = await call.store.write(
        lambda tx: tasks.patch(tx, ref, call.actor, fields=changes, status=status, default_lease_ms=lease_ms, wish=wish)
    )
    return 200, _envelope(row, call.store.clock.now_ms())


async def claim(call: Call) -> Answer:
    """POST T/{id}/claim."""
    ref = call.ref()
    found = strict.parse_object(call.body, fields.CLAIM)
    lease_ms = found.get("lease_duration", call.context.default_lease_ms)
    granted = await call.store.write(
        lambda tx: leases.claim(tx, ref, call.actor, lease_ms=lease_ms, claim_id=found.get("claim_id"))
    )
    return _granted(granted, call.store.clock.now_ms())


async def claim_many(call: Call) -> Answer:
    """POST T/claim: the fleet's bulk form; tasks come thin, refusals stand in their place."""
    found = strict.parse_object(call.body, fields.CLAIM_MANY, required=("ids", "claim_id"))
    ids = found["ids"]
    lease_ms = found.get("lease_duration") or call.context.default_lease_ms
    refs = [Ref(ident, call.scope, call.within) for ident in ids]
    results = await call.store.write(
        lambda tx: leases.claim_many(tx, refs, call.actor, lease_ms=lease_ms, claim_id=found["claim_id"])
    )
    return 200, f'{{"claims":[{",".join(map(_claimed, ids, results))}]}}'


def _claimed(ident: int, result: leases.Granted | TaskError) -> str:
    if isinstance(result, TaskError):
        return wire.dumps({"id": ident, **result.as_body()})
    lease = f'{{"fencing_token":{result.task.fencing_token},"ttl_ms":{result.ttl_ms}}}'
    return f'{{"id":{ident},"task":{wire.thin_task_json(result.task)},"lease":{lease}}}'


async def start(call: Call) -> Answer:
    """POST T/{id}/start."""
    found = strict.parse_object(call.body, fields.START, required=("fencing_token", "runner"))
    ref = call.report_ref(found["fencing_token"])
    granted = await call.store.write(
        lambda tx: leases.start(
            tx,
            ref,
            call.actor,
            token=found["fencing_token"],
            runner=found["runner"],
            lease_ms=found.get("lease_duration"),
            message=found.get("message"),
        )
    )
    if granted.task.attempts == 1:
        metrics.observe("dispatch_pickup_seconds", (call.store.clock.now_ms() - granted.task.created_at) / 1000)
    handed = said = None
    if granted.task.depends_on is not None:
        # Outputs may be large: they are read beside the writer, and a repeated start is answered alike.
        handed = await call.store.read(lambda tx: results.of_dependencies(tx, granted.task.id))
    if granted.task.outputs is not None:
        # Only a task that was in review and came back has outputs before it is done.
        said = await call.store.read(lambda tx: review.of_task(tx, granted.task.id))
    return _granted(granted, call.store.clock.now_ms(), handed, said)


async def renew(call: Call) -> Answer:
    """POST T/{id}/renew."""
    found = strict.parse_object(call.body, fields.RENEW, required=("fencing_token",))
    ref = call.report_ref(found["fencing_token"])
    granted = await call.store.write(
        lambda tx: leases.renew(
            tx,
            ref,
            call.actor,
            token=found["fencing_token"],
            lease_ms=found.get("lease_duration"),
            message=found.get("message"),
        )
    )
    return _granted(granted, call.store.clock.now_ms())


async def release(call: Call) -> Answer:
    """POST T/{id}/release."""
    found = strict.parse_object(call.body, fields.RELEASE, required=("fencing_token",))
    ref = call.report_ref(found["fencing_token"])
    token = found.pop("fencing_token")
    row = await call.store.write(lambda tx: leases.release(tx, ref, call.actor, token=token, **found))
    return 200, _envelope(row, call.store.clock.now_ms())


async def fail(call: Call) -> Answer:
    """POST T/{id}/fail."""
    found = strict.parse_object(call.body, fields.FAIL)
    ref = call.report_ref(found.get("fencing_token"))
    row = await call.store.write(
        lambda tx: moves.fail(tx, ref, call.actor, reason=found.get("reason"), token=found.get("fencing_token"))
    )
    return 200, _envelope(row, call.store.clock.now_ms())


def _with_reason(move: Callable[..., Any]) -> Callable[[Call], Awaitable[Answer]]:
    async def handle(call: Call) -> Answer:
        ref = call.ref()
        reason = strict.parse_object(call.body, fields.WITH_REASON).get("reason")
        row = await call.store.write(lambda tx: move(tx, ref, call.actor, reason=reason))
        return 200, _envelope(row, call.store.clock.now_ms())

    return handle


async def list_tools(call: Call) -> Answer:
    """GET /tools: what the Task Tools are, as MCP tells it."""
    profile = strict.parse_query(call.query, {"profile": strict.text(40)}).get("profile", "default")
    return 200, wire.dumps({"tools": await call.context.toolbox.definitions(profile)})


async def call_tool(call: Call) -> Answer:
    """POST /tools/{name}: one tool, its arguments in the body."""
    if not isinstance(call.body, dict):
        raise InvalidInputError("The body must be a JSON object with the tool's arguments.")
    name, caller = call.names[0], call.caller
    arguments = call.body
    if name in TOOLS and "agent_id" in TOOLS[name].params and "agent_id" not in arguments:
        # Over REST the caller is known; an agent's UUID need not be worked out first.
        arguments = {**arguments, "agent_id": agent_uuid(caller.actor.type, caller.actor.id)}
    return 200, wire.dumps(await call.context.toolbox.call(name, arguments, caller))


def _post(handler: Callable[[Call], Awaitable[Answer]], bytes_max: int = fields.SMALL_BYTES_MAX) -> dict[str, Any]:
    return {"POST": (handler, bytes_max)}


ROUTES: Final[Mapping[tuple[str, ...], dict[str, tuple[Callable[[Call], Awaitable[Answer]], int]]]] = {
    ("health",): {"GET": (health, 0)},
    ("auth", "me"): {"GET": (tenant_handlers.me, 0)},
    ("tasks", "stats"): {"GET": (stats, 0)},
    ("tasks",): {"GET": (list_tasks, 0), "POST": (create, fields.TASK_BYTES_MAX)},
    ("tasks", "claim"): _post(claim_many),
    ("tasks", "fail"): _post(graph_handlers.fail_many, fields.FAILURES_BYTES_MAX),
    ("tasks", "*"): {"GET": (get, 0), "PATCH": (patch, fields.TASK_BYTES_MAX)},
    ("tasks", "*", "claim"): _post(claim),
    ("tasks", "*", "start"): _post(start),
    ("tasks", "*", "renew"): _post(renew),
    ("tasks", "*", "release"): _post(release),
    ("tasks", "*", "seal"): _post(thread_handlers.seal),
    ("tasks", "*", "complete"): _post(review_handlers.complete, fields.OUTPUTS_BODY_BYTES_MAX),
    ("tasks", "*", "fail"): _post(fail),
    ("tasks", "*", "bounce"): _post(review_handlers.bounce),
    ("tasks", "*", "cancel"): _post(_with_reason(moves.cancel)),
    ("tasks", "*", "reject"): _post(_with_reason(moves.reject)),
    ("tasks", "*", "reopen"): _post(graph_handlers.reopen),
    ("tasks", "*", "hurry"): _post(_with_reason(moves.hurry)),
    ("tasks", "*", "messages"): {
        "GET": (thread_handlers.list_messages, 0),
        "POST": (thread_handlers.post_message, fields.SMALL_BYTES_MAX),
    },
    **delivery_handlers.ROUTES,
    **steering_handlers.ROUTES,
    ("tools",): {"GET": (list_tools, 0)},
    ("tools", "*"): _post(call_tool, fields.TASK_BYTES_MAX),
    ("orgs",): {
        "GET": (tenant_handlers.list_organizations, 0),
        "POST": (tenant_handlers.create_organization, fields.SMALL_BYTES_MAX),
    },
    ("orgs", "*"): {
        "GET": (tenant_handlers.get_organization, 0),
        "PATCH": (tenant_handlers.patch_organization, fields.SMALL_BYTES_MAX),
    },
    ("orgs", "*", "projects"): {
        "GET": (tenant_handlers.list_projects, 0),
        "POST": (tenant_handlers.create_project, fields.SMALL_BYTES_MAX),
    },
    ("orgs", "*", "projects", "*"): {
        "GET": (tenant_handlers.get_project, 0),
        "PATCH": (tenant_handlers.patch_project, fields.SMALL_BYTES_MAX),
    },
}
