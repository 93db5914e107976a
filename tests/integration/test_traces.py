"""Traces of real processes: one trace for each task, whoever tells of it, and no task waits for a collector."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from dispatch.core.trace_ids import link_of
from tests.support.canaries import Canaries
from tests.support.collector import Collector, Seen
from tests.support.processes import ROOT, eventually
from tests.support.sealing import trusting
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Iterator

CALLER = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
TRACEPARENT = f"00-{CALLER[0]}-{CALLER[1]}-01"
CODE = """
import os, sys
print({says!r} or os.environ.get("TRACEPARENT"))
sys.stdout.flush()
sys.stderr.write({groans!r})
sys.exit({exits}[int(os.environ["ATS_ATTEMPT"]) - 1])
"""


class Traced:
    """A fleet whose spans go to a collector."""

    def __init__(self) -> None:
        self.hidden = Canaries()
        self.collector = Collector()
        self.key = self.hidden.new("key of another collector")
        self.stack = Stack(
            {
                "DISPATCH_TRACES_URL": self.collector.url,
                "DISPATCH_TRACES_HEADERS": "X-Collector-Key=a%20key",
                "DISPATCH_ENV": "OTEL_EXPORTER_OTLP_HEADERS",
                # What somebody has set for other programs decides nothing here.
                "OTEL_EXPORTER_OTLP_HEADERS": f"authorization={self.key}",
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9",
                "OTEL_TRACES_SAMPLER": "always_off",
                "OTEL_SERVICE_NAME": "mine",
                "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
            }
        )
        _, senders = trusting(self.stack.directory / "data" / "keys", "alice")
        self.alice = senders["alice"]

    def orders(self, *exits: int, says: str = "", groans: str = "") -> dict[str, Any]:
        """Return what the child is to do, by attempt."""
        code = CODE.format(says=says, groans=groans, exits=list(exits))
        return {"tick": {"dir": str(self.stack.ticks), "code": code}}

    def call(self, path: str, body: Any, **headers: str) -> Any:
        """Post as somebody who traces, and return what is answered."""
        with closing(self.stack.connect()) as connection:
            sent = {"Content-Type": "application/json", "traceparent": TRACEPARENT, **headers}
            connection.request("POST", path, json.dumps(body), sent)
            answer = connection.getresponse().read().decode()
        return json.loads(answer.rpartition("data: ")[2])

    def spans_of(self, task: dict[str, Any], count: int) -> list[Seen]:
        """Wait for so many spans of a task and return them, in the order of their beginnings."""
        trace_id = UUID(task["uuid"]).hex

        def found() -> list[Seen] | None:
            spans = [span for span in self.collector.spans if span.trace_id == trace_id]
            return spans if len(spans) >= count else None

        return sorted(eventually(found, 10, f"{count} spans of {task['id']}"), key=lambda span: span.start_ns)


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    """One fleet for all tests here."""
    made = Traced()
    with made.collector:
        try:
            made.stack.start(1)
            yield made
            made.stack.close()
        finally:
            made.stack.abort()


def test_a_task_is_one_trace(traced: Traced) -> None:
    """Creation, two grants, two attempts and the end are one trace, with right parents, kinds and outcomes.

    Whoever created the task is linked; the child continues the trace.
    """
    body = {"title": "Count the sheep " + "z" * 300, "channel": "test", "payload": traced.orders(3, 0)}
    task = traced.call("/tasks", body, **{"X-Actor-Type": "human", "X-Actor-ID": "tester"})["task"]
    done = traced.stack.wait_task(task["id"])
    spans = traced.spans_of(task, 14)
    seen = {(span.name, span.attributes.get("dispatch.fencing_token", 0)): span for span in spans}
    assert len(seen) == len(spans) == 14
    create, end = seen["create", 0], seen["end", 0]
    assert (create.parent_id, create.kind, create.links) == ("", 4, (CALLER,))
    assert create.attributes["dispatch.task.title"] == body["title"][:200]
    assert (end.parent_id, end.attributes["dispatch.task.status"]) == (create.span_id, "completed")
    for token, outcome, code in ((1, "exit", 3), (2, "success", 0)):
        claim, enqueue = seen["claim", token], seen["enqueue dispatch", token]
        attempt, run = seen["attempt dispatch", token], seen["run", token]
        assert claim.parent_id == create.span_id
        assert (enqueue.parent_id, attempt.parent_id) == (claim.span_id, enqueue.span_id)
        assert {seen[name, token].parent_id for name in ("start", "run", "report")} == {attempt.span_id}
        assert [span.kind for span in (claim, enqueue, attempt, run)] == [3, 4, 5, 1]
        assert attempt.attributes["messaging.message.id"] == f"{task['id']}.{token}"
        facts = (run.attributes["dispatch.outcome"], run.attributes["process.exit.code"], run.is_error)
        assert facts == (outcome, code, outcome != "success")
        assert attempt.is_error is run.is_error
        assert attempt.start_ns <= run.start_ns <= run.end_ns <= attempt.end_ns
    assert seen["report", 1].attributes["dispatch.report"] == "release"
    assert seen["report", 2].attributes["dispatch.report"] == "complete"
    handed = link_of(done["outputs"][0]["response"].strip())
    assert handed is not None
    assert f"{handed.span_id:016x}" == seen["run", 2].span_id
    assert {span.process for span in spans} == {"dispatch-service", "dispatch-ingress", "dispatch-worker"}
    assert {span.resource["deployment.environment.name"] for span in spans} == {"test"}


def test_every_way_to_create_a_task_is_linked(traced: Traced) -> None:
    """A tool over REST and over MCP, and a graph of several tasks: each task has its span with the caller's link."""
    task = {"title": "not for the fleet", "channel": "nobody", "agent_id": str(UUID(int=7))}
    actor = {"X-Actor-Type": "agent", "X-Actor-ID": "tracer"}
    one = traced.call("/tools/core_create_task", task, **actor)
    graph = {"tasks": [{"name": "a", **task}, {"name": "b", "depends_on": ["a"], **task}]}
    for entry in graph["tasks"]:
        del entry["agent_id"]
    both = traced.call("/tools/create_graph", {"agent_id": task["agent_id"], **graph}, **actor)
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    message["params"] = {"name": "core_create_task", "arguments": task}
    accept = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}
    other = traced.call("/mcp", message, **accept, **actor)
    found = json.dumps([one, both, other])
    created = eventually(
        lambda: (s := [s for s in traced.collector.named("create") if s.attributes["dispatch.channel"] == "nobody"])
        and len(s) == 4
        and s,
        10,
        f"four spans for {found}",
    )
    assert {span.links for span in created} == {(CALLER,)}
    assert all(span.attributes["dispatch.task.uuid"] in found for span in created)


