"""What is sent for each call."""

from __future__ import annotations

import json

import pytest

from dispatch.ats import protocol
from dispatch.ats.model import Actor
from dispatch.errors import ConfigurationError

WHERE = protocol.endpoint("http://127.0.0.1:8700/")
SCOPED = protocol.endpoint("https://ats.example/base/", org="acme", project="web")


@pytest.mark.parametrize(
    ("request_", "method", "target", "body"),
    [
        (protocol.health(), "GET", "/health", None),
        (protocol.stats(), "GET", "/tasks/stats", None),
        (protocol.get("7"), "GET", "/tasks/7", None),
        (
            protocol.list_tasks(status=["pending", "failed"], limit=5),
            "GET",
            "/tasks?status=pending%2Cfailed&limit=5",
            None,
        ),
        (protocol.patch("7", title="x"), "PATCH", "/tasks/7", {"title": "x"}),
        (protocol.claim("7"), "POST", "/tasks/7/claim", {}),
        (protocol.claim("7", lease_s=1.5), "POST", "/tasks/7/claim", {"lease_duration": 1500}),
        (protocol.complete("7"), "POST", "/tasks/7/complete", {}),
        (protocol.complete("7", [1], token=3), "POST", "/tasks/7/complete", {"outputs": [1], "fencing_token": 3}),
        (protocol.fail("7", "no"), "POST", "/tasks/7/fail", {"reason": "no"}),
        (protocol.cancel("7"), "POST", "/tasks/7/cancel", None),
        (protocol.reject("7"), "POST", "/tasks/7/reject", {}),
        (protocol.reopen("7", "again"), "POST", "/tasks/7/reopen", {"reason": "again"}),
        (protocol.list_messages("7"), "GET", "/tasks/7/messages", None),
        (protocol.list_projects("acme"), "GET", "/orgs/acme/projects?counts=true", None),
        (protocol.create_project("acme", "web", "Web"), "POST", "/orgs/acme/projects", {"slug": "web", "name": "Web"}),
        (protocol.start("7", token=2, runner="r"), "POST", "/tasks/7/start", {"fencing_token": 2, "runner": "r"}),
        (
            protocol.renew("7", token=2, lease_s=120, message="m"),
            "POST",
            "/tasks/7/renew",
            {"fencing_token": 2, "lease_duration": 120_000, "message": "m"},
        ),
        (
            protocol.release("7", token=2, counted=True, delay_s=5),
            "POST",
            "/tasks/7/release",
            {"fencing_token": 2, "counted": True, "delay_ms": 5000},
        ),
    ],
)
def test_call_on_the_wire(request_, method, target, body):
    """Every call has the method, target and body of the protocol, with undefined keys absent."""
    assert request_.method == method
    assert protocol.target(request_, WHERE) == target
    assert request_.body == body
    assert protocol.encode(request_) == (b"" if body is None else json.dumps(body, separators=(",", ":")).encode())


def test_create_sends_the_defaults_and_leaves_absent_fields_out():
    """A task of which only the title is known goes out with type, channel and priority, and nothing else."""
    assert protocol.create("t", description=None).body == {
        "title": "t",
        "type": "task",
        "channel": "default",
        "priority": 5,
    }
    assert protocol.create("t", payload=[1], priority=9).body["payload"] == [1]


def test_scope_is_put_before_task_and_message_routes_only():
    """Project scope changes task and message routes; health, statistics and organisations stay bare."""
    scope = "/base/orgs/acme/projects/web"
    assert protocol.target(protocol.get("7"), SCOPED) == f"{scope}/tasks/7"
    assert protocol.target(protocol.create("t"), SCOPED) == f"{scope}/tasks"
    assert protocol.target(protocol.post_message("7", "hi"), SCOPED) == f"{scope}/tasks/7/messages"
    assert protocol.target(protocol.start("7", token=1, runner="r"), SCOPED) == f"{scope}/tasks/7/start"
    for request in (protocol.health(), protocol.stats(), protocol.list_orgs()):
        assert protocol.target(request, SCOPED) == "/base" + request.path


@pytest.mark.parametrize(
    ("org", "project", "scope"),
    [(None, None, ""), ("a", None, "/orgs/a/projects/main"), (None, "p", "/orgs/default/projects/p")],
)
def test_missing_half_of_the_scope_has_a_default(org, project, scope):
    """A project without organisation lies in ``default``, an organisation without project means ``main``."""
    assert protocol.endpoint("http://x", org=org, project=project).scope == scope


@pytest.mark.parametrize(("task_id", "shown"), [("../x", "..%2Fx"), ("..", "%2E%2E"), ("a b?c#d", "a%20b%3Fc%23d")])
def test_an_id_cannot_leave_its_place_in_the_path(task_id, shown):
    """An id with slashes, dots or marks of a query is one percent-encoded segment."""
    assert protocol.get(task_id).path == f"/tasks/{shown}"


@pytest.mark.parametrize(
    "url",
    ["ftp://x", "http://", "http://user:pw@x", "http://x?a=b", "http://x:99999", "http://[::1"],
)
def test_unusable_url_is_a_configuration_error_without_the_password(url):
    """A URL that cannot work is refused in one sentence that shows no password."""
    with pytest.raises(ConfigurationError) as caught:
        protocol.endpoint(url)
    assert "pw" not in str(caught.value)


def test_headers_carry_the_actor_and_the_token():
    """Every call says who calls; a token goes out as a bearer token, and never shows in a repr."""
    where = protocol.endpoint("http://x", token="s3cret")
    assert protocol.headers(where, Actor("agent", "a-1", "Zoë\r\nX-Evil: 1")) == {
        "Content-Type": "application/json",
        "Accept": "application/json",
        "X-Actor-Type": "agent",
        "X-Actor-ID": "a-1",
        "X-Actor-Name": "ZoëX-Evil: 1",
        "Authorization": "Bearer s3cret",
    }
    assert "s3cret" not in repr(where)
    with pytest.raises(ConfigurationError):
        protocol.endpoint("http://x", token="two words")


def test_body_is_strict_json_in_utf8():
    """NaN is refused before it is sent; a lone surrogate goes out escaped; other text goes out as UTF-8."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        protocol.encode(protocol.create("t", payload={"x": float("nan")}))
    assert b"\\ud800" in protocol.encode(protocol.create("\ud800"))
    assert "é".encode() in protocol.encode(protocol.create("é"))


def test_only_calls_that_may_be_repeated_say_so():
    """A new task or message must not be sent twice by a client on its own; everything else may."""
    assert not protocol.create("t").repeatable
    assert not protocol.post_message("7", "x").repeatable
    assert protocol.claim("7", claim_id="c").repeatable
    assert protocol.complete("7", [], token=1).repeatable
