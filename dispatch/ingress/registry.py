"""What Redis keeps of the tasks that wait for others: which gates are parked, and which were sent.

Each waiting task has an entry (what it needs, its channel and priority, and a
random *round*), and one gate per dependency. A gate is parked until its
dependency settles; then it is moved, in one script, to those that were sent, so
that it moves once whoever sees the end first. It stays there until the entry is
closed, also in one script and once: by the release of the task, its failure, or
because the task no longer waits. Whatever was sent and did not close its entry
in time is sent again (``stuck``).

All of it is a hint: the reconcile arms what is missing here, and the service
decides who may run. Every method raises ``redis.RedisError`` or ``OSError`` when
Redis does not answer in time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from dispatch.ats.fences import service_key
from dispatch.broker import GRAPH_KEY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import redis
    import redis.asyncio

SETTLE_AT_ONCE: Final = 200
"""Gates that one call of the script moves: a dependency of very many must not hold Redis up."""

_FORGET: Final = """
local function forget(p, task)
  for _, dep in ipairs(redis.call('HKEYS', p .. 'parked:' .. task)) do
    redis.call('SREM', p .. 'waits:' .. dep, task)
  end
  redis.call('DEL', p .. 'parked:' .. task, p .. 'sent:' .. task)
  redis.call('HDEL', p .. 'tasks', task)
  redis.call('HDEL', p .. 'tries', task)
  redis.call('ZREM', p .. 'due', task)
end
"""
# ARGV: prefix, task, fingerprint, entry, then dependency and gate in turn. Answers 1 when the task was not armed so.
_ARM: Final = (
    _FORGET
    + """
local p, task = ARGV[1], ARGV[2]
local old = redis.call('HGET', p .. 'tasks', task)
if old and cjson.decode(old).fingerprint == ARGV[3] then return 0 end
if old then forget(p, task) end
redis.call('HSET', p .. 'tasks', task, ARGV[4])
for i = 5, #ARGV, 2 do
  redis.call('HSET', p .. 'parked:' .. task, ARGV[i], ARGV[i + 1])
  redis.call('SADD', p .. 'waits:' .. ARGV[i], task)
