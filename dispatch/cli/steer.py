"""Commands that steer the fleet: pause, resume, drain, paused. What runs goes on."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click
import redis

from dispatch.ats import answers, orders, protocol
from dispatch.ats.model import parse_time
from dispatch.broker import STEER_CHANNEL
from dispatch.cli.options import State, common_options, duration_s
from dispatch.cli.output import ago
from dispatch.core.steering import CHANNEL, EXTENSION, HOST, QUEUE, Order, steering_of
from dispatch.errors import BrokerUnavailableError, DispatchError, UsageError
from dispatch.preflight.broker import cause_of, open_redis, workers_seen

if TYPE_CHECKING:
    from collections.abc import Iterator

FOR_S_MAX: Final = 366 * 86_400
NAME_CHARS_MAX: Final = 255
NOTE_CHARS_MAX: Final = 500
_kind: Final = click.argument("kind", type=click.Choice([CHANNEL, QUEUE]))
_name: Final = click.argument("name", metavar="NAME")
_note: Final = click.option("--note", "-n", metavar="TEXT", default="", help="Why; everybody who looks sees it.")


@click.command()
@_kind
@_name
@_note
@click.option("--for", "for_text", metavar="DURATION", help="End by itself after 30m, 2h, 1d.")
@click.option("--until", metavar="TIME", help="End by itself at 18:00, or at 2026-01-31T12:00.")
@common_options
@click.pass_obj
def pause(state: State, /, kind: str, name: str, note: str, for_text: str | None, until: str | None) -> None:
    """Claim nothing more from a channel or for a queue.

    What runs goes on, and what was claimed already still runs. Ingresses obey within a second.

    \b
    Examples:
      dispatch pause channel reports --note "disk is full" --for 2h
      dispatch pause queue gpu --until 18:00
    """  # noqa: D301 - click's mark
    if for_text is not None and until is not None:
        raise UsageError("Give --for or --until, not both.")
    for_s = None if for_text is None else float(duration_s(for_text))
    if until is not None:
        for_s = _left_s(until, datetime.now().astimezone())
    order = _give(state, kind, name, note, for_s)
    _tell(state, order, f"{kind.capitalize()} {name} is paused{_until(order)}.")


@click.command()
@_kind
@_name
@common_options
@click.pass_obj
def resume(state: State, kind: str, name: str) -> None:
    """Claim again from a channel or for a queue.

    \b
    Examples:
      dispatch resume channel reports
    """  # noqa: D301 - click's mark
    was = _take_back(state, kind, name)
    _tell(state, {"removed": was}, f"{kind.capitalize()} {name} {'is resumed' if was else 'was not paused'}.")


@click.command()
@click.argument("host", metavar="HOST")
@_note
@click.option("--undo", is_flag=True, help="Let the host's workers take tasks again.")
@common_options
@click.pass_obj
def drain(state: State, host: str, note: str, undo: bool) -> None:  # noqa: FBT001 - click's signature
    """Let the workers of a host take nothing new.

    What runs there goes on to its end, and no process is ended: stop the workers when 'dispatch status' shows that
    nothing runs there any more. HOST is the name that 'dispatch status' shows.

    \b
    Examples:
      dispatch drain host-3 --note "new kernel"
      dispatch drain host-3 --undo
    """  # noqa: D301 - click's mark
    if undo:
        was = _take_back(state, HOST, host)
        _tell(state, {"removed": was}, f"Host {host} {'takes tasks again' if was else 'was not drained'}.")
        return
    _tell(state, _give(state, HOST, host, note, None), f"Host {host} takes nothing new.")
    hosts = _hosts_seen(state)
    if hosts is not None and host not in hosts:
        others = f"; there are some on {', '.join(hosts)}" if hosts else ""
        state.output.note(f"No worker is seen on {host}{others}. The order holds for those that start there.")


@click.command()
@common_options
@click.pass_obj
def paused(state: State) -> None:
    """Show what is paused and drained.

    \b
    Examples:
      dispatch paused
      dispatch paused --json
    """  # noqa: D301 - click's mark
    rows = order_rows(state)
    if state.output.is_json:
        state.output.json(rows)
        return
    found = steering_of(rows, 0.0).orders
    state.output.table(("kind", "name", "until", "by", "note"), [_row(state, order) for order in found])
    if not found:
        state.output.note("Nothing is paused and no host is drained.")


def order_rows(state: State) -> list[dict[str, Any]]:
    """Return the orders in force, as the service tells them. Raises DispatchError when nobody can tell them."""
    if _keeps_orders(state):
        answer = state.client.send(orders.ask())
        rows = answer.get("steering") if isinstance(answer, dict) else None
        return rows if isinstance(rows, list) else []
    with _redis(state) as where:
        values: Any = where.client.hvals(where.key)
        return orders.rows_of(values, where.now_s())


@dataclass(frozen=True, slots=True)
class _Kept:
    """Where the orders about a foreign ATS are."""

    client: redis.Redis
    key: str

    def now_s(self) -> float:
        """Return the time of Redis."""
        seconds, micros = self.client.time()
        return float(seconds + micros / 1e6)


def _keeps_orders(state: State) -> bool:
    return EXTENSION in answers.extensions_of(state.client.send(protocol.health()))


@contextlib.contextmanager
def _redis(state: State) -> Iterator[_Kept]:
    broker = state.seen_settings.broker
    try:
        with contextlib.closing(open_redis(broker)) as client:
            yield _Kept(client, orders.orders_key(state.endpoint.base_url))
    except redis.RedisError as exc:
        raise BrokerUnavailableError(
            f"Orders about a foreign ATS are kept in Redis, which does not answer: {cause_of(exc)}."
        ) from exc


def _give(state: State, kind: str, name: str, note: str, for_s: float | None) -> dict[str, Any]:
    _check(name, note, for_s)
    if _keeps_orders(state):
        answer = state.client.send(orders.give(kind, name, note=note, for_s=for_s))
        order: dict[str, Any] = answer["order"]
    else:
        with _redis(state) as where:
            now_s = where.now_s()
            until_s = None if for_s is None else now_s + for_s
            text = orders.record(kind, name, note=note, by=state.actor.id, now_s=now_s, until_s=until_s)
            where.client.hset(where.key, orders.field_of(kind, name), text)
            order = orders.rows_of([text], now_s)[0]
    _wake(state)
    return order


def _hosts_seen(state: State) -> list[str] | None:
    """Return the hosts that have workers; None when Redis does not tell."""
    try:
        with contextlib.closing(open_redis(state.seen_settings.broker)) as client:
            return sorted({worker.host for worker in workers_seen(client)})
    except (redis.RedisError, DispatchError):
        return None


def _take_back(state: State, kind: str, name: str) -> bool:
    _check(name, "", None)
    if _keeps_orders(state):
        was = bool(state.client.send(orders.take_back(kind, name)).get("removed"))
    else:
        with _redis(state) as where:
            was = bool(where.client.hdel(where.key, orders.field_of(kind, name)))
    _wake(state)
    return was


def _wake(state: State) -> None:
    """Tell the ingresses at once; without Redis they hear of it when they next compare themselves with the service."""
    try:
        with contextlib.closing(open_redis(state.seen_settings.broker)) as client:
            client.publish(STEER_CHANNEL, str(time.time()))
    except (redis.RedisError, DispatchError):
        state.output.note(
            "Redis does not answer, so the ingresses were not told at once; they look by themselves every"
            f" {state.settings.ingress.reconcile_s:g} s or so."
        )


def _check(name: str, note: str, for_s: float | None) -> None:
    if not name.strip() or len(name) > NAME_CHARS_MAX or "," in name or not name.isprintable() or name != name.strip():
        raise UsageError(f"{name[:80]!r} is not the name of one channel, queue or host.")
    if len(note) > NOTE_CHARS_MAX:
        raise UsageError(f"The note has {len(note)} characters; at most {NOTE_CHARS_MAX} are kept.")
    if for_s is not None and not 0 < for_s <= FOR_S_MAX:
        raise UsageError("The end must lie ahead, by at most 366 days.")


def _left_s(text: str, now: datetime) -> float:
    """Read a time of day, the next such one, or a date with a time; local unless it says otherwise."""
    with contextlib.suppress(ValueError):
        at = datetime.strptime(text, "%H:%M").time()  # noqa: DTZ007 - a time of day has no zone
        then = now.replace(hour=at.hour, minute=at.minute, second=0, microsecond=0)
        return (then - now if then > now else then + timedelta(days=1) - now).total_seconds()
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise UsageError(f"{text!r} is not a time such as 18:00 or 2026-01-31T12:00.") from exc
    return (moment.astimezone(UTC) - now).total_seconds()


def _until(order: dict[str, Any]) -> str:
    return f" until {order['until']}" if order.get("until") else ""


def _tell(state: State, result: Any, sentence: str) -> None:
    if state.output.is_json:
        state.output.json(result)
    else:
        state.output.line(sentence)


def _row(state: State, order: Order) -> tuple[Any, ...]:
    until = order.until
    if state.output.is_terminal and until:
        until = ago(parse_time(until))
    return order.kind, order.name, until, order.by, order.note
