"""Every check on a sealed task: what is accepted, what is refused, and as what (C1-C6)."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dispatch.crypto import content, encoding, keys, opening, sending
from dispatch.crypto.content import Answer, Content, Head
from dispatch.crypto.keys import KeyPair
from dispatch.crypto.opening import TITLE, Opened, Outside
from dispatch.crypto.refusal import Refusal, SealError
from dispatch.crypto.trust import OwnKey, Ring, Sender, Trust

NOW_S = 1_763_700_000.0
DAY_S = 86_400.0
CHANNEL = "builds"
OURS, ALICE, BOB, STRANGER = (KeyPair.of(bytes([n]) * 32) for n in (1, 2, 3, 4))
SAID = Content(
    title="Analyse \U0001f512",
    description="the logs",
    payload={"n": [1, 2.5, None, "ä"]},
    callback_url="https://example.com/hook",
    depends_on=("7", "8"),
    quiet=True,
)
TRUST = Trust(
    ring=Ring((OwnKey(OURS),)),
    senders={
        "alice": Sender("alice", ALICE.public),
        "bob": Sender("bob", BOB.public, revoked_at="2026-01-01T00:00:00Z"),
    },
)
_used = iter(range(10**6))


def nonce() -> bytes:
    """A nonce that no other message here has."""
    return next(_used).to_bytes(24, "big")


def v1(said: Content = SAID, pair: KeyPair = ALICE, sender: str | None = "alice", to: bytes = OURS.public) -> Any:
    """A payload of version 1."""
    return sending.seal_v1(said, pair=pair, to=to, sender=sender, nonce=nonce())


def v2(said: Content = SAID, pair: KeyPair = ALICE, **other: Any) -> Any:
    """A payload of version 2."""
    given = {"to": OURS.public, "channel": CHANNEL, "message_id": "m1", "now_s": NOW_S, "expires_after_s": DAY_S}
    return sending.seal_v2(said, pair=pair, nonce=nonce(), **{**given, **other})


def outside(payload: Any, title: str = TITLE, created_at_s: float | None = NOW_S, channel: str = CHANNEL) -> Outside:
    """What everybody sees of a task."""
    return Outside("42", title, channel, payload, created_at_s)


def opened(payload: Any, trust: Trust = TRUST, now_s: float = NOW_S, **other: Any) -> Opened:
    """Open a payload."""
    return opening.open_task(outside(payload, **other), trust, now_s=now_s)


def refusal(payload: Any, trust: Trust = TRUST, now_s: float = NOW_S, **other: Any) -> Refusal:
    """Say as what a payload is refused; a detail never shows what is inside."""
    with pytest.raises(SealError) as caught:
        opened(payload, trust, now_s, **other)
    assert SAID.title not in str(caught.value)
    assert "the logs" not in str(caught.value)
    return caught.value.refusal


def boxed(plain: bytes, *, version: int = 1, pair: KeyPair = ALICE) -> dict[str, Any]:
    """A payload with anything inside, sealed by a trusted sender."""
    one = nonce()
    sealed = pair.seal(plain, to=OURS.public, nonce=one)
    who = {"sender": "alice"} if version == 1 else {"v": 2, "from": encoding.encode(pair.public), "to": OURS.kid}
    return {"encrypted": True, **who, "nonce": encoding.encode(one), "ciphertext": encoding.encode(sealed)}


BOTH = pytest.mark.parametrize("seal", [v1, v2], ids=["v1", "v2"])


@BOTH
def test_what_was_sealed_is_what_is_opened(seal: Callable[[], Any]) -> None:
    """All that the sender said comes out, whoever it was and with which key of ours is known."""
    found = opened(seal())
    assert found.content == SAID
    assert (found.sender.name, found.pair) == ("alice", OURS)
    assert found.message_id == ("m1" if found.version == 2 else "")


def test_senders_by_name_by_key_or_by_both() -> None:
    """Existing senders give a name, or a key; whoever gives both must mean one sender."""
    named, keyed = v1(), v1(sender=None)
    assert "from" not in named
    assert "sender" not in keyed
    assert opened(named).sender == opened(keyed).sender == opened({**keyed, "sender": "alice"}).sender


# --- C1: tampered and cut ------------------------------------------------------------------------------------------


def changed(payload: Any, field: str, change: Callable[[bytes], bytes]) -> Any:
    """A payload with other bytes in a field."""
    return {**payload, field: encoding.encode(change(base64.b64decode(payload[field])))}


@BOTH
@pytest.mark.parametrize(
    ("field", "change", "wanted"),
    [
        ("nonce", lambda raw: raw[:5] + bytes([raw[5] ^ 1]) + raw[6:], Refusal.FORGED),
        ("ciphertext", lambda raw: bytes([raw[0] ^ 1]) + raw[1:], Refusal.FORGED),  # the tag
        ("ciphertext", lambda raw: raw[:20] + bytes([raw[20] ^ 128]) + raw[21:], Refusal.FORGED),
        ("ciphertext", lambda raw: raw[:-1], Refusal.FORGED),
        ("ciphertext", lambda raw: raw + b"\0", Refusal.FORGED),
        ("ciphertext", lambda _: b"", Refusal.FORGED),
        ("ciphertext", lambda raw: raw[:15], Refusal.FORGED),
        ("ciphertext", lambda raw: raw[:16], Refusal.FORGED),
        ("nonce", lambda raw: raw[:23], Refusal.MALFORMED),
        ("nonce", lambda raw: raw + b"\0", Refusal.MALFORMED),
        ("nonce", lambda _: b"", Refusal.MALFORMED),
    ],
)
def test_what_was_changed_or_cut_does_not_open(
    seal: Callable[[], Any], field: str, change: Callable[[bytes], bytes], wanted: Refusal
) -> None:
    """One bit anywhere, a byte more or less: it does not open, and nothing else is said."""
    assert refusal(changed(seal(), field, change)) is wanted


@BOTH
@pytest.mark.parametrize("field", ["nonce", "ciphertext"])
@pytest.mark.parametrize("value", [None, 7, [], {}, True, "***", "\ud800", "YQ", "YQ==\n"])
def test_what_is_no_base64_is_malformed(seal: Callable[[], Any], field: str, value: Any) -> None:
    """Whatever stands in the place of bytes is refused as malformed, without a traceback."""
    assert refusal({**seal(), field: value}) is Refusal.MALFORMED
    without = seal()
    del without[field]
    assert refusal(without) is Refusal.MALFORMED


# --- C2: whose it is -----------------------------------------------------------------------------------------------

FROM = encoding.encode(ALICE.public)


@pytest.mark.parametrize(
    ("who", "wanted"),
    [
        ({"sender": "nobody"}, Refusal.UNKNOWN_SENDER),
        ({"sender": "__proto__"}, Refusal.UNKNOWN_SENDER),
        ({"sender": "alice", "from": encoding.encode(STRANGER.public)}, Refusal.UNKNOWN_SENDER),
        ({"sender": "nobody", "from": FROM}, Refusal.UNKNOWN_SENDER),
        ({"from": encoding.encode(STRANGER.public)}, Refusal.UNKNOWN_SENDER),
        ({"sender": "alice", "from": encoding.encode(BOB.public)}, Refusal.SENDER_MISMATCH),
        ({"sender": "bob", "from": FROM}, Refusal.SENDER_MISMATCH),
        ({"sender": "bob"}, Refusal.REVOKED_SENDER),
        ({"from": encoding.encode(BOB.public)}, Refusal.REVOKED_SENDER),
        ({}, Refusal.MALFORMED),
        ({"sender": 7}, Refusal.MALFORMED),
        ({"sender": ["alice"]}, Refusal.MALFORMED),
        ({"from": encoding.encode(bytes(32))}, Refusal.MALFORMED),
        ({"from": encoding.encode(b"\1" + bytes(31))}, Refusal.MALFORMED),
        ({"from": encoding.encode(ALICE.public[:31])}, Refusal.MALFORMED),
        ({"from": encoding.encode(ALICE.public + b"\0")}, Refusal.MALFORMED),
        ({"from": FROM[:-2] + chr(ord(FROM[-2]) + 1) + "="}, Refusal.MALFORMED),
        ({"from": FROM.rstrip("=")}, Refusal.MALFORMED),
        ({"from": FROM + "\n"}, Refusal.MALFORMED),
        ({"from": " " + FROM}, Refusal.MALFORMED),
        ({"from": base64.urlsafe_b64encode(b"\xff" * 32).decode()}, Refusal.MALFORMED),
        ({"from": 7}, Refusal.MALFORMED),
    ],
)
def test_whose_it_is(who: dict[str, Any], wanted: Refusal) -> None:
    """One sender is found by name and key together, or none: low order, wrong size, other spellings are no keys."""
    assert refusal({"encrypted": True, **who, **{name: v1()[name] for name in ("nonce", "ciphertext")}}) is wanted


def test_a_trusted_sender_cannot_speak_as_another() -> None:
    """What carol sealed does not open as alice's, in either version; and inside it must say whose it is."""
    carol = KeyPair.of(bytes([5]) * 32)
    trust = replace(TRUST, senders={**TRUST.senders, "carol": Sender("carol", carol.public)})
    assert refusal(v1(pair=carol, sender="alice"), trust) is Refusal.FORGED
    assert refusal({**v2(pair=carol), "from": FROM}, trust) is Refusal.FORGED
    for sender_kid, recipient_kid in ((carol.kid, OURS.kid), (ALICE.kid, carol.kid), (OURS.kid, ALICE.kid)):
        head = Head("m1", sender_kid, recipient_kid, CHANNEL, int(NOW_S))
        assert refusal(boxed(content.write_v2(head, SAID), version=2), trust) is Refusal.SENDER_MISMATCH


