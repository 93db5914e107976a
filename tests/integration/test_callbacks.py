"""Callbacks on real parts: service, Redis, ingress and a receiver that answers as it likes."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest
from standardwebhooks.webhooks import Webhook

from tests.support.processes import eventually
from tests.support.receiver import Receiver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.processes import LogProcess
    from tests.support.stack import Stack

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes....").decode()
OLD_SECRET = "whsec_" + base64.b64encode(b"an older secret of many bytes...").decode()
ALLOWED = {
    "DISPATCH_CALLBACK_ALLOW_HTTP": "true",
    "DISPATCH_CALLBACK_ALLOW_PRIVATE": "127.0.0.1",
    "DISPATCH_CALLBACK_SECRET": f"{SECRET},{OLD_SECRET}",
}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that answers 200."""
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def calling(make_stack: Callable[..., Stack], receiver: Receiver) -> Stack:
    """Service, Redis, and an ingress with short pauses that may call the receiver."""
    return start(make_stack(DISPATCH_CALLBACK_PORTS=str(receiver.port), **ALLOWED))


def start(stack: Stack) -> Stack:
    """Start the parts that callbacks need: no worker."""
    stack.redis.start()
    stack.start_service()
    start_ingress(stack)
    return stack


def start_ingress(stack: Stack, **env: str) -> LogProcess:
    """Start an ingress with short pauses."""
    process = stack.run("ingress", ["tests.support.hasty", "ingress"], env)
    process.wait_event("ingress_ready")
    return process


def asking(stack: Stack, url: str, **fields: Any) -> int:
    """Create a task that wants its end told."""
    payload = {"callback_url": url, **fields.pop("payload", {})}
    return int(stack.create(payload=payload, tick={}, **fields)["id"])


def deliveries(stack: Stack, task: int) -> list[dict[str, Any]]:
    """What the service says of a task's deliveries."""
    return list(stack.call("GET", f"/deliveries?task={task}")[1]["deliveries"])


def settled(stack: Stack, task: int, *states: str) -> dict[str, Any]:
    """Wait until the one delivery of a task has come to its end."""
    wanted = states or ("delivered", "failed", "empty")

    def reached() -> dict[str, Any] | None:
        found = deliveries(stack, task)
        assert len(found) <= 1
        return found[0] if found and found[0]["state"] in wanted else None

    return eventually(reached, 15, f"the delivery of task {task} ({deliveries(stack, task)}) becoming {wanted}")


def test_a_completed_task_is_told_signed_and_once(make_stack: Callable[..., Stack], receiver: Receiver) -> None:
    """C11: the answer of a task that a worker ran arrives as Standard Webhooks have it, signed with each secret."""
    stack = start(make_stack(DISPATCH_CALLBACK_PORTS=str(receiver.port), **ALLOWED))
    stack.start_worker(1)
    task = asking(stack, f"{receiver.url}/hook?token=canary")
    done = stack.wait_task(task)
    delivery = settled(stack, task)
    (request,) = receiver.requests
    assert request.path == "/hook?token=canary"
    for secret in (SECRET, OLD_SECRET):
        Webhook(secret).verify(request.body, request.headers)
    told = request.json
    assert (told["task_id"], told["status"], told["type"]) == (task, "completed", "task.completed")
    assert told["result"] == done["outputs"][0]["response"]
    assert told["completed_at"] == told["timestamp"] == done["completed_at"]
    assert told["data"]["task_id"] == task
    assert (delivery["state"], delivery["tries"], delivery["id"]) == ("delivered", 1, request.headers["webhook-id"])
    assert all("canary" not in line for process in stack.processes for line in process.output)
