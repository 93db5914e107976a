"""All 81 pairs of states through every face of a running service: the same moves are legal everywhere."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from dispatch.cli.main import cli
from dispatch.core.lifecycle import ATS_WORD, MOVES, STATUS_OF_ATS_WORD, Status
from dispatch.errors import GatewayRejectedError
from tests.support.service import service_on
from tests.support.tools import ANN, PROJECT, RUN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.service import Client, ServiceProcess


@dataclass(frozen=True)
class Outcome:
    """What came of a try to move a task."""

    ok: bool
    code: str
    """Of the refusal, or ""."""
    status: str
    """Where the face says that the task is."""


class Faces:
    """One service and the ways to ask it for a move. Each way takes (task_id, target) and returns an Outcome."""

    def __init__(self, service: ServiceProcess) -> None:
        self.client: Client = service.client(ANN)

    def create(self, status: Status) -> str:
        """Create a task in a status."""
        body = {"project_key": PROJECT, "run_id": RUN, "agent_id": ANN, "title": "t", "status": status.value}
        return str(self.client.post("/tools/core_create_task", body)["task_id"])

    def seen(self, task_id: str) -> dict[str, Any]:
        """Return the task as the tools show it, and how long its history is."""
        task = self.client.post("/tools/core_get_task", {"task_id": task_id})
        history = self.client.post("/tools/task_history", {"task_id": task_id})
        return {**task, "lines": history["count"]}

    def rest(self, task_id: str, target: Status) -> Outcome:
        """POST /tools/core_transition_task."""
        body = {"task_id": task_id, "agent_id": ANN, "to_status": target.value}
        status, answer = self.client.call("POST", "/tools/core_transition_task", body)
        assert status in (200, 409), answer
        return Outcome(status == 200, answer.get("code", ""), answer["status"])

    def ats(self, task_id: str, target: Status) -> Outcome:
        """PATCH /tasks/{id}, in the words of ATS."""
        status, answer = self.client.call("PATCH", f"/tasks/{task_id}", {"status": ATS_WORD[target]})
        assert status in (200, 409), answer
        word = answer["task"]["status"] if status == 200 else answer["status"]
        return Outcome(status == 200, answer.get("code", ""), STATUS_OF_ATS_WORD[word].value)

    def mcp(self, task_id: str, target: Status) -> Outcome:
        """tools/call of the same tool."""
        params = {
            "name": "core_transition_task",
            "arguments": {"task_id": task_id, "agent_id": ANN, "to_status": target.value},
        }
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        parts = urlsplit(self.client.url)
        line = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        accepted = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        with contextlib.closing(line):
            line.request("POST", "/mcp", json.dumps(body), accepted)
            text = line.getresponse().read().decode()
        (event,) = [row for row in text.splitlines() if row.startswith("data: {")]
        result = json.loads(event.removeprefix("data: "))["result"]
        answer = result["structuredContent"]
        return Outcome(not result.get("isError"), answer.get("code", ""), answer["status"])

    def command_line(self, task_id: str, target: Status) -> Outcome:
        """Run ``dispatch move``, without the start of a process."""
        shown = io.StringIO()
        try:
            with contextlib.redirect_stdout(shown):
                cli.main(["move", task_id, target.value, "--json"], prog_name="dispatch", standalone_mode=False)
        except GatewayRejectedError as exc:
            return Outcome(False, exc.code, str(exc.facts["status"]))
        return Outcome(True, "", json.loads(shown.getvalue())["status"])


FACES: dict[str, Callable[[Faces, str, Status], Outcome]] = {
    "rest": Faces.rest,
    "ats": Faces.ats,
    "mcp": Faces.mcp,
    "command line": Faces.command_line,
}


# The same cells on both stores, without the faces, are in tests/conformance.
@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def faces(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faces]:
    """One service on each database for all cells."""
    directory = tmp_path_factory.mktemp("faces")
    with service_on(request.param) as service, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISPATCH_ATS_URL", service.url)
        patch.setenv("DISPATCH_DATA_DIR", str(directory))
        patch.chdir(directory)
        yield Faces(service)


@pytest.mark.parametrize("current", Status)
@pytest.mark.parametrize("face", FACES)
def test_every_face_has_the_same_81_cells(faces: Faces, face: str, current: Status) -> None:
    """From each state each target ends alike on each face: legal moves happen, others say why and change nothing."""
    for target in Status:
        task_id = faces.create(current)
        before = faces.seen(task_id)
        outcome = FACES[face](faces, task_id, target)
        after = faces.seen(task_id)
        if target in MOVES[current]:
            assert outcome == Outcome(True, "", target.value)
            assert (after["status"], after["lines"] > before["lines"]) == (target.value, True)
        else:
            assert outcome == Outcome(False, "ILLEGAL_MOVE", current.value)
            assert after == before


def test_faces_refuse_in_the_same_words(faces: Faces) -> None:
    """Code, rule and advice of an illegal move are the same; only the words for states are each face's own."""
    bodies = []
    for path, method, body in (
        ("/tools/core_transition_task", "POST", {"agent_id": ANN, "to_status": "completed"}),
        ("/tasks/{}", "PATCH", {"status": "completed"}),
    ):
        task_id = faces.create(Status.SKIPPED)
        given = body if "{}" in path else {**body, "task_id": task_id}
        status, answer = faces.client.call(method, path.format(task_id), given)
        assert status == 409
        bodies.append(answer)
    tools, ats = bodies
    assert {key: tools[key] for key in ("code", "why", "next")} == {key: ats[key] for key in ("code", "why", "next")}
    assert (tools["status"], ats["status"]) == ("skipped", "rejected")
    assert (tools["allowed"], ats["allowed"]) == (["backlog", "todo"], ["backlog", "pending"])
