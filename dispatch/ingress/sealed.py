"""What the ingress learns from sealed tasks that are pending: whom they wait for, and whether they register a key.

A service shows of a task in a list or an event only what the fleet needs. That
a task is sealed is among it, what is inside is not: such a task must be read
whole once. What was found is remembered by the task's id, in memory only, until
the task leaves pending; it is found anew when the task was changed, or the keys.
A task that does not open is not held back: the worker decides about it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from dispatch.core.dependencies import UUID, ident_of
from dispatch.core.graph import GRAPH_MAX
from dispatch.core.routing import traits_of
from dispatch.crypto.opening import Outside, is_sealed, open_task
from dispatch.crypto.refusal import Refusal, SealError
from dispatch.crypto.trust import Trust
from dispatch.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from dispatch.ats.model import Task
    from dispatch.core.routing import Trait
    from dispatch.crypto.opening import Opened

_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}", re.ASCII)
"""An id of a foreign ATS."""
REGISTER: Final = "register"
"""The title, in any case, of a task that asks to trust the key in its payload."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A pending task as the ingress goes by it: ``task.depends_on`` has what the sealed part names."""

    task: Task
    hidden: bool = False
    """The service does not know of all that it needs, offers it although it must wait, and fails it after a claim."""
    registers: bool = False
    """It asks to trust a key: the ingress answers it, no worker."""
    sender: str | None = None
    """Who sealed it; None for a task in the open, "" where it does not open."""


@dataclass(slots=True)
class _Inside:
    """What is remembered of one task."""

    mark: bytes
    is_sealed: bool
    needs: tuple[str, ...]
    """What the sealed part names; nothing when it does not open."""
    registers: bool
    sender: str
    traits: Mapping[str, Trait]
    updated_at: datetime | None
    seen_at: float
    is_stale: bool = False