def test_names_and_fingerprints_are_made_from_bytes() -> None:
    """One key has one fingerprint, 32 hexadecimal digits, however its text was spelled elsewhere."""
    assert keys.kid_of(bytes(range(32))) == "f39a2cad58411cd49f577e5086b8031f"
    assert keys.kid_of(encoding.decode(FROM)) == keys.kid_of(ALICE.public) == ALICE.kid
    other = FROM[:-2] + chr(ord(FROM[-2]) + 1) + "="
    assert base64.b64decode(other) == ALICE.public
    with pytest.raises(ValueError, match="another spelling"):
        keys.read_public(other)


# --- keys of ours ----------------------------------------------------------------------------------------------------


def test_a_rotated_key_opens_for_a_while() -> None:
    """The old key opens until its time is over, then it is as if we never had it; answers go out with the same key."""
    new = KeyPair.of(bytes([6]) * 32)
    ring = Ring((OwnKey(new), OwnKey(OURS, opens_until_s=NOW_S + 10)))
    trust = replace(TRUST, ring=ring)
    for payload in (v1(), v2()):
        assert opened(payload, trust).pair == OURS
    late_s = NOW_S + 10
    assert refusal(v2(), trust, late_s) is Refusal.UNKNOWN_RECIPIENT
    assert refusal(v1(), trust, late_s) is Refusal.FORGED
    assert opened(v1(to=new.public), trust).pair == new


