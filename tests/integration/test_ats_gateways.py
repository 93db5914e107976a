"""Both gateways against the fake service and a real Redis."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from dataclasses import replace

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from structlog.testing import capture_logs

from dispatch.ats import fences, protocol
from dispatch.ats.aclient import AsyncClient
from dispatch.ats.choose import connect_gateway
from dispatch.ats.client import Client
from dispatch.ats.fenced import FencedGateway, read_grant
from dispatch.ats.gateway import AttemptRef
from dispatch.ats.model import Actor
from dispatch.ats.plain import PlainGateway
from dispatch.broker import connect_async
from dispatch.errors import (
    GatewayRejectedError,
    GatewayUnavailableError,
    LeaseLostError,
    SealReplayedError,
    UnknownTaskError,
)
from dispatch.ingress.plain_claims import PlainClaims
from dispatch.settings import Broker
from tests.support.fake_ats import FakeAts
from tests.support.redis import RedisServer

ME = Actor("agent", "ingress-1", "dispatch")
LEASE_S = 60.0


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One Redis for all tests of this file."""
    with RedisServer(tmp_path_factory.mktemp("r")) as server:
        yield server


@pytest.fixture
def redis_client(store):
    """A client of an empty Redis."""
    store.flush()
    with closing(store.client()) as client:
        yield client


@pytest.fixture
def ats():
    """A fake ATS without extensions."""
    with FakeAts() as fake:
        yield fake


@pytest.fixture
def client(ats):
    """A client that speaks as the ingress."""
    made = Client(protocol.endpoint(ats.url), ME)
    yield made
    made.close()


@pytest.fixture
def gateway(client, redis_client):
    """The gateway to a service without extensions."""
    return PlainGateway(client, redis_client, lease_s=LEASE_S)


@pytest.fixture
def fenced(ats, client):
    """The gateway to a service with the extensions, which the fake now has."""
    ats.switches.fencing = True
    return FencedGateway(client, lease_s=LEASE_S)


def claimed(ats, client, redis_client=None, **fields) -> AttemptRef:
    """Create and claim a task as the ingress does."""
    task = ats.add(**fields)
    answer = client.send(protocol.claim(str(task["id"]), lease_s=LEASE_S))
    if redis_client is None:
        token = answer["lease"]["fencing_token"]
    else:
        token = redis_client.incr(fences.token_key(ats.url, str(task["id"])))
    return AttemptRef(str(task["id"]), attempt=1, token=token, actor_id=ME.id)


def verbs(ats):
    """Return the last words of the paths of all calls that change something."""
    return [path.rpartition("/")[2] for method, path, _, _ in ats.calls if method != "GET"]


# --- choosing -------------------------------------------------------------------------------------------------------


def test_health_decides_the_gateway(ats, client, redis_client):
    """A service that announces fencing gets the fenced gateway, a foreign one the plain one."""
    assert isinstance(connect_gateway(client, redis_client, lease_s=1), PlainGateway)
    ats.switches.fencing = True
    assert isinstance(connect_gateway(client, redis_client, lease_s=1), FencedGateway)


@pytest.mark.parametrize("body", [b"[]", b"{}", b'"ok"', b'{"status": 1}'])
def test_something_else_at_the_address_is_no_task_service(ats, client, redis_client, body):
    """JSON that is not a health answer is not taken for a task service."""
    ats.fault("answer", status=200, body=body)
    with pytest.raises(GatewayUnavailableError, match="not a task service"):
        connect_gateway(client, redis_client, lease_s=1)


# --- fenced ---------------------------------------------------------------------------------------------------------


