"""Answering tasks that ask to trust a key: the ingress claims and ends them itself, no worker sees them.

They need no seal, whatever the policy: a sender that is not trusted yet has
none. One after the other, beside everything else, so that a thousand of them,
or one that is malformed, hold nothing up.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from dispatch.crypto.register import register
from dispatch.errors import AuthenticationError, ConfigurationError, GatewayError, GatewayRejectedError
from dispatch.ingress.sealed import is_registration

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dispatch.ats.gateway import AttemptRef
    from dispatch.ats.model import Task
    from dispatch.crypto.files import KeyFiles
    from dispatch.ingress.claims import Claim, Claims

WAITING_MAX: Final = 10_000
PAUSE_S: Final = 1.0
PAUSE_FILES_S: Final = 30.0
"""After a try at files that only an operator can mend."""


class Registrar:
    """Answers what ``add`` names, in order.

    ``read(task id)`` returns the whole task. When too many wait, more are passed
    over: the next reconcile names them again.
    """

    def __init__(
        self,
        claims: Claims,
        key_files: KeyFiles,
        *,
        read: Callable[[str], Awaitable[Task]],
        log: Any,
        pause_files_s: float = PAUSE_FILES_S,
    ) -> None:
        self._claims = claims
        self._key_files = key_files
        self._read = read
        self._log = log
        self._pause_files_s = pause_files_s
        self._waiting: dict[str, None] = {}
        self._news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, task_id: str) -> None:
        """Have a task answered. Naming it again, or naming one that another ingress answers, does no harm."""
        if len(self._waiting) < WAITING_MAX:
            self._waiting[task_id] = None
            self._news.set()

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                task_id = next(iter(self._waiting))
                del self._waiting[task_id]
                await asyncio.sleep(await self._try(task_id))

    async def _try(self, task_id: str) -> float:
        """Answer one task and return how long to pause before the next."""
        self._claims.in_hand.add(task_id)
        try:
            (claim,) = await self._claims.claim([task_id])
            if isinstance(claim, GatewayRejectedError):
                return 0.0  # another ingress was faster, or it may not begin yet: news or a reconcile name it again
            try:
                await self._answer(claim)
            except (ConfigurationError, OSError) as exc:
                self._log.error("registration_not_possible", task=task_id, reason=str(exc))
                await self._claims.release(claim.ref, reason="The dispatcher's key files cannot be used at present.")
                return self._pause_files_s
        except AuthenticationError:
            return PAUSE_S  # the reconcile says so, once
        except GatewayRejectedError as exc:
            self._log.info("registration_lost", task=task_id, reason=str(exc))
        except GatewayError as exc:
            # A claim that was granted runs out, and the task comes by here again.
            self._log.warning("registration_delayed", task=task_id, reason=str(exc))
            self.add(task_id)
            return PAUSE_S
        finally:
            self._claims.in_hand.discard(task_id)
        return 0.0

    async def _answer(self, claim: Claim) -> None:
        ref = claim.ref
        task = claim.task if claim.task.payload is not None else await self._read(ref.task_id)
        if not is_registration(task):
            await self._claims.release(ref, reason="The task was changed and is no registration any more.")
            return
        await self._end(ref, await asyncio.to_thread(self._decide, ref.task_id, task.payload["pubkey"]))

    def _decide(self, task_id: str, pubkey: Any) -> dict[str, Any] | str:
        try:
            return register(self._key_files, pubkey, task_id, time.time())
        except (ConfigurationError, OSError):
            raise
        except Exception as exc:  # noqa: BLE001  A mistake in one must not end all; it is told here.
            self._log.error("registration_broken", task=task_id, error=repr(exc)[:200])
            return "The dispatcher could not handle this registration. Its operator finds the cause in the log."

    async def _end(self, ref: AttemptRef, answer: dict[str, Any] | str) -> None:
        if isinstance(answer, str):
            await self._claims.fail(ref, answer)
            self._log.warning("registration_refused", task=ref.task_id, reason=answer)
            return
        await self._claims.complete(ref, [answer])
        self._log.info(
            "registration_answered",
            task=ref.task_id,
            status=answer.get("status"),
            fingerprint=answer.get("fingerprint"),
            name=answer.get("name"),
        )