def test_what_is_not_for_us_is_not_opened() -> None:
    """A key id that is not ours, or no key at all."""
    assert refusal(v2(to=STRANGER.public)) is Refusal.UNKNOWN_RECIPIENT
    assert refusal({**v2(), "to": 7}) is Refusal.UNKNOWN_RECIPIENT
    assert refusal({**v1(), "to": STRANGER.kid}) is Refusal.UNKNOWN_RECIPIENT
    assert refusal(v1(to=STRANGER.public)) is Refusal.FORGED
    for payload in (v1(), v2()):
        assert refusal(payload, replace(TRUST, ring=Ring())) is Refusal.UNKNOWN_RECIPIENT


# --- C3: the digest ---------------------------------------------------------------------------------------------------


@BOTH
def test_one_message_has_one_digest(seal: Callable[[], Any]) -> None:
    """The same message in another task, at another time or with more beside it is the same to the register."""
    payload = seal()
    first = opened(payload).digest
    assert opening.open_task(replace(outside(payload), task_id="43"), TRUST, now_s=NOW_S + 5).digest == first
    assert opened({**payload, "from": FROM, "quiet": True}).digest == first
    renamed = replace(TRUST, senders={"alice": replace(TRUST.senders["alice"]), "al": Sender("al", ALICE.public)})
    assert opened(payload, renamed).digest == first
    assert opened(seal()).digest != first
    assert len(first) == 64
    assert ALICE.kid not in first


