"""What people are told, and how it is cut and escaped; what a callback's URL and secrets must be."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from dispatch.ats.model import Event, Task
from dispatch.ingress.deliveries import ended_of
from dispatch.ingress.notices import kind_of, notice_of
from dispatch.ingress.outbox import Delivery
from dispatch.notify.message import LISTED_MAX, Message, Notice, compose, cut_utf16
from dispatch.notify.telegram import UNITS_MAX, as_html
from dispatch.notify.webhook import BadUrlError, WebhookRules, Webhooks, retry_after_s, secrets_of, shown
from dispatch.notify.wishes import Wishes, effective


def units(text: str) -> int:
    """Length as Telegram counts it."""
    return len(text.encode("utf-16-le")) // 2


def test_one_event_is_a_sentence() -> None:
    """Number, title, what happened, and why or what came out."""
    assert compose([Notice("7", "failed", "Build", detail="exit 3")]) == Message("Task #7 Build failed", "exit 3")
    assert compose([Notice("7", "completed")]) == Message("Task #7 completed", "")


def test_many_events_are_counted_and_listed_the_worst_first() -> None:
    """One message for all; at most so many are listed; what was dropped is counted."""
    notices = [Notice(str(n), "completed", f"t{n}") for n in range(17)]
    notices += [Notice(str(n), "failed", f"t{n}") for n in range(17, 20)] + [Notice("20", "in_review")]
    message = compose(notices, dropped=4)
    assert message.head == "25 tasks: 3 failed, 1 waiting for review, 17 completed and 4 more events"
    lines = message.text.splitlines()
    assert lines[0] == "failed: #17 t17"
    assert lines[3] == "waiting for review: #20"
    assert lines[LISTED_MAX] == "and 1 others"
    assert compose([], dropped=2).head == "2 tasks: 2 more events"


def test_a_title_cannot_break_out_of_its_line() -> None:
    """Line ends, controls and marks that reorder text are blanks; a detail keeps its lines and loses the rest."""
    message = compose([Notice("7", "failed", "a\r\nb\u2028c\x1b[31m\u202ed", detail="x\n\u202ey\x07")])
    assert message == Message("Task #7 a b c [31m d failed", "x\n y")


@pytest.mark.parametrize("text", ["x" * 10_000, "😀" * 10_000, "&" * 10_000, "<b>&amp;</b>" * 1_000])
def test_telegram_gets_no_more_than_it_takes(text: str) -> None:
    """Cut by UTF-16 units before escaping: never half a character, never half an entity."""
    shown_text = as_html(Message("head <b>", text))
    assert shown_text.startswith("<b>head &lt;b&gt;</b>\n")
    plain = shown_text.replace("<b>", "", 1).replace("</b>", "", 1)
    assert "<" not in plain
    parsed = plain.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert UNITS_MAX - 2 <= units(parsed) <= UNITS_MAX
    assert parsed.endswith("…")
    assert text.startswith(parsed.partition("\n")[2][:-1])


def test_cutting_keeps_what_fits() -> None:
    """A text of exactly the limit stays whole."""
    assert cut_utf16("😀" * 10, 20) == "😀" * 10
    assert cut_utf16("😀" * 10, 19) == "😀" * 9 + "…"


def event(verb: str, status: str, attempts: int = 0) -> Event:
    """An event of the feed."""
    return Event(verb, "7", Task("7", status=status, attempts=attempts), "c", 1, None)


@pytest.mark.parametrize(
    ("verb", "status", "attempts", "kind"),
    [
        ("completed", "completed", 1, "completed"),
        ("failed", "failed", 3, "failed"),
        ("cancelled", "cancelled", 0, "cancelled"),
        ("rejected", "rejected", 0, "rejected"),
        ("claimed", "in_progress", 0, "picked_up"),
        ("claimed", "in_progress", 1, None),
        ("updated", "in_review", 1, "in_review"),
        ("updated", "completed", 1, None),
        ("recovered", "failed", 0, "failed"),
        ("recovered", "in_review", 0, "in_review"),
        ("recovered", "pending", 0, None),
        ("created", "pending", 0, None),
    ],
)
def test_which_events_are_told(verb: str, status: str, attempts: int, kind: str | None) -> None:
    """Each end, the first picking up, and the coming to review, once each."""
    assert kind_of(event(verb, status, attempts)) == kind


def test_nothing_of_an_encrypted_task_is_told() -> None:
    """Its number and what happened, although its outer fields hold texts."""
    task = Task("7", title="secret", status="failed", reason="secret", payload={"encrypted": True, "quiet": True})
    assert notice_of("failed", task) == Notice("7", "failed")


@pytest.mark.parametrize(
    ("status", "completed_at", "stale"),
    [
        ("completed", "2026-11-21T08:00:00.000Z", False),
        ("completed", None, False),
        ("completed", "2026-11-21T09:00:00.000Z", True),
        ("pending", None, True),
        ("failed", "2026-11-21T08:00:00.000Z", True),
    ],
)
def test_a_task_that_was_reopened_since_is_noticed(status: str, completed_at: str | None, stale: bool) -> None:
    """By its status, and by the time at which it ended, where the service says that."""
    delivery = Delivery("dlv_1", "7", "completed", "2026-11-21T08:00:00.000Z", 1, 1)
    task = Task("7", status=status, raw={"completed_at": completed_at})
    assert ended_of(delivery, task).is_stale is stale


@pytest.mark.parametrize(
    ("payload", "wanted"),
    [
        (None, Wishes()),
        ("text", Wishes()),
        ({"callback_url": " https://x "}, Wishes("https://x")),
        ({"callback_url": 7, "quiet": "true"}, Wishes()),
        ({"quiet": True}, Wishes(quiet=True)),
        ({"encrypted": True, "callback_url": "https://evil", "quiet": True}, Wishes()),
    ],
)
def test_what_a_task_wants(payload: object, wanted: Wishes) -> None:
    """C6: the outer fields of an encrypted task count for nothing."""
    assert effective(Task("7", payload=payload)) == wanted


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("https://example.com/hook?a=1", ""),
        ("https://example.com:8443/", ""),
        ("https://[2001:db8::1]/", ""),
        ("http://example.com/", "url_scheme"),
        ("file:///etc/passwd", "url_scheme"),
        ("gopher://example.com/", "url_scheme"),
        ("//example.com/", "url_scheme"),
        ("example.com", "url_scheme"),
        ("https://user@example.com/", "url_userinfo"),
        ("https://a@b@c/", "url_userinfo"),
        ("https://@example.com/", "url_userinfo"),
        ("https://example.com:22/", "url_port"),
        ("https://example.com:99999/", "url_malformed"),
        ("https:///hook", "url_malformed"),
        ("https://bücher.example/", "url_malformed"),
        ("https://example.com\\@evil.example/", "url_malformed"),
        ("https://example.com/\r\nX: y", "url_malformed"),
        ("https://example.com/ x", "url_malformed"),
        ("https://example.com/" + "x" * 3_000, "url_malformed"),
    ],
)
def test_which_urls_are_called(url: str, word: str) -> None:
    """https to an allowed port, no user, nothing that two parsers could read in two ways."""
    webhooks = Webhooks(WebhookRules(ports=frozenset({443, 8443})))
    if not word:
        webhooks.check(url)
        return
    with pytest.raises(BadUrlError, match=word):
        webhooks.check(url)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://u:p@example.com:8443/a?token=x#y", "https://example.com:8443/a"),
        ("https://example.com:99999/", "(not a URL)"),
        ("https://[", "(not a URL)"),
    ],
)
def test_how_urls_are_logged(url: str, text: str) -> None:
    """Without user, password, query and fragment."""
    assert shown(url) == text


@pytest.mark.parametrize("text", ["whsec_", "whsec_AAAA", "A" * 32, "whsec_" + "A" * 31, "whsec_!" + "A" * 31])
def test_bad_secrets_are_refused_unseen(text: str) -> None:
    """What is no secret of Standard Webhooks is an error that does not show it."""
    with pytest.raises(ValueError, match="must be whsec_") as caught:
        secrets_of(f"{text},{text}")
    assert text == "whsec_" or text not in str(caught.value)


def test_secrets_are_separated_by_commas() -> None:
    """While secrets change there are two."""
    one, other = ("whsec_" + base64.b64encode(bytes([n]) * 24).decode() for n in (1, 2))
    assert secrets_of(f" {one}, {other},") == (one, other)


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [("", None, None), ("soon", None, None), ("-1", None, None), ("7", 7.0, 7.0), (None, 58.0, 60.0)],
)
def test_retry_after_is_read_in_both_forms(value: str | None, low: float | None, high: float | None) -> None:
    """Seconds or a date; nonsense is as if it were not there."""
    if value is None:
        value = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    found = retry_after_s({"Retry-After": value})
    assert found is None if low is None or high is None else low <= (found or 0) <= high