def test_fenced_attempt_from_start_to_completion(ats, client, fenced):
    """Start, renew and complete carry the token and the claiming actor; the lease is asked for each time."""
    ref = claimed(ats, client)
    grant = fenced.start(ref, runner="w1", message="Agent processing started")
    assert (grant.ttl_s, grant.fencing_token, grant.task.attempts, grant.task.runner) == (60.0, 1, 1, "w1")
    assert fenced.renew(ref, message="still at it").ttl_s == 60.0
    fenced.complete(ref, [{"response": "done"}])
    sent = [(body, headers["X-Actor-ID"]) for _, path, headers, body in ats.calls if path.endswith(("start", "renew"))]
    assert sent == [
        (
            {"fencing_token": 1, "runner": "w1", "lease_duration": 60_000, "message": "Agent processing started"},
            ME.id,
        ),
        ({"fencing_token": 1, "lease_duration": 60_000, "message": "still at it"}, ME.id),
    ]
    assert ats.tasks[100]["outputs"] == [{"response": "done"}]


def test_fenced_report_whose_answer_was_lost_is_repeated(ats, client, fenced):
    """T6: the same completion again is answered as the first time."""
    ref = claimed(ats, client)
    fenced.start(ref, runner="w1", message="")
    client.close()
    ats.fault("lose", "complete")
    with pytest.raises(GatewayUnavailableError):
        fenced.complete(ref, [1])
    fenced.complete(ref, [1])
    assert ats.tasks[100]["status"] == "completed"


@pytest.mark.parametrize("call", ["start", "renew", "complete", "fail", "release"])
def test_stale_token_is_a_lost_lease(ats, client, fenced, call):
    """B7: after a cancel every call of the old attempt is LeaseLostError and says that the task was cancelled."""
    ref = claimed(ats, client)
    ats.run(ats._verb(ats.tasks[100], "cancel", {}, {"ID": "", "Type": "human"}))
    with pytest.raises(LeaseLostError) as caught:
        _call(fenced, ref, call)
    assert caught.value.task_status == "cancelled"


def test_fenced_start_of_another_runner_is_refused(ats, client, fenced):
    """A message delivered twice starts one attempt."""
    ref = claimed(ats, client)
    fenced.start(ref, runner="w1", message="")
    assert fenced.start(ref, runner="w1", message="").task.attempts == 1
    with pytest.raises(LeaseLostError):
        fenced.start(ref, runner="w2", message="")


def test_fenced_release_carries_count_and_pause(ats, client, fenced):
    """A released task is pending again; whether the attempt counts and how long it waits go along."""
    ref = claimed(ats, client)
    fenced.start(ref, runner="w1", message="")
    fenced.release(ref, counted=True, delay_s=2.5, reason="exit 1")
    task = ats.tasks[100]
    assert (task["status"], task["attempts"], task["_delay_ms"], task["reason"]) == ("pending", 1, 2500, "exit 1")


def test_fenced_register_of_sealed_messages(ats, client, fenced):
    """The digest goes with the token; a message of another task is an error of its own, a stale token a lost lease."""
    ref = claimed(ats, client)
    for code, error in (("SEAL_REPLAYED", SealReplayedError), ("STALE_LEASE", LeaseLostError)):
        ats.fault("answer", "seal", status=409, body=json.dumps({"error": "No.", "code": code}).encode())
        with pytest.raises(error):
            fenced.seen(ref, "ab")
    assert ats.calls[-1][3] == {"fencing_token": 1, "digest": "ab"}


def test_fenced_log_and_reading(ats, client, fenced):
    """What an attempt says carries its token and kind; another task is read without its payload and thread."""
    ref = claimed(ats, client)
    fenced.say(ref, "why")
    parts = [{"type": "text", "content": "why"}]
    assert ats.calls[-1][3] == {"parts": parts, "kind": "log", "fencing_token": 1}
    assert fenced.read("100").status == "in_progress"
    assert "outputs" in ats.calls[-1][1]
    assert "payload" not in ats.calls[-1][1]
    with pytest.raises(UnknownTaskError):
        fenced.read("999")