def test_the_same_nonce_of_two_senders_is_two_messages() -> None:
    """Nonces are the senders' own business: nobody can use up another's."""
    assert keys.digest_of(ALICE.public, bytes(24)) != keys.digest_of(BOB.public, bytes(24))
    assert keys.digest_of(ALICE.public, bytes(24)) != keys.digest_of(ALICE.public, bytes(23) + b"\1")


# --- C4: our own answers ----------------------------------------------------------------------------------------------


def answered(payload: Any, text: str = "done", number: int = 7) -> dict[str, Any]:
    """The answer of ours to a sealed task."""
    return opening.answer(
        opened(payload), text, task_id="42", attempt=1, status="completed", now_s=NOW_S, random=bytes([number]) * 28
    )


@pytest.mark.parametrize("text", ["done", json.dumps({"title": "rm -rf"})])
@pytest.mark.parametrize("version", [1, 2])
@BOTH
def test_our_own_answer_is_no_task(seal: Callable[[], Any], version: int, text: str) -> None:
    """Both directions of a box share one key: an answer fed back opens, and is known all the same, by its mark."""
    back = answered(seal(), text)["encrypted_response"]
    who = {"sender": "alice"} if version == 1 else {"v": 2, "from": FROM, "to": OURS.kid}
    assert refusal({"encrypted": True, **who, **back}) is Refusal.REFLECTION


def test_an_answer_of_a_retired_key_is_no_task() -> None:
    """Its mark is known as long as the key is; afterwards it does not open."""
    back = answered(v1())["encrypted_response"]
    ring = Ring((OwnKey(STRANGER), OwnKey(OURS, opens_until_s=NOW_S + 10)))
    payload = {"encrypted": True, "sender": "alice", **back}
    for now_s in (NOW_S, NOW_S + 20):
        assert refusal(payload, replace(TRUST, ring=ring), now_s) is Refusal.REFLECTION
    assert refusal(payload, replace(TRUST, ring=Ring((OwnKey(STRANGER),)))) is Refusal.FORGED


def test_what_looks_like_an_answer_is_no_task() -> None:
    """Without our mark, as another implementation may make them, version 2 says inside what it is."""
    answer = Answer("m2", "m1", "42", 1, ALICE.kid, OURS.kid, int(NOW_S), "completed", "x")
    assert refusal(boxed(content.write_answer(answer), version=2)) is Refusal.REFLECTION


def test_version_2_is_not_opened_as_version_1() -> None:
    """Whoever strips the version would strip what it binds: a task or an answer of version 2 is refused as 1."""
    payload = v2()
    stripped = {name: value for name, value in payload.items() if name != "v"}
    assert refusal(stripped) is Refusal.VERSION
    assert refusal({**stripped, "v": 1}) is Refusal.VERSION
    assert refusal({"encrypted": True, "sender": "alice", **{k: payload[k] for k in ("nonce", "ciphertext")}}) is (
        Refusal.VERSION
    )
    answer = Answer("m2", "m1", "42", 1, ALICE.kid, OURS.kid, int(NOW_S), "completed", "x")
    assert refusal(boxed(content.write_answer(answer))) is Refusal.VERSION
    assert refusal(boxed(b'{"title": "x", "v": 3}')) is Refusal.VERSION
    assert refusal({**v1(), "v": 2}) is Refusal.CONTENT