def test_a_trace_tells_nothing_of_what_tasks_say(traced: Traced) -> None:
    """No payload, description, output or error is in a span, and nothing at all of a sealed task, be its title in clear.

    What stands in OTEL_EXPORTER_OTLP_HEADERS goes to no collector of ours, and our header to nobody else.
    """
    new, stack = traced.hidden.new, traced.stack
    payload = traced.orders(4, 5, 0, says=new("output"), groans=new("stderr"))
    tasks = [stack.create("open", description=new("description"), payload={**payload, new("field"): new("value")})]
    for version in (1, 2):
        said = {"title": new(f"title {version}"), "description": new(f"text {version}")}
        orders = traced.orders(4, 0, says=new(f"output {version}"), groans=new(f"stderr {version}"))
        seal = traced.alice.v1 if version == 1 else traced.alice.v2
        tasks.append(stack.create(**seal(**said, payload={new(f"field {version}"): 1, **orders})))
    for task, count in zip(tasks, (20, 14, 14), strict=True):
        assert stack.wait_task(task["id"])["status"] == "completed"
        spans = traced.spans_of(task, count)
        assert ("dispatch.task.title" in spans[0].attributes) is (task is tasks[0])
    assert traced.hidden.found_in(b"\0".join(traced.collector.bodies)) == set()
    assert all(b"X-Collector-Key: a key\n" in body for body in traced.collector.bodies)
    assert not [line for process in stack.processes for line in process.output if "a key" in line]


def test_no_task_waits_for_the_collector(traced: Traced) -> None:
    """While the collector says nothing tasks run; what it does not take is said once by each process, and forgotten."""
    collector, stack = traced.collector, traced.stack
    for process in stack.processes:
        process.forget()
    collector.hold.clear()
    asked = len(collector.bodies)
    silent = stack.create(payload=traced.orders(0))
    assert stack.wait_task(silent["id"])["status"] == "completed"
    eventually(lambda: len(collector.bodies) > asked, 5, "spans that nobody takes")
    collector.status = 503
    collector.hold.set()
    for _ in range(2):
        refused = stack.create(payload=traced.orders(0))
        stack.wait_task(refused["id"])
        asked = len(collector.bodies)
        eventually(lambda: len(collector.bodies) > asked, 5, "spans that are refused")  # noqa: B023 - called at once
    for process in stack.processes:
        process.wait_event("traces_not_sent", reason="it answered with status 503")
    collector.status = 200
    task = stack.create(payload=traced.orders(0))
    stack.wait_task(task["id"])
    traced.spans_of(task, 8)
    for process in stack.processes:
        assert process.wait_event("traces_sent_again")["lost"] > 0
        assert len(process.find("traces_not_sent")) == 1
        assert not process.find("traces_failed")
        assert [line for line in process.output if "opentelemetry" in line.lower()] == []


def test_without_a_collector_nothing_is_loaded() -> None:
    """No module of a process brings OpenTelemetry, and beginning without a collector does not either."""
    code = """
import sys, dispatch.service.server, dispatch.ingress.process, workers.tasks, dispatch.preflight
from dispatch.settings import load
from dispatch.traces import recorder
for process in (recorder.SERVICE, recorder.INGRESS, recorder.WORKER):
    recorder.begin(process, load({}), None)
dispatch.preflight.check_traces(load({}))
assert recorder.trace_of(None, "1") is None
recorder.end()
print([name for name in sys.modules if name.partition(".")[0] in ("opentelemetry", "google")])
"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("DISPATCH_")}
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.returncode) == ("[]\n", 0), ran.stderr


WITHOUT = "import sys; sys.modules['opentelemetry'] = None; sys.argv[1:] = sys.argv[1:]; "


@pytest.mark.parametrize(
    "start",
    [
        "from dispatch.service import server; from dispatch.settings import load; server.serve(load())",
        "from dispatch.cli.main import main; sys.argv = ['dispatch', 'serve']; main()",
    ],
)
def test_without_the_extra_it_does_not_start(start: str, tmp_path) -> None:
    """A collector in the settings without the extra is a mistake in the settings, which names the extra."""
    env = {
        "PATH": os.defpath,
        "HOME": str(tmp_path),
        "DISPATCH_DATA_DIR": str(tmp_path / "data"),
        "DISPATCH_BIND": "127.0.0.1:0",
        "DISPATCH_TRACES_URL": "http://127.0.0.1:9",
    }
    argv = [sys.executable, "-c", WITHOUT + start]
    ran = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert "install the extra 'otel'" in ran.stderr
    assert "cli" not in start or ran.returncode == 78


def test_the_collector_may_be_rude() -> None:
    """A redirect is not followed, an idle connection may have been closed, an answer is not read without end."""
    assert http.client