def test_unknown_task_is_its_own_error(fenced):
    """A task that is gone is neither a lost lease nor a reason to try again."""
    with pytest.raises(UnknownTaskError):
        fenced.renew(AttemptRef("999", 1, 1, "a"))


# --- plain ----------------------------------------------------------------------------------------------------------


def _call(gateway, ref, call):
    {
        "start": lambda: gateway.start(ref, runner="w1", message="m"),
        "renew": lambda: gateway.renew(ref),
        "complete": lambda: gateway.complete(ref, [1]),
        "fail": lambda: gateway.fail(ref, "r"),
        "release": lambda: gateway.release(ref, counted=False, delay_s=0, reason="r"),
    }[call]()


def test_plain_attempt_from_start_to_completion(ats, client, redis_client, gateway):
    """The attempt is counted in Redis, the message posted, the lease extended by claiming again, the result sent."""
    ref = claimed(ats, client, redis_client)
    grant = gateway.start(ref, runner="w1", message="Agent processing started")
    assert grant.task.attempts == 1
    assert grant.fencing_token is None
    assert 58 < grant.ttl_s <= 60
    ats.advance(30)
    assert 58 < gateway.renew(ref).ttl_s <= 60
    gateway.complete(ref, [{"response": "ok"}])
    task = ats.tasks[100]
    assert (task["status"], task["outputs"]) == ("completed", [{"response": "ok"}])
    assert [part["content"] for part in task["messages"][0]["parts"]] == [
        "Agent processing started",
        f"Begun by w1, token {ref.token}.",
    ]
    assert redis_client.get(fences.attempts_key(ats.url, "100")) is None


def test_plain_completes_what_should_be_reviewed(ats, client, redis_client, gateway):
    """A foreign service has no review: the task is completed at once, and the log says so."""
    ref = claimed(ats, client, redis_client)
    gateway.start(ref, runner="w1", message="")
    with capture_logs() as lines:
        gateway.complete(ref, [{"response": "ok"}], review=True)
    assert ats.tasks[100]["status"] == "completed"
    assert [line["event"] for line in lines] == ["review_not_possible"]


def test_plain_start_reads_the_results_of_dependencies(ats, client, redis_client, gateway):
    """What the payload names is read one by one; what is not there is left out and ends no attempt."""
    ats.add(title="first")
    ats.tasks[100] |= {"status": "completed", "outputs": [{"response": "uno"}]}
    ref = claimed(ats, client, redis_client, payload={"depends_on": ["100", 999]})
    assert gateway.start(ref, runner="w1", message="").dependencies == (
        {"id": "100", "title": "first", "status": "completed", "outputs": [{"response": "uno"}]},
    )


@pytest.mark.parametrize("said", [None, "x", {"a": 1}, [1, "x"], []])
def test_a_strange_answer_about_dependencies_is_none(said):
    """What the service says of results must be a list of objects; anything else counts as nothing."""
    answer = {"task": {"id": 1}, "lease": {"fencing_token": 1, "ttl_ms": 1000}, "dependencies": said}
    assert read_grant(answer, default_ttl_s=1.0).dependencies == ()


@pytest.mark.parametrize("envelope", [True, False])
def test_plain_answers_come_in_an_envelope_or_bare(ats, client, redis_client, gateway, envelope):
    """Both forms of a task are understood."""
    ats.switches.envelope = envelope
    ref = claimed(ats, client, redis_client)
    assert gateway.start(ref, runner="w1", message="").task.title == "a task"


def test_plain_start_succeeds_once_per_token(ats, client, redis_client, gateway):
    """B9: the same runner may ask again, another may not, and the attempt is counted once."""
    ref = claimed(ats, client, redis_client)
    gateway.start(ref, runner="w1", message="")
    assert gateway.start(ref, runner="w1", message="").task.attempts == 1
    with pytest.raises(LeaseLostError, match="another worker"):
        gateway.start(ref, runner="w2", message="")


