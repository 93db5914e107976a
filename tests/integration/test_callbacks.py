"""Callbacks on real parts: service, Redis, ingress and a receiver that answers as it likes."""

from __future__ import annotations

import base64
import contextlib
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from standardwebhooks.webhooks import Webhook

from dispatch.ats import protocol
from dispatch.ats.client import Client
from dispatch.ats.model import Actor
from dispatch.notify.address import AddressRules, parse_allowed
from dispatch.notify.webhook import WebhookRules, Webhooks
from tests.support.fake_ats import FakeAts
from tests.support.hasty import PAUSE_S
from tests.support.processes import eventually
from tests.support.promises import promised
from tests.support.receiver import Listener, Receiver, Reply
from tests.support.redis import RedisServer
from tests.support.stack import Stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.processes import LogProcess

SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes....").decode()
OLD_SECRET = "whsec_" + base64.b64encode(b"an older secret of many bytes...").decode()
ALLOWED = {
    "DISPATCH_CALLBACK_ALLOW_HTTP": "true",
    "DISPATCH_CALLBACK_ALLOW_PRIVATE": "127.0.0.1",
    "DISPATCH_CALLBACK_SECRET": f"{SECRET},{OLD_SECRET}",
}


ENDLESS = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + b"x" * 20_000_000