end
return 1
"""
)
# ARGV: prefix, dependency, its status, whether that opens ('1' or '0'), how many at most. Answers the gates that moved.
_SETTLE: Final = """
local p, dep, status = ARGV[1], ARGV[2], ARGV[3]
local now = redis.call('TIME')
local moved = {}
for _, task in ipairs(redis.call('SPOP', p .. 'waits:' .. dep, ARGV[5])) do
  local gate = redis.call('HGET', p .. 'parked:' .. task, dep)
  if gate then
    redis.call('HDEL', p .. 'parked:' .. task, dep)
    redis.call('HSET', p .. 'sent:' .. task, dep, status .. '|' .. gate)
    if ARGV[4] == '0' or redis.call('EXISTS', p .. 'parked:' .. task) == 0 then
      redis.call('ZADD', p .. 'due', now[1] .. '.' .. string.format('%06d', now[2]), task)
    end
    moved[#moved + 1] = gate
  end
end
return moved
"""
# ARGV: prefix, task, round or ''. Answers the entry that was closed, or false.
_CLOSE: Final = (
    _FORGET
    + """
local p, task = ARGV[1], ARGV[2]
local old = redis.call('HGET', p .. 'tasks', task)
if not old or (ARGV[3] ~= '' and cjson.decode(old).round ~= ARGV[3]) then return false end
forget(p, task)
return old
"""
)
# ARGV: prefix, then tasks. Answers the entries of those that were known.
_CLOSE_MANY: Final = (
    _FORGET
    + """
local p = ARGV[1]
local found = {}
for i = 2, #ARGV do
  local old = redis.call('HGET', p .. 'tasks', ARGV[i])
  if old then
    forget(p, ARGV[i])
    found[#found + 1] = old
  end
end
return found
"""
)
# ARGV: prefix, task, age in seconds. Answers what is known of the task to whoever comes first in that time, or false.
_RETRY: Final = """
local p, task = ARGV[1], ARGV[2]
local now = redis.call('TIME')
local due = tonumber(redis.call('ZSCORE', p .. 'due', task) or 'inf')
if due > now[1] + now[2] / 1e6 - ARGV[3] then return false end
local entry = redis.call('HGET', p .. 'tasks', task)
if not entry then
  redis.call('ZREM', p .. 'due', task)
  return false
end
redis.call('ZADD', p .. 'due', now[1] .. '.' .. string.format('%06d', now[2]), task)
return {
  entry,
  redis.call('HINCRBY', p .. 'tries', task, 1),
  redis.call('EXISTS', p .. 'parked:' .. task),
  redis.call('HGETALL', p .. 'sent:' .. task),
}
"""


@dataclass(frozen=True, slots=True)
class Armed:
    """As what a task is armed: a word for its dependencies, the random round, and the dependencies."""

    fingerprint: str
    round: str
    needs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sent:
    """A gate that was sent: for which dependency, in what state that was, and the parked message."""

    needed: str
    status: str
    gate: str


@dataclass(frozen=True, slots=True)
class Stuck:
    """A task whose gates were sent a while ago: it should have been released or failed."""

    task_id: str
    round: str
    sent: tuple[Sent, ...]
    open: bool
    """Whether some gate is still parked."""
    tries: int
    """How often it was found so in this round, by whichever ingress."""


class Registry:
    """The asynchronous side, for the ingress's event loop. ``base_url`` is the task service's."""

    def __init__(self, client: redis.asyncio.Redis, base_url: str) -> None:
        self._redis = client
        self.prefix = prefix_of(base_url)
        self._arm = client.register_script(_ARM)
        self._settle = client.register_script(_SETTLE)
        self._close = client.register_script(_CLOSE)
        self._close_many = client.register_script(_CLOSE_MANY)
        self._retry = client.register_script(_RETRY)

    async def epoch(self) -> str:
        """Return a word that is another after Redis lost its data."""
        await self._redis.set(self.prefix + "epoch", uuid4().hex, nx=True)
        return str(await self._redis.get(self.prefix + "epoch"))

    async def fingerprints(self, task_ids: Sequence[str]) -> list[str]:
        """Return as what each task is armed, "" for those that are not."""
        if not task_ids:
            return []
        texts: Any = await self._redis.hmget(self.prefix + "tasks", list(task_ids))
        return [json.loads(text)["fingerprint"] if text else "" for text in texts]

    async def arm_many(
        self,
        tasks: Mapping[str, Armed],
        gates: Mapping[str, Mapping[str, str]],
        chord_sizes: Mapping[tuple[str, int], int],
    ) -> list[bool]:
        """Park the gates of tasks, after the sizes of their chords; False for those that are armed alike already.

        ``chord_sizes`` are by name and time to keep, as ``Gates.chord_size`` gives them.
        """
        async with self._redis.pipeline(transaction=False) as pipe:
            for (key, keep_s), size in chord_sizes.items():
                pipe.set(key, size, ex=keep_s)
            for task_id, task in tasks.items():
                pairs = [part for pair in gates[task_id].items() for part in pair]
                entry = json.dumps({"fingerprint": task.fingerprint, "round": task.round})
                await self._arm(args=[self.prefix, task_id, task.fingerprint, entry, *pairs], client=pipe)
            done = await pipe.execute() if tasks else []
        return [bool(one) for one in done[len(chord_sizes) :]]

    async def settle(self, needed: str, status: str, *, opens: bool) -> list[str]:
        """Move the gates of a dependency that has ended to those that were sent, and return them; [] when none is left.

        At most SETTLE_AT_ONCE a call.
        """
        argv = [self.prefix, needed, status, "1" if opens else "0", SETTLE_AT_ONCE]
        return list(await self._settle(args=argv))

    async def close(self, task_id: str, round_: str = "") -> dict[str, Any] | None:
        """Forget a task (in this round); its entry for the one caller who closed it, None for all others."""
        text = await self._close(args=[self.prefix, task_id, round_])
        return dict(json.loads(text)) if text else None

    async def close_many(self, task_ids: Sequence[str]) -> list[str]:
        """Forget tasks and return the rounds of those that were known."""
        found: Any = await self._close_many(args=[self.prefix, *task_ids]) if task_ids else []
        return [json.loads(text)["round"] for text in found]

    async def release(self, task_id: str, round_: str) -> bool:
        """Do what ``Releases.release`` does."""
        entry = await self.close(task_id, round_)
        if entry is not None:
            await self._redis.publish(self.prefix + "ready", ready_message(task_id, entry))
        return entry is not None

    async def outcomes(self, task_id: str, round_: str) -> dict[str, str]:
        """Return the states in which dependencies of a waiting task have ended; {} when the round is over."""
        entry: Any = await self._redis.hget(self.prefix + "tasks", task_id)
        if not entry or json.loads(entry)["round"] != round_:
            return {}
        sent: Any = await self._redis.hgetall(self.prefix + "sent:" + task_id)
        return {needed: text.partition("|")[0] for needed, text in sent.items()}

    async def stuck(self, age_s: float, limit: int) -> list[Stuck]:
        """Return tasks whose last gate was sent ``age_s`` ago or longer, and note that they are sent again now.

        Each is returned to one caller only, and again after another ``age_s``.
        """
        seconds, micros = await self._redis.time()
        until = seconds + micros / 1e6 - age_s
        found = []
        due: Any = await self._redis.zrangebyscore(self.prefix + "due", "-inf", until, start=0, num=limit)
        for task_id in due:
            known: Any = await self._retry(args=[self.prefix, task_id, age_s])
            if known:
                entry, tries, is_open, sent = known
                gates = tuple(
                    Sent(needed, *text.split("|", 1)) for needed, text in zip(sent[::2], sent[1::2], strict=True)
                )
                found.append(Stuck(task_id, json.loads(entry)["round"], gates, bool(is_open), tries))
        return found


class Releases:
    """The synchronous side, for the Celery tasks of the gates: closes entries and tells the ingresses."""

    def __init__(self, client: redis.Redis, base_url: str) -> None:
        self._redis = client
        self.prefix = prefix_of(base_url)
        self._close = client.register_script(_CLOSE)

    def release(self, task_id: str, round_: str) -> bool:
        """Close the entry of a task that may run and tell every ingress; False when somebody did so before."""
        text: Any = self._close(args=[self.prefix, task_id, round_])
        if not text:
            return False
        self._redis.publish(self.prefix + "ready", ready_message(task_id, json.loads(text)))
        return True


def needs_in(client: redis.Redis, prefix: str, task_ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return what tasks wait for or have waited for, as it stands in the registry; tasks that do not wait are left out.

    For whoever only looks.
    """
    with client.pipeline(transaction=False) as pipe:
        for task_id in task_ids:
            pipe.hgetall(f"{prefix}parked:{task_id}")
            pipe.hgetall(f"{prefix}sent:{task_id}")
        found: Any = pipe.execute()
    both = zip(task_ids, found[::2], found[1::2], strict=True)
    return {task_id: tuple(sorted({*parked, *sent})) for task_id, parked, sent in both if parked or sent}


def ready_message(task_id: str, entry: Mapping[str, Any]) -> str:
    """Return what is published when a task may run: its id, and for which dependencies it waited."""
    return json.dumps({"id": task_id, "fingerprint": entry["fingerprint"]})


def prefix_of(base_url: str) -> str:
    """Return what all names of this service's registry begin with."""
    return f"{GRAPH_KEY}{service_key(base_url)}:"