# --- C5: what stands outside ------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("fields", "title"),
    [
        ({"callback_url": "https://evil.example/"}, TITLE),
        ({"callback_url": None}, TITLE),
        ({"callback_url": ["https://example.com/hook"]}, TITLE),
        ({"quiet": False}, TITLE),
        ({"quiet": 1}, TITLE),
        ({"depends_on": ["7"]}, TITLE),
        ({"depends_on": ["7", "8", "9"]}, TITLE),
        ({"depends_on": []}, TITLE),
        ({}, "Another title"),
        ({}, ""),
    ],
)
def test_nothing_outside_may_differ(seal: Callable[[], Any], fields: dict[str, Any], title: str) -> None:
    """Who keeps the task cannot redirect the answer, silence it, or move it before its dependencies."""
    assert refusal({**seal(), **fields}, title=title) is Refusal.CONTEXT


@BOTH
def test_what_stands_outside_and_is_the_same_does_no_harm(seal: Callable[[], Any]) -> None:
    """Senders of the Node executor repeat fields outside; what counts is inside."""
    same = {"callback_url": SAID.callback_url, "quiet": True, "depends_on": [8, "7"]}
    assert opened({**seal(), **same}).content == SAID
    bare = Content(title="x")
    payload = {**(v1(bare) if seal is v1 else v2(bare)), "callback_url": None, "quiet": False, "depends_on": []}
    assert opened(payload).content == bare


def test_the_title_outside() -> None:
    """Version 1 may show its own title; version 2 shows one fixed title only."""
    assert opened(v1(), title=SAID.title).content == SAID
    assert refusal(v2(), title=SAID.title) is Refusal.CONTEXT


@BOTH
@pytest.mark.parametrize(
    "fields", [{"gpu": True}, {"command": "x"}, {"pubkey": FROM}, {"description": ""}, {"Encrypted": True}]
)
def test_unknown_fields_beside_the_seal_are_refused(seal: Callable[[], Any], fields: dict[str, Any]) -> None:
    """What is not known outside cannot be vouched for by the seal."""
    assert refusal({**seal(), **fields}) is Refusal.MALFORMED


@pytest.mark.parametrize("encrypted", [1, "yes", "true", [0], {"a": 1}])
def test_half_sealed_is_not_plain(encrypted: Any) -> None:
    """Whatever claims to be sealed goes through every check, and only true is the word."""
    payload = {**v1(), "encrypted": encrypted}
    assert opening.is_sealed(payload)
    assert refusal(payload) is Refusal.MALFORMED


@pytest.mark.parametrize("payload", [None, "x", [], 7, {}, {"encrypted": False}, {"encrypted": None}])
def test_what_is_not_sealed_does_not_open(payload: Any) -> None:
    """A plain task has its own way in."""
    assert not opening.is_sealed(payload)
    assert refusal(payload) is Refusal.MALFORMED


def test_version_2_belongs_to_one_channel_and_one_time() -> None:
    """Sealed for another channel, too long before or after its creation, or too late for its sender."""
    assert refusal(v2(), channel="gpu") is Refusal.CONTEXT
    for offset_s in (-300, 300):
        assert opened(v2(), created_at_s=NOW_S + offset_s)
        assert refusal(v2(), created_at_s=NOW_S + offset_s + (1 if offset_s > 0 else -1)) is Refusal.STALE
    assert opened(v2(), now_s=NOW_S + DAY_S)
    assert refusal(v2(), now_s=NOW_S + DAY_S + 1) is Refusal.STALE
    assert refusal(v2(), now_s=NOW_S + DAY_S + 1, created_at_s=None) is Refusal.STALE
    weeks_s = NOW_S + 60 * DAY_S
    assert opened(v2(expires_after_s=None), now_s=weeks_s)
    assert opened(v2(expires_after_s=None), now_s=weeks_s, created_at_s=None)


# --- C6: what is inside -----------------------------------------------------------------------------------------------

