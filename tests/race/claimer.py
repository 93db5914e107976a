"""One process of the race: four connections that claim at the same moment.

Reads one JSON object a line, ``{"at", "ref", "task_id", "faces"}``: at the monotonic time
``at`` (the same clock in all processes of a machine) it sends the four claims and then
reads the four answers. Writes them as one JSON list a line.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

CONNECTIONS = 4


def agent_of(process: int, connection: int) -> str:
    """Return the agent that a connection claims for."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"claimer {process}.{connection}"))


def by_tool(order: dict[str, Any], agent: str) -> tuple[str, dict[str, Any]]:
    """Return path and body of a claim with the Task Tools."""
    return "/tools/core_claim_task", {"task_id": order["task_id"], "agent_id": agent}


def by_ats(order: dict[str, Any], _agent: str) -> tuple[str, dict[str, Any]]:
    """Return path and body of a claim in ATS."""
    return f"/tasks/{order['ref']}/claim", {"lease_duration": 60_000, "claim_id": str(uuid.uuid4())}


FACES: dict[str, Callable[[dict[str, Any], str], tuple[str, dict[str, Any]]]] = {"tools": by_tool, "ats": by_ats}


def main() -> None:
    """Claim whenever told, until stdin ends."""
    url, process = urlsplit(sys.argv[1]), int(sys.argv[2])
    lines = [http.client.HTTPConnection(url.hostname or "", url.port, timeout=60) for _ in range(CONNECTIONS)]
    agents = [agent_of(process, n) for n in range(CONNECTIONS)]
    print("ready", flush=True)
    for text in sys.stdin:
        order = json.loads(text)
        calls = [FACES[face](order, agent) for face, agent in zip(order["faces"], agents, strict=True)]
        time.sleep(max(0.0, order["at"] - time.monotonic()))
        for line, agent, (path, body) in zip(lines, agents, calls, strict=True):
            headers = {"Content-Type": "application/json", "X-Actor-Type": "agent", "X-Actor-ID": agent}
            line.request("POST", path, json.dumps(body), headers)
        answers = []
        for line in lines:
            answer = line.getresponse()
            answers.append([answer.status, json.loads(answer.read())])
        print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    main()
