"""What an answer means."""

from __future__ import annotations

import json

import pytest

from dispatch.ats import answers
from dispatch.ats.model import parse_task, parse_time
from dispatch.errors import (
    AuthenticationError,
    GatewayRejectedError,
    GatewayUnavailableError,
    LeaseLostError,
    UnknownTaskError,
)


def interpret(status, body=b"{}", headers=None, **kw):
    """Interpret an answer with this status and body."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return answers.interpret(status, headers or {}, raw, **kw)


def test_success_is_the_json():
    """A 2xx answer is returned as it is; 204 without a body counts as an empty object."""
    assert interpret(200, {"a": 1}) == {"a": 1}
    assert interpret(201, []) == []
    assert interpret(204, b"") == {}


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, GatewayRejectedError),
        (401, AuthenticationError),
        (403, AuthenticationError),
        (404, UnknownTaskError),
        (408, GatewayUnavailableError),
        (409, GatewayRejectedError),
        (413, GatewayRejectedError),
        (422, GatewayRejectedError),
        (429, GatewayUnavailableError),
        (302, GatewayUnavailableError),
        (500, GatewayUnavailableError),
        (502, GatewayUnavailableError),
        (503, GatewayUnavailableError),
    ],
)
def test_status_decides_the_kind_of_error(status, kind):
    """Each status is one kind of error, and the service's sentence is the error's sentence."""
    with pytest.raises(kind) as caught:
        interpret(status, {"error": "so it is"})
    assert type(caught.value) is kind
    if status != 302:
        assert str(caught.value) == "so it is"


@pytest.mark.parametrize("code", ["STALE_LEASE", "LEASE_HELD", "ILLEGAL_MOVE"])
def test_conflict_about_the_lease_is_a_lost_lease_only_under_a_lease(code):
    """409 with a code about lease or lifecycle stops an attempt; to anybody else it is a refusal."""
    body = {"error": "no", "code": code, "status": "cancelled"}
    with pytest.raises(LeaseLostError) as caught:
        interpret(409, body, leased=True)
    assert (caught.value.code, caught.value.status, caught.value.task_status) == (code, 409, "cancelled")
    with pytest.raises(GatewayRejectedError) as refused:
        interpret(409, body)
    assert not isinstance(refused.value, LeaseLostError)


def test_other_conflicts_are_refusals_under_a_lease_too():
    """409 with another code does not stop an attempt."""
    with pytest.raises(GatewayRejectedError) as caught:
        interpret(409, {"error": "no", "code": "CONFLICT"}, leased=True)
    assert not isinstance(caught.value, LeaseLostError)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>x</html>", b'{"a":', b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"],
    ids=["empty", "html", "cut", "not utf-8", "deep", "huge number"],
)
@pytest.mark.parametrize("status", [200, 400, 404, 409, 502])
def test_answer_that_is_not_json_means_try_again(status, body):
    """T5: HTML, cut-off and hostile bodies are never taken for an answer of the service, whatever the status."""
    with pytest.raises(GatewayUnavailableError):
        interpret(status, body)


def test_refused_key_and_size_need_no_json():
    """A proxy's 401 or 413 page means what its status says."""
    with pytest.raises(AuthenticationError):
        interpret(401, b"<html>")
    with pytest.raises(GatewayRejectedError):
        interpret(413, b"<html>")


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"Retry-After": "7"}, {}, 7.0),
        ({"retry-after": " 7 "}, {}, 7.0),
        ({"Retry-After": "99999999999"}, {}, answers.RETRY_AFTER_MAX_S),
        ({"Retry-After": "-1"}, {}, None),
        ({"Retry-After": "soon"}, {}, None),
        ({"Retry-After": "Sat, 21 Nov 2026 08:00:09 GMT", "Date": "Sat, 21 Nov 2026 08:00:00 GMT"}, {}, 9.0),
        ({"Retry-After": "Sat, 21 Nov 2026 08:00:09 GMT"}, {}, None),
        ({}, {"retry_after_ms": 1500}, 1.5),
        ({}, {}, None),
    ],
)
def test_retry_after(headers, body, seconds):
    """T4: the wait is read from the header (seconds or a date against the service's own) or the body, and bounded."""
    with pytest.raises(GatewayUnavailableError) as caught:
        interpret(429, body, headers)
    assert caught.value.retry_after_s == seconds


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"message": "said so"}, "said so"),
        ({"error": {"nested": 1}}, "The task service answered HTTP 400."),
        ([], "The task service answered HTTP 400."),
        ({"error": "x" * 9000}, "x" * 500),
    ],
)
def test_sentence_of_a_refusal(body, sentence):
    """``error`` or ``message`` is shown when it is a text, cut to a bearable length; else the status."""
    with pytest.raises(GatewayRejectedError) as caught:
        interpret(400, body)
    assert str(caught.value) == sentence


def test_redirect_names_the_place():
    """A service behind another address says so."""
    with pytest.raises(GatewayUnavailableError, match="https://x/"):
        interpret(301, b"", {"Location": "https://x/"})


def test_odd_values_in_one_task_do_not_hide_the_others():
    """A8: NaN, a lone surrogate or an entry without id leaves the rest of a list readable."""
    raw = (
        b'{"tasks": [{"id": 1, "payload": NaN}, {"id": 2, "title": "a\\ud800b"}, {"title": "no id"}, 7, {"id": true}]}'
    )
    tasks = answers.tasks_of(answers.interpret(200, {}, raw))
    assert [(task.id, task.title) for task in tasks] == [("1", ""), ("2", "a?b")]
    assert tasks[0].payload is None


def test_lists_come_in_an_envelope_or_bare():
    """Tasks and messages are read in both forms; anything else is no answer."""
    assert [t.id for t in answers.tasks_of([{"id": 1}])] == ["1"]
    assert answers.messages_of([{"id": 1}, 3]) == answers.messages_of({"messages": [{"id": 1}]}) == [{"id": 1}]
    for read in (answers.tasks_of, answers.messages_of):
        with pytest.raises(GatewayUnavailableError):
            read({"something": "else"})


def test_extensions_are_read_forgivingly():
    """A plain ATS announces nothing; odd entries are left out."""
    assert answers.extensions_of({"extensions": ["fencing", 3]}) == {"fencing"}
    assert answers.extensions_of({"extensions": "fencing"}) == answers.extensions_of(None) == frozenset()


def test_difference_of_clocks():
    """The service's Date tells how far its clock is from ours; less than two seconds is no difference."""
    assert answers.date_offset_s("Thu, 01 Jan 1970 00:01:40 GMT", 40.0) == 60.0
    assert answers.date_offset_s("Thu, 01 Jan 1970 00:00:41 GMT", 40.0) == 0.0
    assert answers.date_offset_s("yesterday", 40.0) == 0.0


def test_times_without_a_zone_are_utc():
    """Times of a service can always be compared with each other."""
    assert (
        parse_time("2026-11-21T08:00:00")
        == parse_time("2026-11-21T08:00:00.000Z")
        == parse_time("2026-11-21T09:00:00+01:00")
    )
    assert parse_time("soon") is parse_time(7) is None


def test_task_is_read_bare_or_in_its_envelope():
    """Both forms give the same task; ids are strings whatever they were."""
    assert parse_task({"task": {"id": 7, "title": "t"}}, keep_raw=False) == parse_task(
        {"id": "7", "title": "t"}, keep_raw=False
    )
    assert parse_task({"uuid": "u-1"}).id == "u-1"