@pytest.mark.parametrize("embed", [True, False], ids=["embedded", "asked for"])
def test_plain_start_succeeds_once_though_redis_forgets(ats, client, redis_client, gateway, store, embed):
    """B9: after a loss of Redis the thread says who began; another is refused, and Redis knows again who it was."""
    ats.switches.embed_messages = embed
    ref = claimed(ats, client, redis_client)
    gateway.start(ref, runner="host/1/a", message="Agent processing started")
    store.flush()
    for _ in range(2):
        with pytest.raises(LeaseLostError, match="another worker"):
            gateway.start(ref, runner="host/2/b", message="Agent processing started")
    assert redis_client.get(fences.start_key(ats.url, ref.task_id, ref.token)) == b"host/1/a"
    assert gateway.start(ref, runner="host/1/a", message="").task.attempts == 1
    assert gateway.renew(ref).ttl_s > 0
    gateway.release(ref, counted=True, delay_s=0, reason="")
    client.send(protocol.claim(ref.task_id, lease_s=LEASE_S))
    later = AttemptRef(ref.task_id, attempt=2, token=ref.token + 1, actor_id=ME.id)
    assert gateway.start(later, runner="host/2/b", message="").task.status == "in_progress"


@pytest.mark.parametrize("kind", ["hang_up", "answer"])
def test_plain_start_goes_on_without_the_thread(ats, client, redis_client, gateway, kind):
    """A thread that can be neither read nor written keeps no attempt from starting: Redis alone decides then."""
    ats.switches.embed_messages = False
    ref = claimed(ats, client, redis_client)
    ats.fault(kind, "/messages", times=4)
    assert gateway.start(ref, runner="w1", message="Agent processing started").task.attempts == 1
    assert ats.tasks[100]["messages"] == []
    with pytest.raises(LeaseLostError, match="another worker"):
        gateway.start(ref, runner="w2", message="")


def test_plain_claims_after_a_loss_of_redis_have_higher_tokens(ats, redis_client, store):
    """Tokens grow from claim to claim, and go on growing where the count was lost."""

    async def tokens() -> list[int]:
        async with (
            AsyncClient(protocol.endpoint(ats.url), ME) as client,
            connect_async(Broker(url=store.url)) as counts,
        ):
            claims = PlainClaims(client, counts, ME, LEASE_S)
            given = []
            for is_lost in (False, True, True, False, False):
                (claim,) = await claims.claim(["100"])
                given.append(claim.ref.token)
                if is_lost:
                    store.flush()
            return given

    ats.add()
    given = asyncio.run(tokens())
    assert given == sorted(set(given))


@pytest.mark.parametrize("call", ["start", "renew", "complete", "fail", "release"])
def test_plain_call_after_a_later_claim_is_a_lost_lease(ats, client, redis_client, gateway, call):
    """B7, B9: an attempt whose task was claimed again by the same actor learns it from the token in Redis."""
    ref = claimed(ats, client, redis_client)
    redis_client.incr(fences.token_key(ats.url, ref.task_id))
    with pytest.raises(LeaseLostError):
        _call(gateway, ref, call)
    assert ats.tasks[100]["status"] == "in_progress"


@pytest.mark.parametrize("call", ["start", "renew", "complete", "fail", "release"])
@pytest.mark.parametrize("fate", ["cancelled", "held by another", "expired"])
def test_plain_call_without_the_lease_is_a_lost_lease(ats, client, redis_client, gateway, call, fate):
    """T3: whatever the service would say, the task itself shows that the lease is gone, and nothing is reported."""
    ats.switches.reclaim_extends = False
    ats.switches.complete_by_stranger = True
    ref = claimed(ats, client, redis_client)
    if fate == "cancelled":
        ats.run(ats._verb(ats.tasks[100], "cancel", {}, {"ID": "", "Type": "human"}))
    elif fate == "held by another":
        ats.tasks[100]["assignee_id"] = "somebody else"
    else:
        ats.switches.reclaim_extends = False
        ats.tasks[100]["lease_expires"] = "2020-01-01T00:00:00Z"
    with pytest.raises(LeaseLostError):
        _call(gateway, ref, call)
    assert ats.tasks[100]["outputs"] is None
    assert "complete" not in verbs(ats)
    assert "fail" not in verbs(ats)


