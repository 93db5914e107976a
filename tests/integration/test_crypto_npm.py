"""Version 1 against an implementation that is not ours and not Python: tweetnacl, which existing senders use (C7)."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterable
from typing import Any

import pytest

from dispatch.crypto import content, encoding, opening, sending
from dispatch.crypto.content import Content
from dispatch.crypto.keys import KeyPair
from dispatch.crypto.opening import Outside
from dispatch.crypto.refusal import Refusal, SealError
from dispatch.crypto.ring_file import read_pair
from dispatch.crypto.trust import OwnKey, Ring, Sender, Trust
from tests.support.npm import run_node

MESSAGES = 1_000
EMOJI = "\U0001f9ee\U0001f469\u200d\U0001f4bb\u00e4\u6f22\U0010ffff\u2028"
LONG = 262_144
NOW_S = 1_763_700_000.0
OURS = KeyPair.of(b"\7" * 32)
SEED = 20_261_121


def node(orders: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give a batch to tweetnacl and return its answers."""
    lines = "".join(json.dumps(order) + "\n" for order in orders)
    return [json.loads(line) for line in run_node("box.mjs", stdin=lines).removesuffix("\n").split("\n")]


@pytest.fixture(scope="module")
def alice() -> KeyPair:
    """A sender whose key tweetnacl made, read as its key file would be."""
    (made,) = node([{"op": "pair"}])
    return read_pair(made["publicKey"], made["secretKey"])


@pytest.fixture(scope="module")
def trust(alice: KeyPair) -> Trust:
    """A host that trusts her."""
    return Trust(ring=Ring((OwnKey(OURS),)), senders={"alice": Sender("alice", alice.public)})


def tasks() -> list[Content]:
    """A thousand random tasks, the same each time, with emoji in many and one of 256 KiB."""
    chance = random.Random(SEED)

    def text(chars_max: int) -> str:
        alphabet = 'abc xyz\n\t"\\</>&\x01\x7f' + EMOJI
        return "".join(chance.choices(alphabet, k=chance.randrange(chars_max)))

    found = [
        Content(
            title="t" + text(60),
            description=text(200),
            payload={"text": text(30), "n": chance.randrange(10**6), "list": [None, True, -1.5, {"": text(5)}]},
        )
        for _ in range(MESSAGES - 2)
    ]
    return [*found, Content(title="long", description="x" * LONG), Content(title=EMOJI, description=EMOJI * 1000)]


def as_sent(said: Content) -> dict[str, Any]:
    """A task as a sender of the Node executor writes it."""
    return {"title": said.title, "description": said.description, "payload": said.payload}


def wire(answer: dict[str, Any]) -> dict[str, Any]:
    """The form of version 1."""
    return {"encrypted": True, "sender": "alice", "nonce": answer["nonce"], "ciphertext": answer["ciphertext"]}


def test_what_tweetnacl_sealed_is_opened(alice: KeyPair, trust: Trust) -> None:
    """A thousand random tasks: the same bytes inside, and the same task."""
    said = tasks()
    secret, to = encoding.encode(alice.private), encoding.encode(OURS.public)
    sealed = node({"op": "seal", "task": as_sent(one), "secretKey": secret, "to": to} for one in said)
    assert len(sealed) == MESSAGES
    for one, answer in zip(said, sealed, strict=True):
        nonce, ciphertext = base64.b64decode(answer["nonce"]), base64.b64decode(answer["ciphertext"])
        assert OURS.open(ciphertext, by=alice.public, nonce=nonce) == base64.b64decode(answer["plain"])
        opened = opening.open_task(Outside("1", one.title, "c", wire(answer), NOW_S), trust, now_s=NOW_S)
        assert opened.content == one


def test_what_we_sealed_is_opened_by_tweetnacl(alice: KeyPair) -> None:
    """The other way round, as our own sender seals version 1 for a Node executor."""
    said, chance = tasks(), random.Random(SEED)
    keys = {"secretKey": encoding.encode(OURS.private), "by": encoding.encode(alice.public)}
    sealed = [
        sending.seal_v1(one, pair=alice, to=OURS.public, sender="alice", nonce=chance.randbytes(24)) for one in said
    ]
    opened = node({"op": "open", "nonce": one["nonce"], "ciphertext": one["ciphertext"], **keys} for one in sealed)
    assert len(opened) == MESSAGES
    for one, answer in zip(said, opened, strict=True):
        assert base64.b64decode(answer["plain"]) == content.write_v1(one)
        wanted = {name: value for name, value in as_sent(one).items() if value}
        assert json.loads(answer["text"]) == wanted


def test_answers_are_read_by_tweetnacl(alice: KeyPair, trust: Trust) -> None:
    """A sender of the Node executor reads our answers with its own key; one that was changed does not open."""
    (sealed,) = node(
        [
            {
                "op": "seal",
                "task": {"title": "x"},
                "secretKey": encoding.encode(alice.private),
                "to": encoding.encode(OURS.public),
            }
        ]
    )
    task = opening.open_task(Outside("1", "x", "c", wire(sealed), NOW_S), trust, now_s=NOW_S)
    texts = ["", "done", EMOJI, "y" * LONG]
    answers = [
        opening.answer(
            task, text, task_id="1", attempt=1, status="completed", now_s=NOW_S, random=random.Random(n).randbytes(28)
        )["encrypted_response"]
        for n, text in enumerate(texts)
    ]
    cut = {**answers[1], "ciphertext": encoding.encode(base64.b64decode(answers[1]["ciphertext"])[:-1])}
    keys = {"secretKey": encoding.encode(alice.private), "by": encoding.encode(OURS.public)}
    opened = node({"op": "open", **one, **keys} for one in [*answers, cut])
    assert [one.get("text") for one in opened] == [*texts, None]
    reflected = {"encrypted": True, "sender": "alice", **answers[1]}
    with pytest.raises(SealError) as caught:
        opening.open_task(Outside("2", "x", "c", reflected, NOW_S), trust, now_s=NOW_S)
    assert caught.value.refusal is Refusal.REFLECTION