INSIDE = [
    b"",
    b"\xff\xfe",
    b"not json",
    b"[]",
    b"7",
    b'"x"',
    b"null",
    b'{"title": "\\ud800"}',
    b'{"title": "x", "description": "\\udc00"}',
    b'{"title": "x", "payload": {"a": NaN}}',
    b'{"title": "x", "payload": {"a": Infinity}}',
    b'{"title": "x", "payload": {"a": 1e999}}',
    b'{"title": "x", "payload": {"a": 1' + b"0" * 5000 + b"}}",
    b'{"title": "x", "title": "y"}',
    b'{"title": "x", "payload": {"a": 1, "a": 2}}',
    b'{"title": "x", "payload": {"a": ' + b"[" * 70 + b"]" * 70 + b"}}",
    b'{"title": "x", "payload": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    b'{"title": "x", "description": "' + b"a" * 5_000_000 + b'"}',
    b'{"title": "x", "payload": {"a": "' + b"a" * 1_048_576 + b'"}}',
    b'{"description": "no title"}',
    b'{"title": ""}',
    b'{"title": "  "}',
    b'{"title": 7}',
    b'{"title": false}',
    b'{"title": "nul \\u0000"}',
    b'{"title": "' + b"t" * 513 + b'"}',
    b'{"title": "x", "description": 0}',
    b'{"title": "x", "payload": []}',
    b'{"title": "x", "payload": "a"}',
    b'{"title": "x", "payload": {"callback_url": 7}}',
    b'{"title": "x", "payload": {"quiet": "yes"}}',
    b'{"title": "x", "payload": {"depends_on": [' + b",".join(b"%d" % n for n in range(1, 258)) + b"]}}",
    b'\xef\xbb\xbf{"title": "x"}',
]


@pytest.mark.parametrize("plain", INSIDE, ids=range(len(INSIDE)))
def test_what_is_inside_must_be_a_task(plain: bytes) -> None:
    """It opens, so its sender is trusted; what it says is read strictly all the same."""
    assert refusal(boxed(plain)) is Refusal.CONTENT


def written(**changes: Any) -> bytes:
    """The inside of version 2 with changed fields; None takes one away."""
    body = json.loads(content.write_v2(Head("m1", ALICE.kid, OURS.kid, CHANNEL, int(NOW_S)), SAID)) | changes
    return json.dumps({name: value for name, value in body.items() if value is not None}).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 1},
        {"v": "2"},
        {"v": None},
        {"typ": "tasks"},
        {"typ": None},
        {"mid": ""},
        {"mid": "x" * 65},
        {"mid": 7},
        {"from": None},
        {"to": 7},
        {"chan": ""},
        {"iat": "now"},
        {"iat": 1.5},
        {"iat": True},
        {"exp": "late"},
        {"exp": True},
        {"more": 1},
        {"body": None},
        {"body": []},
        {"body": {}},
        {"body": {"title": "x", "more": 1}},
        {"body": {"title": "x", "callback_url": 7}},
        {"body": {"title": "x", "quiet": 1}},
    ],
)
def test_what_is_inside_version_2_must_be_its_fields(changes: dict[str, Any]) -> None:
    """Exactly the fields of version 2, each of its type: what is not understood is not run."""
    assert opened(boxed(written(), version=2)).content == SAID
    assert refusal(boxed(written(**changes), version=2)) is Refusal.CONTENT


def test_steering_inside_the_payload_of_version_2_does_not_steer() -> None:
    """There is one place for each field; in the payload of version 2 they are dropped, in version 1 they count."""
    body = {"title": "x", "payload": {"callback_url": "https://evil.example/", "quiet": True, "a": 1}}
    found = opened(boxed(written(body=body), version=2)).content
    assert (found.callback_url, found.quiet, found.payload) == (None, False, {"a": 1})
    found = opened(boxed(json.dumps(body).encode())).content
    assert (found.callback_url, found.quiet, found.payload) == ("https://evil.example/", True, {"a": 1})


# --- policy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 3, -1, "1", "2", True, 1.0, None, [2]])
def test_versions_that_nobody_knows(version: Any) -> None:
    """Only the numbers 1 and 2."""
    assert refusal({**v2(), "v": version}) is Refusal.VERSION


