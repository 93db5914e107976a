"""Concurrency classes: how many tasks of a kind run at once in the whole fleet.

A class is a hash in Redis, task id -> who holds the place, and until when. A
place is taken before the task is claimed, so that waiting for one costs neither
a lease nor a slot, and all places of a task are taken together or not at all;
after the claim ``confirm`` sees to it that it is still there, because a process
may stand still in between. It is kept as long as some ingress has the task in
flight or some worker shows that it runs it. What nobody keeps falls free as soon
as the task service says that the task is not in progress (core.places); its
expiry is for tasks that nobody can ask about.

After Redis lost its data, or was another process than before (which may have lost
the last second of it), a new epoch begins: first every ingress enters its own
places again and one of them those of all tasks in progress, then new ones are taken.
What was not confirmed by then is entered by nobody, and its claim given back.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from dispatch.broker import CLASS_KEY, KEY_PREFIX
from dispatch.core.places import Place, parse_place

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import redis.asyncio

EPOCH_KEY: Final = KEY_PREFIX + "classes"
"""Which run of Redis the places are of; gone after Redis lost its data."""
CHANGED_CHANNEL: Final = KEY_PREFIX + "classes-changed"
SPARE_S: Final = 20.0
"""How much longer than a lease a place is held that nobody keeps: until the task is given away anew."""
RETRY_S: Final = 1.0
"""A full class is asked again after this even if nobody tells that a place fell free."""

_READ: Final = """
local function read(key, task)
  local ok, place = pcall(cjson.decode, redis.call('HGET', key, task) or '')
  if ok and type(place) == 'table' and type(place['until']) == 'number' then return place end
end
"""
"""The place of a task, or nil."""
_NOW: Final = """
local t = redis.call('TIME')
local now = t[1] + t[2] / 1e6
"""
# KEYS: the epoch, then classes. ARGV: epoch, task, holder, seconds, then a limit for each class. Answers whether the
# places were taken. What another ingress holds for this very task is left alone, be it there or not: it may have
# claimed it.
_TAKE: Final = (
    _READ
    + _NOW
    + """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or ''