def test_service_that_does_not_extend_leases_is_reported_once(ats, client, redis_client, gateway):
    """A refused re-claim while the task is ours keeps the attempt running to the end of the lease, with a warning."""
    ats.switches.reclaim_extends = False
    ref = claimed(ats, client, redis_client)
    gateway.start(ref, runner="w1", message="")
    ats.advance(30)
    with capture_logs() as logs:
        assert 1 < gateway.renew(ref).ttl_s <= 31
        gateway.renew(ref)
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["lease_not_extended"]
    ats.advance(40)
    with pytest.raises(LeaseLostError):
        gateway.renew(ref)


def test_clock_of_the_service_may_differ(ats, client, redis_client, gateway):
    """The rest of a lease is computed by the service's clock, as far as its answers tell it."""
    ats.advance(7200)
    ref = claimed(ats, client, redis_client)
    assert 30 < gateway.start(ref, runner="w1", message="").ttl_s < 90


def test_plain_service_that_cannot_be_reached_is_no_lost_lease(ats, client, redis_client, gateway):
    """T5: no answer is a reason to try again, not to stop."""
    ref = claimed(ats, client, redis_client)
    ats.fault("answer", times=3, status=503)
    for call in ("renew", "complete", "release"):
        with pytest.raises(GatewayUnavailableError):
            _call(gateway, ref, call)


def test_plain_completion_whose_answer_was_lost_is_recognised(ats, client, redis_client, gateway):
    """T6: a repeated completion finds its own outputs on the completed task and is content; other outputs are not."""
    ref = claimed(ats, client, redis_client)
    gateway.start(ref, runner="w1", message="")
    ats.tasks[100] |= {"status": "completed", "outputs": [1]}
    gateway.complete(ref, [1])
    with pytest.raises(LeaseLostError):
        gateway.complete(ref, [2])


def test_plain_refusal_of_the_content_is_a_refusal(ats, client, redis_client, gateway):
    """A result that the service finds malformed is not a lost lease."""
    ref = claimed(ats, client, redis_client)
    ats.fault("answer", "complete", status=400, body=b'{"error": "outputs too long"}')
    with pytest.raises(GatewayRejectedError, match="outputs too long") as caught:
        gateway.complete(ref, [1])
    assert not isinstance(caught.value, LeaseLostError)


def test_plain_failure(ats, client, redis_client, gateway):
    """The final failure carries its reason; saying it again is no error."""
    ref = claimed(ats, client, redis_client)
    gateway.start(ref, runner="w1", message="")
    gateway.fail(ref, "-1 exit")
    gateway.fail(ref, "-1 exit")
    assert (ats.tasks[100]["status"], ats.tasks[100]["reason"]) == ("failed", "-1 exit")


@pytest.mark.parametrize(("counted", "left"), [(True, b"1"), (False, b"0")])
def test_plain_release_by_patch(ats, client, redis_client, gateway, counted, left):
    """A3: the task is pending again at once; an uncounted attempt is taken back, a pause is kept in Redis."""
    ref = claimed(ats, client, redis_client)
    gateway.start(ref, runner="w1", message="")
    gateway.release(ref, counted=counted, delay_s=30, reason="drain")
    assert ats.tasks[100]["status"] == "pending"
    assert redis_client.get(fences.attempts_key(ats.url, "100")) == left
    assert 0 < redis_client.pttl(fences.not_before_key(ats.url, "100")) <= 30_000
    assert ats.tasks[100]["messages"][-1]["parts"][0]["content"] == "drain"


