"""Traces of real processes: one trace for each task, whoever tells of it, and no task waits for a collector."""

from __future__ import annotations

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
    from pathlib import Path

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

        return sorted(eventually(found, f"{count} spans of {task['id']}"), key=lambda span: span.start_ns)


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
    """Tools over REST and MCP, a graph of several tasks, a command in a traced attempt: each has the caller's link."""
    where = {"agent_id": str(UUID(int=7)), "run_id": str(UUID(int=8)), "project_key": "default/default"}
    one = {**where, "title": "one", "channel": "nobody"}
    graph = {**where, "tasks": [{"ref": ref, "title": ref, "channel": "nobody"} for ref in "ab"]}
    over_mcp = {"name": "core_create_task", "arguments": {**one, "title": "over MCP"}}
    accept = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}
    argv = [sys.executable, "-m", "dispatch", "create", "typed", "--channel", "nobody", "--json"]
    env = {**traced.stack.env, "TRACEPARENT": TRACEPARENT}
    typed = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    answers = [
        traced.call("/tools/core_create_task", one),
        traced.call("/tools/create_graph", graph),
        traced.call("/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": over_mcp}, **accept),
        json.loads(typed.stdout),
    ]
    said = json.dumps(answers)

    def created() -> list[Seen] | None:
        spans = [s for s in traced.collector.named("create") if s.attributes["dispatch.channel"] == "nobody"]
        return spans if len(spans) == 5 else None

    spans = eventually(created, f"five spans for {said}")
    assert {span.links for span in spans} == {(CALLER,)}
    assert all(span.attributes["dispatch.task.uuid"] in said for span in spans)


def test_a_trace_tells_nothing_of_what_tasks_say(traced: Traced) -> None:
    """No payload, description, output or error is in a span, and of a sealed task no title either, even one in clear.

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
    eventually(lambda: len(collector.bodies) > asked, "spans that nobody takes")
    collector.status = 503
    collector.hold.set()
    refused = stack.create(payload=traced.orders(0))
    stack.wait_task(refused["id"])
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


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python in an environment of its own."""
    argv = [sys.executable, "-c", code]
    clean = {"PATH": os.defpath, "LANG": "C.UTF-8", **env}
    return subprocess.run(argv, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=60, check=False)


def test_without_a_collector_nothing_is_loaded(tmp_path: Path) -> None:
    """No process brings what the extra does, and beginning without a collector does not either.

    The rest of OpenTelemetry is not looked for: the client of Redis loads its interface wherever that is installed.
    """
    code = """
import sys, dispatch.service.server, dispatch.ingress.process, dispatch.preflight, workers.tasks
from dispatch.settings import load
from dispatch.traces import recorder
settings = load()
for process in (recorder.SERVICE, recorder.INGRESS, recorder.WORKER):
    recorder.begin(process, settings, None)
[check] = dispatch.preflight.telling.check_traces(settings)
recorder.end()
loaded = [name for name in sys.modules if name.startswith(("opentelemetry.proto", "opentelemetry.sdk", "google"))]
print(check.state, recorder.trace_of(None, "1"), loaded)
"""
    ran = run(code, HOME=str(tmp_path))
    assert (ran.stdout, ran.returncode) == ("ok None []\n", 0), ran.stderr


def test_without_the_extra_it_does_not_start(tmp_path: Path) -> None:
    """A collector in the settings without the extra is a mistake in the settings, which names the extra; doctor too."""
    code = """
import sys
sys.modules["opentelemetry.proto"] = None
from dispatch import preflight
from dispatch.cli.main import main
from dispatch.settings import load
print(*preflight.telling.check_traces(load()))
sys.argv = ["dispatch", "serve"]
main()
"""
    url = "http://127.0.0.1:9"
    ran = run(code, DISPATCH_DATA_DIR=str(tmp_path), DISPATCH_BIND="127.0.0.1:0", DISPATCH_TRACES_URL=url)
    assert ran.returncode == 78, ran.stdout
    assert "DISPATCH_TRACES_URL is set" in ran.stderr
    assert ran.stderr.count("install the extra 'otel'") == ran.stdout.count("install the extra 'otel'") == 1
    assert "state='error'" in ran.stdout
