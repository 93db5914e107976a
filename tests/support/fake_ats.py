"""A foreign ATS on a real socket, with switches for everything a client must survive.

It runs an aiohttp server in a thread of its own. ``Switches`` sets how the
service behaves, ``fault`` makes the next matching calls go wrong, and
``advance`` moves the clock that its leases run on.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from aiohttp import WSMsgType, web

TERMINAL = {"completed", "failed", "cancelled", "rejected"}
EXTENSIONS = [
    "fencing",
    "start",
    "renew",
    "release",
    "claim.many",
    "claimable",
    "not_before",
    "events.since",
    "events.thin",
    "fields",
]


@dataclass
class Switches:
    """How the service behaves; may be changed at any time."""

    fencing: bool = False
    reclaim_extends: bool = True
    pending_by_patch: bool = True
    complete_by_stranger: bool = False
    fail_from_pending: bool = False
    envelope: bool = True
    embed_messages: bool = True
    """A task that is asked for has its thread in it."""
    page_size: int = 1000
    lease_s_max: float = 86_400.0
    greet: bool = True
    confirm: bool = True
    pong: bool = True
    ws_silent: bool = False
    """No frame leaves the service any more, answers to pings included: a half-open connection."""
    ws_drop: bool = False
    ws_duplicate: int = 1
    ws_reorder: bool = False
    """Hold each event back until the next one has been sent."""


@dataclass
class Fault:
    """What happens to the next ``times`` calls whose method and path contain ``match``."""

    kind: str
    match: str = ""
    times: int = 1
    status: int = 502
    body: bytes = b"<html>Bad gateway</html>"
    headers: dict[str, str] = field(default_factory=dict)


class RefusedError(Exception):
    """The service refuses: status, sentence, facts."""

    def __init__(self, status: int, sentence: str, /, **facts: Any) -> None:
        super().__init__(sentence)
        self.status, self.facts = status, facts


class FakeAts:
    """Start it with ``with FakeAts() as ats:``; ``ats.url`` is its base URL."""

    def __init__(self, **switches: Any) -> None:
        self.switches = Switches(**switches)
        self.tasks: dict[int, dict[str, Any]] = {}
        self.calls: list[tuple[str, str, dict[str, str], Any]] = []
        self.faults: list[Fault] = []
        self.connections: set[int] = set()
        self.subscriptions: list[dict[str, Any]] = []
        self.port = 0
        self._clock_ahead_s = 0.0
        self._seq = 0
        self._grants: dict[tuple[int, str], dict[str, Any]] = {}
        self._sockets: list[tuple[web.WebSocketResponse, dict[str, Any]]] = []
        self._held_back: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # --- life -------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, on the same port as before if it was started before."""
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(60)

    def stop(self) -> None:
        """Close every connection and the port."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join(60)
            self._loop = None

    def _serve(self, ready: threading.Event) -> None:
        loop = self._loop
        assert loop is not None
        try:
            loop.run_until_complete(self._main(ready))
        finally:
            loop.close()

    async def _main(self, ready: threading.Event) -> None:
        self._stopping = asyncio.Event()
        app = web.Application(client_max_size=32 * 1024 * 1024)
        app.router.add_get("/ws", self._ws)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        ready.set()
        await self._stopping.wait()
        for socket, _ in list(self._sockets):
            with contextlib.suppress(Exception):
                await asyncio.wait_for(socket.close(code=1012), 0.2)
        await runner.cleanup()

    # --- control from tests -----------------------------------------------------------------------------------------

    def fault(self, kind: str, match: str = "", **more: Any) -> None:
        """Let the next calls go wrong. Kinds: answer, truncate, wrong_length, lose, hang_up, trickle, trickle_head."""
        self.faults.append(Fault(kind, match, **more))

    def advance(self, seconds: float) -> None:
        """Move the service's clock and expire leases."""
        self._clock_ahead_s += seconds
        self.run(self._expire())

    def run(self, coroutine: Any) -> Any:
        """Run something in the service's loop and wait for it."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def send_frame(self, frame: str | bytes) -> None:
        """Send a raw frame to every subscriber."""

        async def send() -> None:
            for socket, _ in self._sockets:
                await (socket.send_str(frame) if isinstance(frame, str) else socket.send_bytes(frame))

        self.run(send())

    def send_bytes_raw(self, data: bytes) -> None:
        """Put bytes onto every subscriber's connection, past the WebSocket layer."""

        async def send() -> None:
            for socket, _ in self._sockets:
                socket._req.transport.write(data)

        self.run(send())

    def drop_sockets(self) -> None:
        """Cut every WebSocket off without a closing handshake."""

        async def drop() -> None:
            for socket, _ in self._sockets:
                socket._req.transport.abort()

        self.run(drop())

    def add(self, **fields: Any) -> dict[str, Any]:
        """Create a task as if somebody else had done it, with its event."""

        async def create() -> dict[str, Any]:
            return copy.deepcopy(await self._create({"title": "a task", **fields}))

        return self.run(create())

    def emit(self, verb: str, task_id: int) -> None:
        """Send an event about a task."""
        self.run(self._emit(verb, self.tasks[task_id]))

    # --- HTTP -------------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Return the service's wall clock, seconds since 1970."""
        return time.time() + self._clock_ahead_s

    def _time(self, at: float) -> str:
        return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.connections.add(id(request.transport))
        raw = await request.read()
        body = json.loads(raw) if raw else {}
        path = request.path
        if path.startswith("/orgs/") and "/projects/" in path and path.count("/") > 4:
            path = "/" + path.split("/", 5)[5]
        actor = {key: request.headers.get(f"X-Actor-{key}", "") for key in ("Type", "ID", "Name")}
        self.calls.append((request.method, request.path_qs, {**actor, **dict(request.headers)}, body))
        fault = next((f for f in self.faults if f.times > 0 and f.match in f"{request.method} {request.path_qs}"), None)
        if fault is not None:
            fault.times -= 1
            if fault.kind == "hang_up":
                request.transport.abort()
                return web.Response()
            if fault.kind == "answer":
                return web.Response(status=fault.status, body=fault.body, headers=fault.headers)
        await self._expire()
        try:
            status, answer = 200, await self._route(request.method, path, dict(request.query), body, actor)
        except RefusedError as exc:
            status, answer = exc.status, {"error": str(exc), **exc.facts}
        text = json.dumps(answer).encode()
        if fault is not None:
            return await self._broken(request, fault, text)
        date = datetime.fromtimestamp(self.now(), UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        return web.Response(status=status, body=text, content_type="application/json", headers={"Date": date})

    async def _broken(self, request: web.Request, fault: Fault, text: bytes) -> web.StreamResponse:
        transport = request.transport
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        if fault.kind == "truncate":
            transport.write(head % len(text) + text[: len(text) // 2])
        elif fault.kind == "wrong_length":
            transport.write(head % (len(text) - 5) + text)
        elif fault.kind in ("trickle", "trickle_head"):
            whole = head % len(text) + text
            sure = 0 if fault.kind == "trickle_head" else len(head % len(text))
            transport.write(whole[:sure])
            for byte in whole[sure:]:
                if transport.is_closing():
                    break
                transport.write(bytes([byte]))
                await asyncio.sleep(0.05)
        # "lose": the call has been done, its answer never leaves.
        await asyncio.sleep(0.01)
        transport.abort() if fault.kind == "lose" else transport.close()
        return web.Response()

    async def _route(self, method: str, path: str, query: dict[str, str], body: Any, actor: dict[str, str]) -> Any:
        parts = path.strip("/").split("/")
        if path == "/health":
            announced = {"extensions": EXTENSIONS} if self.switches.fencing else {}
            return {"status": "ok", "timestamp": self._time(self.now()), **announced}
        if path == "/tasks/stats":
            return self._stats()
        if parts[0] != "tasks":
            raise RefusedError(404, f"There is nothing at {path}.", code="NOT_FOUND")
        if len(parts) == 1:
            return self._wrap(await self._create(body, actor)) if method == "POST" else self._list(query)
        task = self.tasks.get(int(parts[1])) if parts[1].isdigit() else None
        if task is None:
            raise RefusedError(404, f"There is no task {parts[1]}.", code="NOT_FOUND")
        if len(parts) == 2:
            found = await self._patch(task, body) if method == "PATCH" else task
            hidden = () if self.switches.embed_messages else ("messages",)
            return self._wrap({key: value for key, value in found.items() if key not in hidden})
        if parts[2] == "messages":
            return await self._message(task, body, actor) if method == "POST" else {"messages": task["messages"]}
        return await self._verb(task, parts[2], body, actor)

    def _wrap(self, task: dict[str, Any]) -> Any:
        return {"task": task} if self.switches.envelope else task

    def _stats(self) -> Any:
        by_status: dict[str, int] = {}
        by_channel: dict[str, int] = {}
        for task in self.tasks.values():
            by_status[task["status"]] = by_status.get(task["status"], 0) + 1
            by_channel[task["channel"]] = by_channel.get(task["channel"], 0) + 1
        return {"stats": {"total": len(self.tasks), "by_status": by_status, "by_channel": by_channel}}

    def _list(self, query: dict[str, str]) -> Any:
        rows = list(self.tasks.values())
        for key in ("status", "channel", "type", "assignee_id"):
            if key in query:
                rows = [row for row in rows if str(row[key]) in query[key].split(",")]
        if "search" in query:
            rows = [row for row in rows if query["search"].lower() in row["title"].lower()]
        if "min_priority" in query:
            rows = [row for row in rows if row["priority"] >= int(query["min_priority"])]
        if query.get("sort_by") in ("priority", "title", "created_at"):
            rows.sort(key=lambda row: row[query["sort_by"]], reverse=query.get("sort_dir") == "desc")
        offset = int(query.get("offset", 0))
        limit = min(int(query.get("limit", self.switches.page_size)), self.switches.page_size)
        return {"tasks": rows[offset : offset + limit], "count": len(rows)}

    async def _create(self, body: dict[str, Any], actor: dict[str, str] | None = None) -> dict[str, Any]:
        if not isinstance(body.get("title"), str) or not body["title"]:
            raise RefusedError(400, "title must be a text.", code="INVALID")
        at = self._time(self.now())
        task = {
            "id": 100 + len(self.tasks),
            "title": body["title"],
            "description": body.get("description", ""),
            "type": body.get("type", "task"),
            "channel": body.get("channel", "default"),
            "priority": body.get("priority", 5),
            "status": body.get("status", "pending"),
            "payload": body.get("payload"),
            "outputs": None,
            "messages": [],
            "source_name": (actor or {}).get("Name", ""),
            "assignee_id": None,
            "assignee_name": None,
            "lease_expires": None,
            "created_at": at,
            "updated_at": at,
        }
        if self.switches.fencing:
            task |= {"fencing_token": 0, "attempts": 0, "lease_losses": 0, "runner": None, "not_before": None}
        self.tasks[task["id"]] = task
        await self._emit("created", task)
        return task

    async def _patch(self, task: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
        if body.get("status") == "pending":
            if not self.switches.pending_by_patch:
                raise RefusedError(409, "status cannot be set.")
            self._free(task, "pending")
        task |= {key: value for key, value in body.items() if key != "status"}
        await self._emit("updated", task)
        return task

    async def _message(self, task: dict[str, Any], body: dict[str, Any], actor: dict[str, str]) -> Any:
        message = {"id": len(task["messages"]) + 1, "parts": body.get("parts"), "created_at": self._time(self.now())}
        message |= {"actor_name": actor["Name"], "actor_type": actor["Type"]}
        task["messages"].append(message)
        await self._emit("message", task)
        return {"message": message}

    # --- the lifecycle ----------------------------------------------------------------------------------------------

    def _free(self, task: dict[str, Any], status: str) -> None:
        task |= {"status": status, "lease_expires": None, "updated_at": self._time(self.now())}
        task.pop("_until", None)
        if status == "pending":
            task |= {"assignee_id": None, "assignee_name": None}

    async def _expire(self) -> None:
        for task in self.tasks.values():
            if task["status"] == "in_progress" and task.get("_until", float("inf")) < self.now():
                self._free(task, "pending")
                await self._emit("lease_expired", task)

    async def _verb(self, task: dict[str, Any], verb: str, body: dict[str, Any], actor: dict[str, str]) -> Any:
        if "fencing_token" in body and self.switches.fencing:
            done = (verb, body) == task.get("_done")
            current = task["status"] == "in_progress" and body["fencing_token"] == task["fencing_token"]
            if done:
                return {"task": self._shown(task)}
            if not current:
                raise RefusedError(409, "The fencing token is stale.", code="STALE_LEASE", status=task["status"])
        do = getattr(self, f"_do_{verb}", None)
        if do is None:
            raise RefusedError(404, f"There is no call {verb}.")
        before = task["status"]
        answer = do(task, body, actor)
        if verb in ("complete", "fail"):
            task["_done"] = (verb, body)
        if task["status"] != before or verb == "start":
            await self._emit(_EVENT.get(verb, verb), task)
        return answer

    def _shown(self, task: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in task.items() if not key.startswith("_")}

    def _lease(self, task: dict[str, Any], body: dict[str, Any], actor: dict[str, str]) -> Any:
        ttl_s = min(body.get("lease_duration", 60_000) / 1000, self.switches.lease_s_max)
        until = self.now() + ttl_s
        task |= {"status": "in_progress", "_until": until, "lease_expires": self._time(until)}
        task |= {"assignee_id": actor["ID"], "assignee_name": actor["Name"]}
        shown = self._shown(task)
        if not self.switches.fencing:
            return self._wrap(shown)
        return {"task": shown, "lease": {"fencing_token": task["fencing_token"], "ttl_ms": round(ttl_s * 1000)}}

    def _do_claim(self, task: dict[str, Any], body: dict[str, Any], actor: dict[str, str]) -> Any:
        if task["status"] == "in_progress":
            if task["assignee_id"] == actor["ID"] and self.switches.reclaim_extends:
                return self._lease(task, body, actor)
            raise RefusedError(409, "The task is already claimed (in_progress).", code="LEASE_HELD")
        if task["status"] != "pending":
            raise RefusedError(
                409, f"The task is in {task['status']} status.", code="ILLEGAL_MOVE", status=task["status"]
            )
        if self.switches.fencing:
            task["fencing_token"] += 1
        return self._lease(task, body, actor)

    def _do_start(self, task: dict[str, Any], body: dict[str, Any], actor: dict[str, str]) -> Any:
        if task["runner"] not in (None, body["runner"]):
            raise RefusedError(409, "Another runner has started it.", code="STALE_LEASE", status=task["status"])
        if task["runner"] is None:
            task |= {"runner": body["runner"], "attempts": task["attempts"] + 1}
        return self._lease(task, body, actor)

    def _do_renew(self, task: dict[str, Any], body: dict[str, Any], actor: dict[str, str]) -> Any:
        return self._lease(task, body, actor)

    def _do_release(self, task: dict[str, Any], body: dict[str, Any], actor: dict[str, str]) -> Any:
        if not body.get("counted") and task["runner"]:
            task["attempts"] -= 1
        task |= {"runner": None, "reason": body.get("reason"), "_delay_ms": body.get("delay_ms", 0)}
        self._free(task, "pending")
        return {"task": self._shown(task)}

    def _ended(self, task: dict[str, Any], actor: dict[str, str], *sources: str) -> None:
        if task["status"] not in sources:
            raise RefusedError(
                409, f"The task is in {task['status']} status.", code="ILLEGAL_MOVE", status=task["status"]
            )
        stranger = task["assignee_id"] not in (None, actor["ID"]) and actor["Type"] == "agent"
        if stranger and not self.switches.complete_by_stranger:
            raise RefusedError(409, "Somebody else holds the task.", code="LEASE_HELD")

    def _do_complete(self, task: dict[str, Any], body: dict[str, Any], actor: dict[str, str]) -> Any:
        self._ended(task, actor, "in_progress")
        task["outputs"] = body.get("outputs")
        self._free(task, "completed")
        return {"task": self._shown(task)}

    def _do_fail(self, task: dict[str, Any], body: dict[str, Any], actor: dict[str, str]) -> Any:
        self._ended(task, actor, "in_progress", *(["pending"] if self.switches.fail_from_pending else []))
        task["reason"] = body.get("reason")
        self._free(task, "failed")
        return {"task": self._shown(task)}

    def _do_cancel(self, task: dict[str, Any], body: dict[str, Any], actor: dict[str, str]) -> Any:
        if task["status"] in TERMINAL:
            raise RefusedError(
                409, f"The task is in {task['status']} status.", code="ILLEGAL_MOVE", status=task["status"]
            )
        self._free(task, "cancelled")
        return {"task": self._shown(task)}

    def _do_reject(self, task: dict[str, Any], body: dict[str, Any], actor: dict[str, str]) -> Any:
        self._ended(task, actor, "pending")
        task["reason"] = body.get("reason")
        self._free(task, "rejected")
        return {"task": self._shown(task)}

    def _do_reopen(self, task: dict[str, Any], body: dict[str, Any], actor: dict[str, str]) -> Any:
        if task["status"] not in TERMINAL:
            raise RefusedError(
                409, f"The task is in {task['status']} status.", code="ILLEGAL_MOVE", status=task["status"]
            )
        self._free(task, "pending")
        return {"task": self._shown(task)}

    # --- events -----------------------------------------------------------------------------------------------------

    async def _emit(self, verb: str, task: dict[str, Any]) -> None:
        self._seq += 1
        frame: dict[str, Any] = {"type": f"task.{verb}", "data": {"task": self._shown(task)}, "actor_name": "somebody"}
        if self.switches.fencing:
            frame |= {"seq": self._seq, "task_id": task["id"], "channel": task["channel"]}
        text = json.dumps(frame)
        if self.switches.ws_drop or self.switches.ws_silent:
            return
        texts = [text] * self.switches.ws_duplicate
        if self.switches.ws_reorder:
            held, self._held_back = self._held_back, text
            texts = [] if held is None else [text, held]
            if held is not None:
                self._held_back = None
        for socket, wanted in list(self._sockets):
            if not wanted.get("channels") or task["channel"] in wanted["channels"]:
                for one in texts:
                    with contextlib.suppress(ConnectionError):
                        await socket.send_str(one)

    async def _ws(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(request)
        if self.switches.greet:
            announced = {"extensions": EXTENSIONS} if self.switches.fencing else {}
            await socket.send_json({"type": "connected", **announced})
        entry: tuple[web.WebSocketResponse, dict[str, Any]] | None = None
        try:
            async for message in socket:
                if message.type is WSMsgType.PING and not self.switches.ws_silent:
                    await socket.pong(message.data)
                if message.type is not WSMsgType.TEXT or self.switches.ws_silent:
                    continue
                frame = json.loads(message.data)
                if frame.get("type") == "ping" and self.switches.pong:
                    await socket.send_json({"type": "pong"})
                if frame.get("type") == "subscribe":
                    self.subscriptions.append(frame)
                    entry = (socket, frame)
                    self._sockets.append(entry)
                    if self.switches.confirm:
                        seq = {"seq": self._seq} if self.switches.fencing else {}
                        await socket.send_json({"type": "subscribed", "id": frame.get("id"), **seq})
        finally:
            if entry is not None:
                self._sockets.remove(entry)
        return socket


_EVENT = {
    "claim": "claimed",
    "start": "started",
    "release": "released",
    "complete": "completed",
    "fail": "failed",
    "cancel": "cancelled",
    "reject": "rejected",
    "reopen": "reopened",
}