class Sealed:
    """Looks into tasks. ``is_thin``: the service shows less than all of a task in lists, events and claims.

    ``knows_needs``: it shows with every task what it needs, as far as that is not sealed.
    """

    def __init__(
        self,
        trust: Callable[[], Trust],
        *,
        is_thin: bool,
        knows_needs: bool,
        log: Any,
        now_s: Callable[[], float] = time.time,
        known_max: int = GRAPH_MAX,
    ) -> None:
        """``trust`` may raise ConfigurationError; then nothing opens."""
        self._read_trust = trust
        self._is_thin = is_thin
        self._knows_needs = knows_needs
        self._log = log
        self._now_s = now_s
        self._known_max = known_max
        self._known: OrderedDict[str, _Inside] = OrderedDict()
        self._trust = Trust()
        self._trouble = ""

    def __len__(self) -> int:
        return len(self._known)

    # --- pending tasks ----------------------------------------------------------------------------------------------

    def see(self, task: Task, *, is_whole: bool = False) -> Seen | None:
        """Return a pending task with what it needs, or None when it must be read whole first."""
        if not task.sealed and not is_titled(task) and task.id not in self._known:
            return Seen(task)
        trust = self._current_trust()
        known = self._known.get(task.id)
        if is_whole or task.payload is not None:
            known = self._look_into(task, known)
        elif not (task.sealed or is_titled(task) or (known is not None and not self._is_thin)):
            known = None
        elif known is None or known.is_stale or _is_newer(task.updated_at, known.updated_at):
            # Without a key nothing opens: then only what may be a registration need be read.
            return None if trust.ring.keys or is_titled(task) else Seen(task)
        if known is None:
            self._known.pop(task.id, None)
            return Seen(task)
        known.seen_at = time.monotonic()
        self._known[task.id] = known
        self._known.move_to_end(task.id)
        while len(self._known) > self._known_max:
            self._known.popitem(last=False)
        return self._seen(task, known)

    def at_claim(self, task: Task) -> Seen | None:
        """Return a task that was just claimed, by what is known of it; None when that may be out of date.

        What was forgotten is no obstacle: the worker looks at all of it again.
        """
        if task.payload is not None:
            self._current_trust()
        known = self._known.get(task.id)
        if task.payload is not None:
            known = self._look_into(task, known)
        if known is None:
            return None if is_titled(task) else Seen(task)
        return None if known.is_stale else self._seen(task, known)

    def changed(self, task_id: str) -> None:
        """Hear that a task was changed: what is known of it counts no longer."""
        if (known := self._known.get(task_id)) is not None:
            known.is_stale = True

    def left(self, task_id: str) -> None:
        """Hear that a task is not pending any more."""
        self._known.pop(task_id, None)

    def forget_before(self, began_at: float) -> None:
        """Forget what a listing of everything that is pending, begun then, did not show."""
        for task_id in [ident for ident, known in self._known.items() if known.seen_at < began_at]:
            del self._known[task_id]

    def needs_of(self, task: Task) -> tuple[str, ...]:
        """Return what a task needs that was read whole, without remembering it."""
        return self.read(task).task.depends_on

    def read(self, task: Task) -> Seen:
        """Return a task in whatever state that was read whole, without remembering it."""
        self._current_trust()
        known = self._look_into(task, None)
        return Seen(task) if known is None else self._seen(task, known)

    def _seen(self, task: Task, known: _Inside) -> Seen:
        if not known.is_sealed:
            return Seen(task, registers=known.registers)
        named = task.depends_on if self._knows_needs else ()
        needs = tuple(dict.fromkeys((*named, *known.needs)))
        hidden = self._knows_needs and len(needs) > len(set(named))
        shown = replace(task, depends_on=needs, traits=known.traits)
        return Seen(shown, hidden=hidden, registers=known.registers, sender=known.sender)

    def _look_into(self, task: Task, known: _Inside | None) -> _Inside | None:
        """Return what a whole task has inside; None for one that is neither sealed nor titled like a registration."""
        sealed = is_sealed(task.payload)
        if not sealed and not is_titled(task):
            return None
        mark = _mark_of(task)
        if known is not None and known.mark == mark:
            known.is_stale, known.updated_at = False, task.updated_at
            return known
        opened = self._open(task) if sealed else None
        content = None if opened is None else opened.content
        return _Inside(
            mark=mark,
            is_sealed=sealed,
            needs=() if content is None or not self._are_ids(content.depends_on) else content.depends_on,
            registers=is_registration(task),
            sender="" if opened is None else opened.sender.name,
            traits={} if content is None else traits_of(content.payload),
            updated_at=task.updated_at,
            seen_at=time.monotonic(),
        )

    def _are_ids(self, names: tuple[str, ...]) -> bool:
        """Say whether all names can be ids of tasks: anything else may be text, which no call and no queue may see.

        The worker fails such a task.
        """
        if self._knows_needs:
            return all(isinstance(ident_of(name), int) or UUID.fullmatch(name) for name in names)
        return all(_ID.fullmatch(name) for name in names)

    # --- tasks that have ended --------------------------------------------------------------------------------------

    def effective_delivery(self, task: Task) -> tuple[str | None, bool, str | None]:
        """Return callback URL and ``quiet`` that a whole sealed task asks for inside, and its message; never raises.

        Nothing outside the box counts; of a task that does not open nobody is called.
        The message is its digest: whether this is the one task that it belongs to stands in the register.
        """
        self._current_trust()
        opened = self._open(task)
        if opened is None:
            return None, False, None
        return opened.content.callback_url, opened.content.quiet, opened.digest

    # --- keys -------------------------------------------------------------------------------------------------------

    def _open(self, task: Task) -> Opened | None:
        if not self._trust.ring.keys:
            return None
        created_at_s = task.created_at.timestamp() if task.created_at else None
        outside = Outside(task.id, task.title, task.channel, task.payload, created_at_s)
        try:
            return open_task(outside, self._trust, now_s=self._now_s())
        except (SealError, RecursionError) as exc:
            # The worker says so for the operator when it refuses the task.
            refusal = exc.refusal if isinstance(exc, SealError) else Refusal.MALFORMED
            self._log.debug("sealed_task_not_opened", task=task.id, refusal=refusal.value, reason=str(exc))
            return None

    def _current_trust(self) -> Trust:
        """Return what this host trusts now; when that has changed, everything must be opened again."""
        try:
            trust = self._read_trust()
        except ConfigurationError as exc:
            if str(exc) != self._trouble:
                self._log.error("keys_unusable", reason=str(exc))
            self._trouble, trust = str(exc), Trust()
        else:
            self._trouble = ""
        if trust is not self._trust and trust != self._trust:
            self._known.clear()
        self._trust = trust
        return trust


def is_titled(task: Task) -> bool:
    """Say whether a task has the title of a registration."""
    return task.title.strip().lower() == REGISTER


def is_registration(task: Task) -> bool:
    """Say whether a whole task asks to trust a key, however malformed the key."""
    return is_titled(task) and isinstance(task.payload, dict) and "pubkey" in task.payload


def _is_newer(there: datetime | None, here: datetime | None) -> bool:
    return there is not None and here is not None and there > here


def _mark_of(task: Task) -> bytes:
    """Return a fingerprint of all that decides whether and as what a task opens."""
    try:
        text = json.dumps([task.title, task.channel, str(task.created_at), task.payload], sort_keys=True, default=str)
    except RecursionError:
        return os.urandom(16)  # nested too deep to open, but not to be read
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
