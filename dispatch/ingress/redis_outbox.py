"""Deliveries of a foreign ATS, kept in Redis by the ingresses that see its tasks end.

Weaker than the outbox of our own service: an end that no ingress sees, because
none ran, is not told, and what Redis loses is lost. Ids come from the end
itself, so that several ingresses that see it write one delivery.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from dispatch.ats.fences import sealed_key, service_key
from dispatch.broker import OUTBOX_KEY
from dispatch.ingress import outbox

if TYPE_CHECKING:
    import redis.asyncio

    from dispatch.ats.model import Task

KEEP_S: Final = 7 * 86_400
"""How long it is remembered that an end was told."""

# ARGV: prefix, channel, id, delivery, seconds to keep.
_NOTE: Final = """
local p, id = ARGV[1], ARGV[3]
if not redis.call('SET', p .. 'item:' .. id, ARGV[4], 'NX', 'EX', ARGV[5]) then return 0 end
redis.call('ZADD', p .. 'due:' .. ARGV[2], redis.call('TIME')[1], id)
return 1
"""
# ARGV: prefix, channel, how many, lease in seconds, seconds to keep. Answers the deliveries.
_TAKE: Final = """
local p, due = ARGV[1], ARGV[1] .. 'due:' .. ARGV[2]
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local found = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, ARGV[3])) do
  local text = redis.call('GET', p .. 'item:' .. id)
  if text then
    local item = cjson.decode(text)
    item.tries, item.token = item.tries + 1, item.token + 1
    text = cjson.encode(item)
    redis.call('SET', p .. 'item:' .. id, text, 'EX', ARGV[5])
    redis.call('ZADD', due, now + ARGV[4], id)
    found[#found + 1] = text
  else
    redis.call('ZREM', due, id)
  end
end
local first = redis.call('ZRANGE', due, 0, 0, 'WITHSCORES')
return {found, first[2] and tostring(first[2] - now) or ''}
"""
# ARGV: prefix, id, token, how many tries not to count, delay in seconds or '' for the end, seconds to keep.
_REPORT: Final = """
local p, id = ARGV[1], ARGV[2]
local text = redis.call('GET', p .. 'item:' .. id)
if not text then return 0 end
local item = cjson.decode(text)
if item.token ~= tonumber(ARGV[3]) then return 0 end
item.tries = item.tries - ARGV[4]
redis.call('SET', p .. 'item:' .. id, cjson.encode(item), 'EX', ARGV[6])
local due = p .. 'due:' .. item.channel
if ARGV[5] == '' then
  redis.call('ZREM', due, id)
else
  local time = redis.call('TIME')
  redis.call('ZADD', due, time[1] + time[2] / 1000000 + ARGV[5], id)
end
return 1
"""


class RedisOutbox:
    """The deliveries of one foreign ATS, for some channels."""

    keeps_itself = False

    def __init__(self, client: redis.asyncio.Redis, base_url: str, channels: tuple[str, ...]) -> None:
        self._redis = client
        self._service = service_key(base_url)
        self._prefix = f"{OUTBOX_KEY}{service_key(base_url)}:"
        self._channels = channels
        self._note = client.register_script(_NOTE)
        self._take = client.register_script(_TAKE)
        self._report = client.register_script(_REPORT)

    async def note(self, task: Task) -> None:
        """Write a delivery for this end of the task, unless there is one."""
        raw = task.raw or {}
        said = raw.get("completed_at") or raw.get("updated_at")
        settled_at = said if isinstance(said, str) and said else datetime.now(UTC).isoformat(timespec="milliseconds")
        # A service that names no time has one delivery for each state in which a task ended.
        end = json.dumps([self._prefix, task.id, task.status, raw.get("completed_at")])
        ident = f"dlv_{hashlib.sha256(end.encode()).hexdigest()[:32]}"
        item = {
            "id": ident,
            "task_id": task.id,
            "status": task.status,
            "settled_at": settled_at,
            "channel": task.channel,
            "tries": 0,
            "token": 0,
        }
        await self._note(args=[self._prefix, task.channel, ident, json.dumps(item), KEEP_S])

    async def take(self, limit: int) -> outbox.Taken:
        """Take what is due."""
        found: list[outbox.Delivery] = []
        next_due: list[float] = []
        for channel in self._channels:
            args: list[str | float] = [self._prefix, channel, limit - len(found), outbox.LEASE_S, KEEP_S]
            texts, next_s = await self._take(args=args)
            found += [_delivery(json.loads(text)) for text in texts]
            next_due += [max(0.0, float(next_s))] if next_s else []
        return outbox.Taken(found, min(next_due, default=None))

    async def report(
        self,
        delivery: outbox.Delivery,
        outcome: str,
        *,
        delay_s: float = 0.0,
        error: str | None = None,  # noqa: ARG002 - nobody lists what Redis keeps; the log has it
        counted: bool = True,
    ) -> None:
        """Say what became of it."""
        delay = repr(float(delay_s)) if outcome == "retry" else ""
        await self._report(args=[self._prefix, delivery.id, delivery.token, 0 if counted else 1, delay, KEEP_S])

    async def is_original(self, delivery: outbox.Delivery, message: str) -> bool:
        """Ask the register that the workers keep in Redis."""
        whose = f"{self._service}:{delivery.task_id}"
        await self._redis.set(sealed_key(message), whose, nx=True)
        return str(await self._redis.get(sealed_key(message))) == whose


def _delivery(item: dict[str, Any]) -> outbox.Delivery:
    return outbox.Delivery(
        item["id"], item["task_id"], item["status"], item["settled_at"], int(item["tries"]), int(item["token"])
    )