def test_versions_may_be_closed_for_all_or_for_one() -> None:
    """An operator can end version 1, or a sender's use of it."""
    assert refusal(v1(), replace(TRUST, versions=frozenset({2}))) is Refusal.VERSION
    assert refusal(v2(), replace(TRUST, versions=frozenset({1}))) is Refusal.VERSION
    only_2 = replace(TRUST, senders={"alice": Sender("alice", ALICE.public, versions=frozenset({2}))})
    assert refusal(v1(), only_2) is Refusal.VERSION
    assert opened(v2(), only_2)


def test_a_sender_may_use_what_it_was_given() -> None:
    """Channels are checked when it is opened, executors when one is chosen; empty means all."""
    some = Sender("alice", ALICE.public, channels=frozenset({"gpu"}), executors=frozenset({"claude"}))
    trust = replace(TRUST, senders={"alice": some})
    for payload in (v1(), v2()):
        assert refusal(payload, trust) is Refusal.NOT_PERMITTED
    assert opened(v1(), trust, channel="gpu")
    opening.check_permitted(some, "claude")
    opening.check_permitted(TRUST.senders["alice"], "anything")
    with pytest.raises(SealError) as caught:
        opening.check_permitted(some, "bash")
    assert caught.value.refusal is Refusal.NOT_PERMITTED


def open_refusal(payload: Any, trust: Trust) -> Refusal:
    """Say as what a task in the open is refused."""
    with pytest.raises(SealError) as caught:
        opening.check_open(outside(payload), trust)
    return caught.value.refusal


def test_tasks_in_the_open() -> None:
    """Accepted by default; refused when all must be sealed, or when they carry the name of one who seals all."""
    plain: list[Any] = [None, {}, {"sender": "alice"}, {"from": FROM}, {"sender": ["alice"]}, "x"]
    for payload in plain:
        opening.check_open(outside(payload), TRUST)
        assert open_refusal(payload, replace(TRUST, require_encryption=True)) is Refusal.ENCRYPTION_REQUIRED
    strict = replace(TRUST, senders={"alice": Sender("alice", ALICE.public, encrypted_only=True)})
    for payload in ({"sender": "alice"}, {"from": FROM}):
        assert open_refusal(payload, strict) is Refusal.ENCRYPTION_REQUIRED
    opening.check_open(outside({"sender": "bob"}), strict)


# --- answers ----------------------------------------------------------------------------------------------------------


def test_answers_open_on_both_sides_and_nowhere_else() -> None:
    """The sender reads it, and so can we; a stranger, another task or a stripped version does not get through."""
    for payload in (v1(), v2()):
        version = opened(payload).version
        output = answered(payload, "the answer \U0001f9ee")
        assert output.keys() == {"encrypted_response", "response_encrypted"} | ({"v"} if version == 2 else set())
        for pair, by in ((ALICE, OURS.public), (OURS, ALICE.public)):
            found = sending.open_answer(output, pair=pair, by=by, task_id="42")
            assert found.text == "the answer \U0001f9ee"
            assert (found.re, found.status) == (("m1", "completed") if version == 2 else ("", ""))
        with pytest.raises(SealError) as caught:
            sending.open_answer(output, pair=STRANGER, by=OURS.public, task_id="42")
        assert caught.value.refusal is Refusal.FORGED
    with pytest.raises(SealError) as caught:
        sending.open_answer(output, pair=ALICE, by=OURS.public, task_id="43")
    assert caught.value.refusal is Refusal.CONTEXT
    del output["v"]
    with pytest.raises(SealError) as caught:
        sending.open_answer(output, pair=ALICE, by=OURS.public, task_id="42")
    assert caught.value.refusal is Refusal.VERSION