if string.sub(ARGV[1], 1, #run + 1) ~= run .. ':' then return 0 end
for i = 2, #KEYS do
  local held = 0
  local all = redis.call('HGETALL', KEYS[i])
  for n = 1, #all, 2 do
    local task, place = all[n], read(KEYS[i], all[n])
    if not place or place['until'] < now then
      redis.call('HDEL', KEYS[i], task)
    elseif task ~= ARGV[2] then
      held = held + 1
    elseif place['by'] ~= ARGV[3] then
      return 0
    end
  end
  if held >= tonumber(ARGV[3 + i]) then return 0 end
end
local place = cjson.encode({by = ARGV[3], since = now, ['until'] = now + ARGV[4]})
for i = 2, #KEYS do redis.call('HSET', KEYS[i], ARGV[2], place) end
return 1
"""
)
# KEYS: classes. ARGV: task, holder, seconds, "1" to enter it where it is missing. No place is shortened.
# Answers how many of the places are the holder's.
_KEEP: Final = (
    _READ
    + _NOW
    + """
local mine = 0
for _, key in ipairs(KEYS) do
  local place = read(key, ARGV[1])
  if not place and ARGV[4] == '1' then place = {by = ARGV[2], since = now, ['until'] = 0} end
  if place then
    place['until'] = math.max(place['until'], now + ARGV[3])
    redis.call('HSET', key, ARGV[1], cjson.encode(place))
    if place['by'] == ARGV[2] then mine = mine + 1 end
  end
end
return mine
"""
)
# KEYS: classes. ARGV: task, holder, channel.
_GIVE_BACK: Final = (
    _READ
    + """
local count = 0
for _, key in ipairs(KEYS) do
  local place = read(key, ARGV[1])
  if place and place['by'] == ARGV[2] then count = count + redis.call('HDEL', key, ARGV[1]) end
end
if count > 0 then redis.call('PUBLISH', ARGV[3], ARGV[1]) end
return count
"""
)
# KEYS: a class. ARGV: task, the place as it was seen, channel.
_FREE: Final = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('PUBLISH', ARGV[3], ARGV[1])
return 1
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
        self._free = client.register_script(_FREE)
        self._epoch = ""
        self._closed_until = 0.0
        self._leaving: set[str] = set()
        """Tasks whose places are being given back: taking them anew might arrive before that."""
        self._full: dict[str, float] = {}
        """Classes that were full, and until when nobody need ask."""

    @property
    def names(self) -> tuple[str, ...]:
        """The classes that there are."""
        return tuple(self._limits)

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
        if task_id not in self._leaving and not await self.is_lost() and not self.is_settling():
            keys = [EPOCH_KEY, *_keys(classes)]
            limits = [self._limits.get(name, 1) for name in classes]
            if await self._take(keys=keys, args=[self._epoch, task_id, self._holder, self._hold_s, *limits]):
                return True
        self._full |= dict.fromkeys(classes, now + RETRY_S)
        return False

    async def confirm(self, task_id: str, classes: Sequence[str]) -> bool:
        """Say whether we still have the places of a task that was claimed meanwhile; from now on nobody frees them."""
        return int(await self._keep(keys=_keys(classes), args=[task_id, self._holder, self._hold_s, "0"])) == len(
            classes
        )

    async def give_back(self, task_id: str, classes: Iterable[str]) -> None:
        """Give up the places that we have for a task, and tell whoever waits for one."""
        self._leaving.add(task_id)
        try:
            await self._give_back(keys=_keys(classes), args=[task_id, self._holder, CHANGED_CHANNEL])
        finally:
            self._leaving.discard(task_id)

    async def free(self, name: str, task_id: str, place: Place) -> bool:
        """Give a place away that stands for nothing, unless somebody changed it meanwhile; say whether it was."""
        return bool(await self._free(keys=_keys([name]), args=[task_id, place.text, CHANGED_CHANNEL]))

    async def enter(self, task_id: str, classes: Iterable[str], by: str = "") -> None:
        """Hold a task's places for another while, and enter them, for us or ``by``, where they are missing."""
        await self._keep(keys=_keys(classes), args=[task_id, by or self._holder, self._hold_s, "1"])

    async def prolong(self, task_id: str, classes: Iterable[str], *, is_known: bool = True) -> None:
        """Hold the places that a task has for another while; a short one when nobody ``is_known`` to need them."""
        seconds = self._hold_s if is_known else self._settle_s + RETRY_S
        await self._keep(keys=_keys(classes), args=[task_id, self._holder, seconds, "0"])

    async def holders(self) -> dict[str, dict[str, Place]]:
        """Return the places of each class that are taken, by task."""
        found: dict[str, dict[str, Place]] = {}
        async with self._redis.pipeline(transaction=False) as pipe:
            for name in self._limits:
                pipe.hgetall(CLASS_KEY + name)
            for name, texts in zip(self._limits, await pipe.execute(), strict=True):
                places = ((task_id, parse_place(text)) for task_id, text in texts.items())
                found[name] = {task_id: place for task_id, place in places if place is not None}
        return found

    async def is_lost(self) -> bool:
        """Say whether places may be missing because Redis lost some; then ``begin`` is to be called."""
        run, epoch = await self._run_and_epoch()
        if not epoch.startswith(f"{run}:"):
            return True
        if epoch != self._epoch:
            if self._epoch:
                self._closed_until = time.monotonic() + self._settle_s
            self._epoch = epoch
        return False

    async def _run_and_epoch(self) -> tuple[str, str]:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.execute_command("INFO", "server")
            pipe.get(EPOCH_KEY)
            server, epoch = await pipe.execute()
        return str(server.get("run_id", "")), str(epoch or "")

    async def begin(self) -> None:
        """Begin a new epoch, unless another ingress was faster, now that what is in progress has its places again."""
        was_known = bool(self._epoch)
        if await self.is_lost():
            run, _ = await self._run_and_epoch()
            await self._redis.set(EPOCH_KEY, f"{run}:{uuid4().hex}")
            self._epoch = ""
            await self.is_lost()
        if was_known:
            self._closed_until = time.monotonic() + self._settle_s

    def is_settling(self) -> bool:
        """Say whether other ingresses are being given time to show themselves and to enter their places."""
        return time.monotonic() < self._closed_until


def _keys(classes: Iterable[str]) -> list[str]:
    return [CLASS_KEY + name for name in classes]
