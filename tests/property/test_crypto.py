"""Sealing and opening, whatever is sealed and whatever comes (C1, C2, C6)."""

from __future__ import annotations

import base64
import contextlib
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dispatch.crypto import content, encoding, keys, opening, sending
from dispatch.crypto.content import Content
from dispatch.crypto.keys import KeyPair
from dispatch.crypto.opening import TITLE, Outside
from dispatch.crypto.refusal import SealError
from dispatch.crypto.trust import OwnKey, Ring, Sender, Trust

NOW_S = 1_763_700_000.0
OURS, ALICE = KeyPair.of(b"\1" * 32), KeyPair.of(b"\2" * 32)
TRUST = Trust(ring=Ring((OwnKey(OURS),)), senders={"alice": Sender("alice", ALICE.public)})

texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=40)
numbers = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
STEERING = ("callback_url", "depends_on", "quiet")
payloads = st.dictionaries(texts.filter(lambda name: name not in STEERING), json_values, max_size=4)
contents = st.builds(
    Content,
    title=texts.filter(str.strip),
    description=texts,
    payload=payloads,
    callback_url=st.none() | texts.filter(bool),
    depends_on=st.lists(st.integers(1, 2**63 - 1).map(str), max_size=5, unique=True).map(tuple),
    quiet=st.booleans(),
)
nonces = st.binary(min_size=24, max_size=24)
quick = settings(max_examples=60, deadline=None)


def sealed(said: Content, version: int, nonce: bytes) -> dict[str, Any]:
    """A payload of either version."""
    if version == 1:
        return sending.seal_v1(said, pair=ALICE, to=OURS.public, sender="alice", nonce=nonce)
    return sending.seal_v2(
        said, pair=ALICE, to=OURS.public, channel="c", message_id="m", now_s=NOW_S, nonce=nonce, expires_after_s=60
    )


def opened(payload: Any) -> opening.Opened:
    """Open a payload as a task of its own."""
    return opening.open_task(Outside("1", TITLE, "c", payload, NOW_S), TRUST, now_s=NOW_S)


@quick
@given(contents, st.sampled_from([1, 2]), nonces)
def test_what_was_sealed_is_what_is_opened(said: Content, version: int, nonce: bytes) -> None:
    """Every task that can be written is read as it was written."""
    assert opened(sealed(said, version, nonce)).content == said


@quick
@given(st.sampled_from([1, 2]), st.sampled_from(["nonce", "ciphertext"]), st.data())
def test_one_bit_is_enough(version: int, field: str, data: st.DataObject) -> None:
    """Whichever bit of nonce or ciphertext is turned, it does not open."""
    payload = sealed(Content(title="x", payload={"n": 1}), version, b"n" * 24)
    raw = bytearray(base64.b64decode(payload[field]))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SealError):
        opened({**payload, field: encoding.encode(bytes(raw))})


@quick
@given(st.dictionaries(st.sampled_from(["encrypted", "v", "sender", "from", "to", "nonce", "ciphertext"]), json_values))
@example({"encrypted": True, "sender": "alice", "nonce": "\ud800", "ciphertext": ""})
@example({"encrypted": True, "from": encoding.encode(bytes(32)), "nonce": "", "ciphertext": ""})
def test_anything_outside_is_opened_or_refused(fields: dict[str, Any]) -> None:
    """Whatever a stranger writes into the payload: a refusal, and no other exception."""
    whole = sealed(Content(title="x"), 2, b"n" * 24)
    for payload in (fields, {**whole, **fields}, {**fields, **whole}):
        with contextlib.suppress(SealError):
            assert opened(payload).content == Content(title="x")


@quick
@given(st.binary(max_size=200) | json_values.map(content._write), st.sampled_from([1, 2]))
def test_anything_inside_is_read_or_refused(plain: bytes, version: int) -> None:
    """Whatever a trusted sender seals: a task or a refusal, and no other exception."""
    ciphertext = ALICE.seal(plain, to=OURS.public, nonce=b"n" * 24)
    payload = {"encrypted": True, "v": version, "sender": "alice", "nonce": encoding.encode(b"n" * 24)}
    with contextlib.suppress(SealError):
        assert opened({**payload, "ciphertext": encoding.encode(ciphertext)}).content.title.strip()


@quick
@given(st.text(), st.sampled_from([1, 2]), st.binary(min_size=28, max_size=28))
def test_answers_arrive(text: str, version: int, random: bytes) -> None:
    """Every text arrives, half characters replaced, under a nonce that bears our mark; fed back it is refused."""
    task = opened(sealed(Content(title="x"), version, b"n" * 24))
    output = opening.answer(task, text, task_id="1", attempt=1, status="completed", now_s=NOW_S, random=random)
    found = sending.open_answer(output, pair=ALICE, by=OURS.public, task_id="1")
    assert found.text == text.encode("utf-8", "replace").decode()
    with pytest.raises(SealError, match="came back"):
        opened({"encrypted": True, "sender": "alice", **output["encrypted_response"]})


@quick
@given(st.binary(max_size=100), st.text(max_size=50))
def test_base64_has_one_spelling(raw: bytes, text: str) -> None:
    """What is decoded is what would be written; everything else is refused."""
    assert encoding.decode(encoding.encode(raw)) == raw
    for one in (text, encoding.encode(raw) + text):
        with contextlib.suppress(ValueError):
            assert encoding.encode(encoding.decode(one)) == one


@quick
@given(st.binary(min_size=32, max_size=32), st.data())
def test_one_key_has_one_text(raw: bytes, data: st.DataObject) -> None:
    """No other text of the same length is read as the same key; every key has its own fingerprint."""
    public = KeyPair.of(raw).public
    text = encoding.encode(public)
    place = data.draw(st.integers(0, len(text) - 1))
    other = text[:place] + data.draw(st.sampled_from("ABab09+/=-_ \n")) + text[place + 1 :]
    try:
        assert (keys.read_public(other) == public) is (other == text)
    except ValueError:
        assert other != text
    assert keys.read_public(text) == public
    assert keys.kid_of(public) != keys.kid_of(bytes([public[0] ^ 1]) + public[1:])


@quick
@given(contents)
def test_the_version_cannot_be_changed(said: Content) -> None:
    """A message of one version is refused as the other, whatever it says."""
    first, second = sealed(said, 1, b"a" * 24), sealed(said, 2, b"b" * 24)
    for payload in ({**first, "v": 2}, {**second, "v": 1}, {k: v for k, v in second.items() if k != "v"}):
        with pytest.raises(SealError):
            opened(payload)
    with pytest.raises(SealError):
        opening.open_task(Outside("1", TITLE, "d", second, NOW_S), TRUST, now_s=NOW_S)
    assert opened(first).content == opened(second).content == said