def test_a_task_is_no_answer() -> None:
    """The other direction of reflection: the sender's own task, shown to it as the answer."""
    payload = v2()
    for output in ({"encrypted_response": payload, "v": 2}, {"encrypted_response": payload}):
        with pytest.raises(SealError):
            sending.open_answer(output, pair=ALICE, by=OURS.public, task_id="42")
    assert sending.message_id_of(payload, pair=ALICE, by=OURS.public) == "m1"
    for other in (v1(), {**payload, "nonce": 7}, None, changed(payload, "ciphertext", lambda raw: raw[:-1])):
        assert sending.message_id_of(other, pair=ALICE, by=OURS.public) is None


@pytest.mark.parametrize("text", ["", "half \ud800 of it", "x" * 3_000_000])
def test_any_text_can_be_an_answer(text: str) -> None:
    """Empty, long, or with half characters that no encoding knows."""
    for payload in (v1(), v2()):
        output = answered(payload, text)
        found = sending.open_answer(output, pair=ALICE, by=OURS.public, task_id="42").text
        assert found == text.replace("\ud800", "?")


def test_answers_never_share_a_nonce() -> None:
    """The random half differs, so the nonce does; and its mark is ours only."""
    first, second = (answered(v1(), number=n)["encrypted_response"]["nonce"] for n in (1, 2))
    assert first != second
    assert OURS.has_marked(base64.b64decode(first))
    assert not STRANGER.has_marked(base64.b64decode(first))
    with pytest.raises(ValueError, match="12 random bytes"):
        OURS.marked_nonce(bytes(11))


def test_keys_never_show_their_private_half() -> None:
    """Neither repr nor str of anything that holds one, or of what was opened."""
    shown = f"{OURS!r} {TRUST!r} {opened(v2())!r} {OURS} {TRUST.ring}"
    for secret in (repr(OURS.private), OURS.private.hex(), encoding.encode(OURS.private), SAID.title, "the logs"):
        assert secret not in shown


def test_whoever_has_the_dispatchers_key_can_write_as_anybody() -> None:
    """A box is repudiable: this cannot be closed by checks, so the documentation says it (docs/encryption.md)."""
    forged = nonce()
    sealed = OURS.seal(content.write_v1(SAID), to=ALICE.public, nonce=forged)
    payload = {"encrypted": True, "sender": "alice", "nonce": encoding.encode(forged)}
    assert opened({**payload, "ciphertext": encoding.encode(sealed)}).sender.name == "alice"


REACHED: dict[Refusal, Callable[[], Any]] = {
    Refusal.MALFORMED: lambda: opened({}),
    Refusal.VERSION: lambda: opened({**v2(), "v": 3}),
    Refusal.UNKNOWN_SENDER: lambda: opened(v1(sender="nobody")),
    Refusal.SENDER_MISMATCH: lambda: opened({**v1(), "from": encoding.encode(BOB.public)}),
    Refusal.REVOKED_SENDER: lambda: opened(v1(sender="bob")),
    Refusal.UNKNOWN_RECIPIENT: lambda: opened(v2(to=STRANGER.public)),
    Refusal.FORGED: lambda: opened(v1(pair=STRANGER)),
    Refusal.REFLECTION: lambda: opened({"encrypted": True, "sender": "alice", **answered(v1())["encrypted_response"]}),
    Refusal.STALE: lambda: opened(v2(), created_at_s=NOW_S + 301),
    Refusal.CONTEXT: lambda: opened(v2(), channel="gpu"),
    Refusal.CONTENT: lambda: opened(boxed(b"[]")),
    Refusal.NOT_PERMITTED: lambda: opening.check_permitted(Sender("a", b"", executors=frozenset("x")), "y"),
    Refusal.ENCRYPTION_REQUIRED: lambda: opening.check_open(outside({}), replace(TRUST, require_encryption=True)),
}


@pytest.mark.parametrize("wanted", [one for one in Refusal if one is not Refusal.REPLAY])
def test_every_refusal_can_be_reached(wanted: Refusal) -> None:
    """There is no reason that nothing leads to; REPLAY is the register's, which keeps its state elsewhere."""
    with pytest.raises(SealError) as caught:
        REACHED[wanted]()
    assert caught.value.refusal is wanted