def test_plain_release_where_patching_is_refused(ats, client, redis_client, gateway):
    """Without a way back to pending the lease is made so short that the service brings the task back by itself."""
    ats.switches.pending_by_patch = False
    ref = claimed(ats, client, redis_client)
    gateway.start(ref, runner="w1", message="")
    gateway.release(ref, counted=False, delay_s=0, reason="")
    assert ats.calls[-1][3] == {"lease_duration": 1000}
    ats.advance(2)
    assert ats.tasks[100]["status"] == "pending"


def test_uncounted_release_takes_the_attempt_back_once(ats, client, redis_client, gateway):
    """A release that has to be repeated because the service did not answer does not count back twice."""
    ref = claimed(ats, client, redis_client)
    gateway.start(ref, runner="w1", message="")
    redis_client.incr(fences.attempts_key(ats.url, "100"))
    ats.fault("answer", "PATCH", status=503)
    with pytest.raises(GatewayUnavailableError):
        gateway.release(ref, counted=False, delay_s=0, reason="")
    gateway.release(ref, counted=False, delay_s=0, reason="")
    assert ats.tasks[100]["status"] == "pending"
    assert redis_client.get(fences.attempts_key(ats.url, "100")) == b"1"


def test_redis_may_be_away_while_an_attempt_runs(ats, client, redis_client):
    """R3: without Redis nothing starts, but what runs is renewed, completed and released."""
    away = redis.Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0))
    gateway = PlainGateway(client, away, lease_s=LEASE_S)
    ref = claimed(ats, client, redis_client)
    with pytest.raises(GatewayUnavailableError, match="Redis"):
        gateway.start(ref, runner="w1", message="")
    assert gateway.renew(ref).ttl_s > 30
    gateway.complete(ref, [1])
    assert ats.tasks[100]["status"] == "completed"
    other = claimed(ats, client, redis_client)
    gateway.release(other, counted=False, delay_s=1, reason="")
    assert ats.tasks[101]["status"] == "pending"
    away.close()


def test_plain_register_of_sealed_messages(ats, client, redis_client, gateway):
    """In Redis, for good, one task per digest: again for a later attempt, refused for another task or service."""
    first, second = (claimed(ats, client, redis_client) for _ in range(2))
    for _ in range(2):
        gateway.seen(first, "ab")
    gateway.seen(replace(first, token=first.token + 1), "ab")
    with pytest.raises(SealReplayedError):
        gateway.seen(second, "ab")
    gateway.seen(second, "cd")
    assert redis_client.ttl(fences.sealed_key("ab")) == -1
    redis_client.incr(fences.token_key(ats.url, second.task_id))
    with pytest.raises(LeaseLostError):
        gateway.seen(second, "ef")
    with FakeAts() as other, closing(Client(protocol.endpoint(other.url), ME)) as far, pytest.raises(SealReplayedError):
        PlainGateway(far, redis_client, lease_s=LEASE_S).seen(first, "ab")
    away = redis.Redis(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0))
    with closing(away), pytest.raises(GatewayUnavailableError, match="Redis"):
        PlainGateway(client, away, lease_s=LEASE_S).seen(first, "ab")


def test_plain_log_and_reading(ats, client, redis_client, gateway):
    """What an attempt says is an ordinary message, said only while the task is ours; other tasks can be read."""
    ref = claimed(ats, client, redis_client)
    gateway.say(ref, "why")
    assert gateway.read("100").status == "in_progress"
    ats.tasks[100]["assignee_id"] = "somebody else"
    with pytest.raises(LeaseLostError):
        gateway.say(ref, "because")
    assert [said["parts"][0]["content"] for said in ats.tasks[100]["messages"]] == ["why"]


def test_two_services_do_not_share_counts():
    """Attempts are counted by service and task: the same id elsewhere is another task."""
    assert fences.attempts_key("http://a", "7") != fences.attempts_key("http://b", "7")
