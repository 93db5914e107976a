"""Both sides of sealed tasks for tests: a host's key files, and senders whose private keys are in this process only."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dispatch.crypto import opening, sending
from dispatch.crypto.content import Content
from dispatch.crypto.files import KeyFiles
from dispatch.crypto.keys import KeyPair
from dispatch.crypto.trust import Sender

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Sealer:
    """A sender. ``to`` is the dispatcher's pair, of which it uses the public half."""

    name: str
    to: KeyPair
    pair: KeyPair = field(default_factory=KeyPair.make)

    def v1(self, **said: Any) -> dict[str, Any]:
        """Return fields of a task of version 1, which shows its title to everybody."""
        nonce = os.urandom(24)
        payload = sending.seal_v1(Content(**said), pair=self.pair, to=self.to.public, sender=self.name, nonce=nonce)
        return {"title": said["title"], "payload": payload}

    def v2(self, *, channel: str = "test", sealed_at_s: float | None = None, **said: Any) -> dict[str, Any]:
        """Return fields of a task of version 2."""
        payload = sending.seal_v2(
            Content(**said),
            pair=self.pair,
            to=self.to.public,
            channel=channel,
            message_id=uuid.uuid4().hex,
            now_s=time.time() if sealed_at_s is None else sealed_at_s,
            nonce=os.urandom(24),
        )
        return {"title": opening.TITLE, "payload": payload}

    def seal(self, version: int, **said: Any) -> dict[str, Any]:
        """Return fields of a task of either version that show no title."""
        return self.v2(**said) if version == 2 else {**self.v1(**said), "title": opening.TITLE}

    def read(self, outputs: Any, task_id: object) -> str:
        """Return the text of a sealed answer, or of a sealed note. Fails when it is not for this sender."""
        sealed = sending.sealed_in(outputs)
        assert sealed is not None, outputs
        return sending.open_answer(sealed, pair=self.pair, by=self.to.public, task_id=str(task_id)).text


def trusting(directory: Path, *names: str, **limits: Any) -> tuple[KeyFiles, dict[str, Sealer]]:
    """Make key files with a dispatcher's key and these senders; ``limits`` are those of each of them."""
    files = KeyFiles(directory)
    pair = files.make_key(now_s=time.time())
    sealers = {name: Sealer(name, pair) for name in names}
    for name, sealer in sealers.items():
        files.add_sender(Sender(name, sealer.pair.public, **limits.get(name, {})))
    return files, sealers