@dataclass
class World:
    """One stack for most tests, its receiver, and the strange ones beside it, on all of whose ports it may call."""

    stack: Stack
    receiver: Receiver
    strange: dict[str, Listener]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Service, Redis, and an ingress with short patience that may call loopback."""
    strange = {
        "silent": Listener(),
        "trickle": Listener(answer=b"H"),
        "endless": Listener(answer=ENDLESS),
        "closing": Listener(close_after=True),
        "plain": Listener(answer=b"HTTP/1.1 200 OK\r\n\r\n"),
        "inner": Listener("::1"),
    }
    with contextlib.ExitStack() as held:
        receiver = held.enter_context(Receiver())
        for listener in strange.values():
            held.enter_context(listener)
        stack = Stack(ALLOWED)
        held.callback(stack.abort)
        ports = [receiver.port, stack.port, *(listener.port for listener in strange.values())]
        stack.env["DISPATCH_CALLBACK_PORTS"] = ",".join(map(str, ports))
        start(stack)
        yield World(stack, receiver, strange)
        stack.close()


@pytest.fixture
def receiver(world: World) -> Receiver:
    """The receiver, which has heard nothing yet and answers 200."""
    world.receiver.requests.clear()
    world.receiver.replies.clear()
    world.receiver.usual = lambda _request: Reply()
    return world.receiver


@pytest.fixture
def calling(world: World) -> Iterator[Stack]:
    """The stack; what its processes said is shown when a test fails."""
    yield world.stack
    print(world.stack.report())


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

    return eventually(reached, f"the delivery of task {task} ({deliveries(stack, task)}) becoming {wanted}")


def test_a_completed_task_is_told_signed_and_once(calling: Stack, receiver: Receiver) -> None:
    """C11: the answer of a task that a worker ran arrives as Standard Webhooks have it, signed with each secret."""
    worker = calling.start_worker(1)
    task = asking(calling, f"{receiver.url}/hook?token=canary")
    done = calling.wait_task(task)
    delivery = settled(calling, task)
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
    assert worker.stop() == 0
    assert all("canary" not in line for process in calling.processes for line in process.output)


def test_every_end_is_told_and_encrypted_ones_are_not_by_outer_fields(calling: Stack, receiver: Receiver) -> None:
    """By hand, by a cascade, cancelled, rejected: all fire alike, quiet or not; no outer URL of a sealed one (C6)."""
    hook = f"{receiver.url}/hook"
    by_hand, rejected, root, sealed = (
        asking(calling, hook, payload={"quiet": True}) if n < 3 else asking(calling, hook, payload={"encrypted": True})
        for n in range(4)
    )
    behind = asking(calling, hook, depends_on=[root])
    for task, verb, body in (
        (by_hand, "claim", {}),
        (by_hand, "complete", {"outputs": ["plain text"]}),
        (rejected, "reject", {"reason": "no"}),
        (root, "cancel", {"reason": "enough"}),
        (sealed, "cancel", {}),
    ):
        assert calling.call("POST", f"/tasks/{task}/{verb}", body)[0] == 200
    calling.wait_task(behind, "failed")
    assert settled(calling, sealed)["state"] == "empty"
    for task in (by_hand, rejected, root, behind):
        assert settled(calling, task)["state"] == "delivered"
    told = {request.json["task_id"]: (request.json["status"], request.json["result"]) for request in receiver.requests}
    assert told == {
        by_hand: ("completed", "plain text"),
        rejected: ("rejected", "no"),
        root: ("cancelled", "enough"),
        behind: ("failed", f"Blocked: dependency #{root} (cancelled)"),
    }
    assert len(receiver.requests) == 4


def test_schedule_and_signature(calling: Stack, receiver: Receiver) -> None:
    """N2: failures are tried again by the schedule, under one id, with a fresh time and a good signature each."""
    answers = {
        "/flaky": [Reply(500)] * 3,
        "/busy": [Reply(429, {"Retry-After": "1"})],
        "/moved": [Reply(301, {"Location": "/elsewhere"})] * 10,
        "/gone": [Reply(410)],
        "/slow": [Reply(delay_s=3.0)],
    }
    receiver.usual = lambda request: answers[request.path].pop(0) if answers[request.path] else Reply()
    tasks = {path: asking(calling, receiver.url + path) for path in answers}
    for task in tasks.values():
        calling.call("POST", f"/tasks/{task}/cancel")
    ends = {path: settled(calling, task) for path, task in tasks.items()}
    assert {path: (end["state"], end["tries"], end["last_error"]) for path, end in ends.items()} == {
        "/flaky": ("delivered", 4, None),
        "/busy": ("delivered", 2, None),
        "/moved": ("failed", 10, "http_301"),
        "/gone": ("failed", 1, "http_410"),
        "/slow": ("delivered", 2, None),
    }
    assert not receiver.at("/elsewhere")
    for path, end in ends.items():
        tries = receiver.at(path)
        assert len(tries) == end["tries"]
        assert {request.headers["webhook-id"] for request in tries} == {end["id"]}
        assert len({request.body for request in tries}) == 1
        for request in tries:
            Webhook(SECRET).verify(request.body, request.headers)
            assert abs(float(request.headers["webhook-timestamp"]) - request.at) < 60
        gaps = [later.at - earlier.at for earlier, later in zip(tries, tries[1:], strict=False)]
        assert min(gaps, default=9) >= (1.0 if path == "/busy" else PAUSE_S) - 0.005, (path, gaps)
    first, second = (int(request.headers["webhook-timestamp"]) for request in receiver.at("/slow"))
    assert second > first, "each try has the time of its own, and here they are two seconds apart"
    calling.call("POST", f"/deliveries/{ends['/gone']['id']}/resend")
    again = settled(calling, tasks["/gone"], "delivered")
    assert (again["id"], again["tries"]) == (ends["/gone"]["id"], 1)


def test_receivers_that_misbehave(calling: Stack, world: World) -> None:
    """N2: a status that came counts, however endless the rest; a trickle, no TLS and a hang-up are failures."""
    ports = {name: listener.port for name, listener in world.strange.items()}
    tasks = {
        "timeout": asking(calling, f"http://127.0.0.1:{ports['trickle']}/"),
        "connection_closed": asking(calling, f"http://127.0.0.1:{ports['closing']}/"),
        "tls": asking(calling, f"https://127.0.0.1:{ports['plain']}/"),
    }
    good = asking(calling, f"http://127.0.0.1:{ports['endless']}/")
    for task in (good, *tasks.values()):
        calling.call("POST", f"/tasks/{task}/cancel")
    assert settled(calling, good)["tries"] == 1
    for error, task in tasks.items():
        eventually(lambda task=task, error=error: deliveries(calling, task)[0]["last_error"] == error, error)
        assert calling.task(task)["status"] == "cancelled"


def test_nothing_inside_can_be_reached(make_stack: Callable[..., Stack]) -> None:
    """N1: whatever a URL says, no byte comes to a private address, our service or Redis; tasks end as they do."""
    with Listener() as inner, Listener("::1") as inner6, Listener() as proxy, Receiver() as public:
        stack = make_stack()
        stack.redis = RedisServer(stack.directory / "redis-tcp", tcp=True)
        four, six = inner.port, inner6.port
        proxied = f"http://127.0.0.1:{proxy.port}"
        stack.env |= {
            "DISPATCH_REDIS_URL": stack.redis.tcp_url,
            "DISPATCH_CALLBACK_ALLOW_HTTP": "true",
            "DISPATCH_CALLBACK_PORTS": f"{four},{six},{public.port},{stack.port},{stack.redis.port},443",
        }
        stack.redis.start()
        stack.start_service()
        start_ingress(stack, HTTP_PROXY=proxied, http_proxy=proxied, HTTPS_PROXY=proxied, ALL_PROXY=proxied)
        hosts = ["127.0.0.1", "169.254.169.254", "10.0.0.1", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]", "127.1"]
        hosts += [
            "[2002:7f00:1::]",
            "0",
            "0x7f000001",
            "2130706433",
            "0177.0.0.1",
            "localhost",
            "localhost.",
            "LOCALHOST",
        ]
        urls = [f"http://{host}:{four}/" for host in hosts] + [f"http://[::1]:{six}/", f"http://localhost:{six}/"]
        urls += [f"{stack.url}/tasks", f"http://127.0.0.1:{stack.redis.port}/", f"https://127.0.0.1:{four}/"]
        malformed = [f"gopher://127.0.0.1:{four}/", "file:///etc/passwd", f"http://user@127.0.0.1:{four}/"]
        malformed += [f"http://a@b@127.0.0.1:{four}/", f"http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{four}/", "http://127.0.0.1:22/", "nonsense"]
        tasks = {url: asking(stack, url) for url in (*urls, *malformed)}
        for task in tasks.values():
            stack.call("POST", f"/tasks/{task}/cancel")
        ends = {url: settled(stack, task) for url, task in tasks.items()}
        # Some ways to write an address are refused by the HTTP client before anything is resolved.
        refusals = {"address_refused", "url_malformed", "dns"}
        assert {ends[url]["last_error"] for url in urls} <= refusals
        assert [ends[url]["last_error"] for url in urls].count("address_refused") >= 13
        assert all(ends[url]["last_error"].startswith("url_") for url in malformed)
        assert {end["state"] for end in ends.values()} == {"failed"}
        assert {stack.task(task)["status"] for task in tasks.values()} == {"cancelled"}
        assert [one.connections for one in (inner, inner6, proxy)] == [0, 0, 0]
        assert not public.requests


def test_own_places_and_redirects_with_private_addresses_allowed(
    calling: Stack, receiver: Receiver, world: World
) -> None:
    """N1: where loopback is allowed our service still is not, and no redirect is followed to anywhere."""
    inner = world.strange["inner"]
    receiver.usual = lambda _: Reply(307, {"Location": f"http://[::1]:{inner.port}/"})
    own = asking(calling, f"{calling.url}/tasks")
    moved = asking(calling, f"{receiver.url}/")
    for task in (own, moved):
        calling.call("POST", f"/tasks/{task}/cancel")
    assert settled(calling, own)["last_error"] == "address_refused"
    assert settled(calling, moved)["last_error"] == "http_307"
    assert inner.connections == 0


@pytest.mark.parametrize("answers", [["127.0.0.2", "127.0.0.1"], ["127.0.0.1", "127.0.0.2"]])
async def test_a_name_with_a_good_and_a_bad_address(answers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """N1: of a name that stands for both, only the allowed address is tried; a name that changes is judged anew."""
    with Listener() as inner:
        rules = AddressRules(*parse_allowed(["127.0.0.2"]))
        webhooks = Webhooks(WebhookRules(allow_http=True, ports=frozenset({inner.port}), addresses=rules, total_s=2.0))

        async def resolve(_self: Any, host: str, port: int = 0, family: Any = None) -> list[dict[str, Any]]:
            return [
                {"hostname": host, "host": one, "port": port, "family": socket.AF_INET, "proto": 6, "flags": 0}
                for one in answers
            ]

        monkeypatch.setattr("aiohttp.resolver.ThreadedResolver.resolve", resolve)
        monkeypatch.setattr("aiohttp.connector.DefaultResolver.resolve", resolve)
        url = f"http://rebinding.example:{inner.port}/"
        assert (await webhooks.send(url, "dlv_1", b"{}")).error == "connect"
        answers.remove("127.0.0.2")
        answer = await webhooks.send(url, "dlv_1", b"{}")
        assert (answer.error, answer.is_final) == ("address_refused", True)
        assert inner.connections == 0


def test_hostile_urls_in_the_log(calling: Stack) -> None:
    """N6: a URL with line ends, escapes and a fake event is one short line of the log."""
    fake = 'https://127.0.0.1/\r\n{"event":"ingress_ready","level":"info"}\x1b[31m\u2028' + "x" * 100_000
    task = asking(calling, fake)
    calling.call("POST", f"/tasks/{task}/cancel")
    assert settled(calling, task)["last_error"] == "url_malformed"
    ingress = calling.processes[1]
    assert len(ingress.find("ingress_ready")) == 1
    (line,) = eventually(
        lambda: [line for line in ingress.output if "callback_failed" in line and f'"{task}"' in line], "its line"
    )
    assert len(line) < 1_000
    assert line.isascii()
    assert line.isprintable()


def test_killed_in_between(calling: Stack, receiver: Receiver) -> None:
    """N3: kill -9 of the service after the end, of the ingress after sending, of the service again: one id, told."""
    first = calling.processes[1]
    first.stop()
    task = asking(calling, f"{receiver.url}/hook")
    calling.call("POST", f"/tasks/{task}/cancel", {"reason": "enough"})
    calling.processes[0].kill()
    service = calling.start_service()
    hang = calling.directory / "hang"
    hang.touch()
    # It may stand still before it is ready.
    hang_env = {"HASTY_HANG": str(hang), "HASTY_LEASE_S": "1"}
    hanging = calling.run("ingress", ["tests.support.hasty", "ingress"], hang_env)
    receiver.wait(1)
    assert deliveries(calling, task)[0]["state"] == "waiting"
    hanging.kill()
    hang.unlink()
    ingress = start_ingress(calling)
    delivery = settled(calling, task)
    assert (delivery["state"], delivery["tries"]) == ("delivered", 2)
    receiver.replies = [Reply(delay_s=0.7)]
    other = asking(calling, f"{receiver.url}/hook")
    calling.call("POST", f"/tasks/{other}/cancel")
    receiver.wait(3)
    service.kill()
    ingress.wait_event("delivery_delayed")
    calling.start_service()
    assert settled(calling, other)["state"] == "delivered"
    ids = [request.headers["webhook-id"] for request in receiver.requests]
    assert ids[:2] == [delivery["id"]] * 2
    assert ids[2:] == [ids[2]] * len(ids[2:])


def test_one_slow_receiver_does_not_hold_up_the_others(calling: Stack, receiver: Receiver, world: World) -> None:
    """Forty callbacks to a host that is silent wait for each other; one to another host goes out at once."""
    silent = world.strange["silent"]
    for _ in range(40):
        task = asking(calling, f"http://127.0.0.1:{silent.port}/")
        calling.call("POST", f"/tasks/{task}/cancel")
    eventually(lambda: silent.connections >= 2, "the silent host being called")
    task = asking(calling, f"{receiver.url}/hook")
    with promised(1.5, "the call"):
        calling.call("POST", f"/tasks/{task}/cancel")
        receiver.wait(1)


def test_a_foreign_ats_has_its_outbox_in_redis(make_stack: Callable[..., Stack], receiver: Receiver) -> None:
    """Ends of a plain ATS's tasks are told once by two ingresses, tried again, and survive the death of one."""
    with FakeAts() as ats:
        settings = {**ALLOWED, "DISPATCH_CALLBACK_PORTS": str(receiver.port), "DISPATCH_ATS_URL": ats.url}
        stack = make_stack(**settings)
        stack.redis.start()
        hang = stack.directory / "hang"
        first = start_ingress(stack, HASTY_HANG=str(hang), HASTY_LEASE_S="1")
        second = start_ingress(stack, HASTY_LEASE_S="1", DISPATCH_ACTOR_ID="second")
        receiver.replies = [Reply(503)]
        payload = {"callback_url": f"{receiver.url}/hook"}
        task = int(ats.add(title="foreign", channel=stack.channel, payload=payload)["id"])
        client = Client(protocol.endpoint(ats.url), Actor("human", "tester", "tester"))
        client.send(protocol.cancel(str(task), "enough"))
        receiver.wait(2)
        eventually(lambda: first.find("callback_delivered") or second.find("callback_delivered"), "its delivery")
        assert receiver.requests[1].json["status"] == "cancelled"
        hang.touch()
        second.stop()
        other = int(ats.add(title="foreign", channel=stack.channel, payload=payload)["id"])
        client.send(protocol.cancel(str(other)))
        client.close()
        receiver.wait(3)
        first.kill()
        hang.unlink()
        start_ingress(stack).wait_event("callback_delivered")
        ids = [request.headers["webhook-id"] for request in receiver.requests]
        assert (len(ids), len(set(ids)), ids[0] == ids[1], ids[2] == ids[3]) == (4, 2, True, True)
