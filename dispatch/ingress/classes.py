"""Concurrency classes: how many tasks of a kind run at once in the whole fleet.

A class is a hash in Redis, task id -> who holds the place, and until when. A
place is taken before the task is claimed, so that waiting for one costs neither
a lease nor a slot, and all places of a task are taken together or not at all.
It is kept as long as some ingress has the task in flight or some worker shows
that it runs it; when both are gone it ends with the task's lease. After a loss
of Redis every ingress enters its own again before anybody takes new ones.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from dispatch.broker import INGRESS_KEY, KEY_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import redis.asyncio

    from dispatch.ingress.ledger import Flight

CLASS_KEY: Final = KEY_PREFIX + "class:"
EPOCH_KEY: Final = KEY_PREFIX + "classes"
"""A word that is another after Redis lost its data."""
CHANGED_CHANNEL: Final = KEY_PREFIX + "classes-changed"
SPARE_S: Final = 20.0
"""How much longer than a lease a place is held that nobody keeps: until the task is given away anew."""
RETRY_S: Final = 1.0
"""A full class is asked again after this even if nobody tells that a place fell free."""

_NOW: Final = """
local t = redis.call('TIME')
local now = t[1] + t[2] / 1e6
"""
# KEYS: classes. ARGV: task, holder, seconds, prefix of the presence of ingresses, then a limit for each class.
# Answers whether the places were taken. What another ingress that is there holds for this very task is left alone.
_TAKE: Final = (
    _NOW
    + """
for i, key in ipairs(KEYS) do
  local held = 0
  local all = redis.call('HGETALL', key)
  for n = 1, #all, 2 do
    local ok, place = pcall(cjson.decode, all[n + 1])
    if not ok or place['until'] < now then
      redis.call('HDEL', key, all[n])
    elseif all[n] ~= ARGV[1] then
      held = held + 1
    elseif place['by'] ~= ARGV[2] and redis.call('EXISTS', ARGV[4] .. place['by']) == 1 then
      return 0
    end
  end
  if held >= tonumber(ARGV[4 + i]) then return 0 end
end
local place = cjson.encode({by = ARGV[2], since = now, ['until'] = now + ARGV[3]})
for _, key in ipairs(KEYS) do redis.call('HSET', key, ARGV[1], place) end
return 1
"""
)
# KEYS: classes. ARGV: task, holder, seconds, "1" to enter it where it is missing.
_KEEP: Final = (
    _NOW
    + """
for _, key in ipairs(KEYS) do
  local old = redis.call('HGET', key, ARGV[1])
  local ok, place = pcall(cjson.decode, old or '')
  if not ok then place = ARGV[4] == '1' and {by = ARGV[2], since = now} or nil end
  if place then
    place['until'] = now + ARGV[3]
    redis.call('HSET', key, ARGV[1], cjson.encode(place))
  end
end
"""
)
# KEYS: classes. ARGV: task, holder or "" for whoever it is, channel.
_GIVE_BACK: Final = """
local count = 0
for _, key in ipairs(KEYS) do
  local ok, place = pcall(cjson.decode, redis.call('HGET', key, ARGV[1]) or '')
  if ok and (ARGV[2] == '' or place['by'] == ARGV[2]) then count = count + redis.call('HDEL', key, ARGV[1]) end
end
if count > 0 then redis.call('PUBLISH', ARGV[3], ARGV[1]) end
"""


class Classes:
    """The places of one fleet. Methods that ask Redis raise ``redis.RedisError`` or ``OSError``."""

    def __init__(
        self, client: redis.asyncio.Redis, limits: Mapping[str, int], *, holder: str, lease_s: float, settle_s: float
    ) -> None:
        """``settle_s`` is how long after a loss of Redis other ingresses are given to enter what they hold."""
        self._redis = client
        self._limits = limits
        self._holder = holder
        self._hold_s = lease_s + SPARE_S
        self._settle_s = settle_s
        self._take = client.register_script(_TAKE)
        self._keep = client.register_script(_KEEP)
        self._give_back = client.register_script(_GIVE_BACK)
        self._epoch = ""
        self._closed_until = 0.0
        self._full: dict[str, float] = {}
        """Classes that were full, and until when nobody need ask."""

    def may_have_room(self, classes: Iterable[str], now: float) -> bool:
        """Say whether asking for these places makes sense; ``now`` is monotonic."""
        return all(self._full.get(name, 0.0) <= now for name in classes)

    def opened(self) -> None:
        """Hear that a place may have fallen free."""
        self._full.clear()

    def next_try(self) -> float | None:
        """Return when a class that was full may be asked again, monotonic; None when none was."""
        return min(self._full.values(), default=None)

    async def take(self, task_id: str, classes: Sequence[str]) -> bool:
        """Take a place in every class for a task, or in none; say which."""
        now = time.monotonic()
        if await self._is_lost() or now < self._closed_until:
            self._full |= dict.fromkeys(classes, now + RETRY_S)
            return False
        keys = [CLASS_KEY + name for name in classes]
        limits = [self._limits.get(name, 1) for name in classes]
        if await self._take(keys=keys, args=[task_id, self._holder, self._hold_s, INGRESS_KEY, *limits]):
            return True
        self._full |= dict.fromkeys(classes, now + RETRY_S)
        return False

    async def give_back(self, task_id: str, classes: Iterable[str], *, has_ended: bool = False) -> None:
        """Give up a task's places and tell whoever waits for one; another's too when the task has ended for good."""
        keys = [CLASS_KEY + name for name in classes]
        await self._give_back(keys=keys, args=[task_id, "" if has_ended else self._holder, CHANGED_CHANNEL])

    async def keep(self, flights: Iterable[tuple[str, Flight]], running: Iterable[str]) -> None:
        """Hold the places of our flights, and of tasks that workers show as running, for another while."""
        lost = await self._is_lost()
        for task_id, flight in flights:
            if flight.classes:
                keys = [CLASS_KEY + name for name in flight.classes]
                await self._keep(keys=keys, args=[task_id, self._holder, self._hold_s, "1"])
        held = await self.holders()
        for task_id in running:
            keys = [CLASS_KEY + name for name, places in held.items() if task_id in places]
            if keys:
                await self._keep(keys=keys, args=[task_id, self._holder, self._hold_s, "0"])
        if lost:
            await self._begin()

    async def holders(self) -> dict[str, dict[str, Any]]:
        """Return who holds the places of each class: task id -> ``by``, ``since`` and ``until`` (since 1970)."""
        found: dict[str, dict[str, Any]] = {}
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in self._limits:
                pipe.hgetall(CLASS_KEY + name)
            for name, places in zip(self._limits, await pipe.execute(), strict=True):
                found[name] = {task_id: json.loads(place) for task_id, place in places.items()}
        return found

    async def _is_lost(self) -> bool:
        epoch = await self._redis.get(EPOCH_KEY)
        if epoch is None:
            return True
        if epoch != self._epoch:
            if self._epoch:
                self._closed_until = time.monotonic() + self._settle_s
            self._epoch = str(epoch)
        return False

    async def _begin(self) -> None:
        """Begin a new epoch, unless another ingress was faster."""
        was_known = bool(self._epoch)
        await self._redis.set(EPOCH_KEY, uuid4().hex, nx=True)
        self._epoch = str(await self._redis.get(EPOCH_KEY) or "")
        if was_known:
            self._closed_until = time.monotonic() + self._settle_s
