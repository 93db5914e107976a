"""The tables, as SQLAlchemy Core sees them, for SQLite and PostgreSQL alike.

Built for the nine-state lifecycle and both faces (ATS and Task Tools). Times
are whole milliseconds since the Unix epoch by the service's own clock; JSON is
kept as the text that goes out again, so that a payload is never parsed twice.
``events`` is append-only and is both the event log and the history of moves.

A change here needs a migration (``migrations/versions``); a test compares.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

NAMING: Final = {
    "ix": "ix_%(column_0_N_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}

POSITION_LAST: Final = "1.7976931348623157e308"
"""Where a task without an ``order_index`` stands in a list: the largest number there is."""

AGING: Final = "substr(scope, 1, 8) <> 'task_id:'"
"""True of idempotency keys that are kept for a time only; the others are the UUIDs that tasks were created with."""

metadata: Final = MetaData(naming_convention=NAMING)

Id: Final = BigInteger().with_variant(Integer, "sqlite")
"""A whole number of 64 bits that SQLite also accepts as a row id."""


def _key(name: str) -> Column[Any]:
    return Column(name, Id, primary_key=True, autoincrement=True)


def _time(name: str, *, nullable: bool = True) -> Column[Any]:
    return Column(name, BigInteger, nullable=nullable)


organizations: Final = Table(
    "organizations",
    metadata,
    _key("id"),
    Column("slug", String(64), nullable=False, unique=True),
    Column("name", String(200), nullable=False),
    _time("created_at", nullable=False),
    _time("updated_at", nullable=False),
    sqlite_autoincrement=True,
)

projects: Final = Table(
    "projects",
    metadata,
    _key("id"),
    Column("organization_id", Id, ForeignKey("organizations.id"), nullable=False),
    Column("slug", String(64), nullable=False),
    Column("name", String(200), nullable=False),
    Column("description", Text, nullable=False, server_default=text("''")),
    _time("created_at", nullable=False),
    _time("updated_at", nullable=False),
    UniqueConstraint("organization_id", "slug"),
    sqlite_autoincrement=True,
)

tasks: Final = Table(
    "tasks",
    metadata,
    _key("id"),
    Column("uuid", String(36), nullable=False, unique=True),
    Column("project_id", Id, ForeignKey("projects.id"), nullable=False),
    Column("parent_id", Id, ForeignKey("tasks.id"), nullable=True),
    Column("run_id", String(36), nullable=True),
    Column("order_index", Double, nullable=True),
    Column("position", Double, nullable=False, server_default=POSITION_LAST, comment="order_index, or last"),
    Column("assigned_to", String(36), nullable=True, comment="the agent that it is kept for"),
    Column("title", String(512), nullable=False),
    Column("description", Text, nullable=False, server_default=text("''")),
    Column("type", String(128), nullable=False),
    Column("channel", String(128), nullable=False),
    Column("priority", Integer, nullable=False, comment="1 to 10, 10 is most urgent"),
    Column("status", String(16), nullable=False),
    Column("needs_review", Boolean, nullable=False, server_default=false()),
    Column("payload", Text, nullable=True, comment="JSON"),
    Column("sealed", Boolean, nullable=False, server_default=false(), comment="the payload says that it is sealed"),
    Column("traits", Text, comment="short plain values of the payload"),
    Column("outputs", Text, nullable=True, comment="JSON"),
    Column("meta_json", Text, nullable=True, comment="JSON"),
    Column("depends_on", Text, nullable=True, comment="JSON: what it depends on, as clients see it"),
    Column("source_type", String(16), nullable=False),
    Column("source_id", String(255), nullable=False),
    Column("source_name", String(255), nullable=False),
    Column("held", Boolean, nullable=False, server_default=false(), comment="the holder's lock is live"),
    Column("holder_type", String(16), nullable=True),
    Column("holder_id", String(255), nullable=True, comment="who holds it, or held it when it finished"),
    Column("holder_name", String(255), nullable=True),
    _time("held_since"),
    Column("yields", Boolean, nullable=False, server_default=false(), comment="the lock gives way to a reviewer"),
    Column("fencing_token", BigInteger, nullable=False, server_default="0", comment="+1 with every grant"),
    Column("claim_id", String(255), nullable=True, comment="names one try to claim"),
    Column("runner", String(255), nullable=True, comment="the worker that started the attempt"),
    Column("lease_ms", BigInteger, nullable=True, comment="length of the last grant"),
    _time("lease_expires_at"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("lease_losses", Integer, nullable=False, server_default="0"),
    _time("not_before"),
    Column("result_hash", String(64), nullable=True, comment="of the report that ended the attempt"),
    Column("reason", Text, nullable=True, comment="of the last failure or release"),
    _time("created_at", nullable=False),
    _time("updated_at", nullable=False),
    Column("entered_at", BigInteger, nullable=False, server_default="0", comment="when it got its status"),
    _time("started_at"),
    _time("completed_at"),
    Index(None, "held", "lease_expires_at"),
    Index("ix_tasks_status", "status", "id"),
    Index("ix_tasks_assigned", "assigned_to", "status"),
    Index(None, "parent_id"),
    Index(None, "updated_at"),
    Index(
        "ix_tasks_ended",
        "completed_at",
        "id",
        sqlite_where=text("completed_at IS NOT NULL"),
        postgresql_where=text("completed_at IS NOT NULL"),
    ),
    sqlite_autoincrement=True,
)

Index("ix_tasks_channel", tasks.c.status, tasks.c.channel, tasks.c.priority.desc(), tasks.c.id)
Index("ix_tasks_list", tasks.c.project_id, tasks.c.status, tasks.c.position, tasks.c.priority.desc(), tasks.c.id)
Index("ix_tasks_next", tasks.c.status, tasks.c.project_id, tasks.c.priority.desc(), tasks.c.position, tasks.c.id)

task_dependencies: Final = Table(
    "task_dependencies",
    metadata,
    Column("task_id", Id, ForeignKey("tasks.id"), primary_key=True),
    Column("depends_on_id", Id, ForeignKey("tasks.id"), primary_key=True),
    Index(None, "depends_on_id"),
)

missing_dependencies: Final = Table(
    "missing_dependencies",
    metadata,
    Column("task_id", Id, ForeignKey("tasks.id"), primary_key=True),
    Column("name", String(64), primary_key=True, comment="what no task of the project is called"),
    Index(None, "name"),
)

task_needs: Final = Table(
    "task_needs",
    metadata,
    Column("task_id", Id, ForeignKey("tasks.id"), primary_key=True),
    Column("name", String(128), primary_key=True, comment="a capability that whoever does it must have"),
)

idempotency_keys: Final = Table(
    "idempotency_keys",
    metadata,
    Column("scope", String(300), primary_key=True, comment="what the key is for, and whose it is"),
    Column("key", String(255), primary_key=True),
    Column("digest", String(64), nullable=False, comment="of the request that used it first"),
    Column("answer_id", Id, nullable=False, comment="the task or message that it made"),
    _time("created_at", nullable=False),
    Index("ix_idempotency_keys_created_at", "created_at", sqlite_where=text(AGING), postgresql_where=text(AGING)),
)

sealed_messages: Final = Table(
    "sealed_messages",
    metadata,
    Column("digest", String(64), primary_key=True, comment="names a sealed message for good"),
    # No foreign key: a message that was seen must not be taken again when its task is not kept any more.
    Column("task_id", Id, nullable=False, comment="the one task that it may be the content of"),
    _time("seen_at", nullable=False),
)

listeners: Final = Table(
    "listeners",
    metadata,
    Column("process", String(64), primary_key=True, comment="a process of the service"),
    Column("channel", String(128), primary_key=True, comment="empty for those that listen to all"),
    Column("count", Integer, nullable=False),
    _time("seen_at", nullable=False),
)

messages: Final = Table(
    "messages",
    metadata,
    _key("id"),
    Column("task_id", Id, ForeignKey("tasks.id"), nullable=False),
    Column("actor_type", String(16), nullable=False),
    Column("actor_id", String(255), nullable=False),
    Column("actor_name", String(255), nullable=False),
    Column("kind", String(16), nullable=False, server_default="message"),
    Column("tags", Text, nullable=True, comment="JSON"),
    Column("meta", Text, nullable=True, comment="JSON"),
    Column("parts", Text, nullable=False, comment="JSON"),
    _time("created_at", nullable=False),
    Index(None, "task_id", "id"),
    sqlite_autoincrement=True,
)

events: Final = Table(
    "events",
    metadata,
    Column("seq", Id, primary_key=True, autoincrement=True),
    Column("type", String(32), nullable=False),
    Column("task_id", Id, ForeignKey("tasks.id"), nullable=False),
    Column("from_status", String(16), nullable=True),
    Column("to_status", String(16), nullable=True),
    Column("note", Text, nullable=True),
    Column("actor_type", String(16), nullable=False),
    Column("actor_id", String(255), nullable=False),
    Column("actor_name", String(255), nullable=False),
    Column("token", BigInteger, nullable=True, comment="the fencing token under which it happened"),
    Column("message_id", Id, ForeignKey("messages.id"), nullable=True),
    _time("created_at", nullable=False),
    Index(None, "task_id", "seq"),
    # Without it every message that is removed would have the whole table read for its foreign key.
    Index(
        "ix_events_message_id",
        "message_id",
        sqlite_where=text("message_id IS NOT NULL"),
        postgresql_where=text("message_id IS NOT NULL"),
    ),
    sqlite_autoincrement=True,
)

deliveries: Final = Table(
    "deliveries",
    metadata,
    Column("id", String(36), primary_key=True, comment="the webhook-id; has no dots"),
    Column("task_id", Id, ForeignKey("tasks.id"), nullable=False),
    Column("status", String(16), nullable=False, comment="ATS word of how the task ended"),
    _time("settled_at", nullable=False),
    Column("state", String(16), nullable=False, comment="waiting, delivered, failed or empty"),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("token", BigInteger, nullable=False, server_default="0", comment="+1 with every take"),
    Column("due_at", BigInteger, nullable=False, comment="when it may be taken (again)"),
    _time("taken_until"),
    _time("ended_at"),
    Column("last_error", String(200), nullable=True),
    Index("ix_deliveries_due", "state", "due_at"),
    Index(None, "task_id"),
)

pruning: Final = Table(
    "pruning",
    metadata,
    Column("name", String(32), primary_key=True, comment="a kind of rows that are removed; turn; gap"),
    _time("at", nullable=False),
    Column("number", Id, nullable=False),
    Column("by", String(64), nullable=True, comment="the process of the service whose turn it is"),
)

steering: Final = Table(
    "steering",
    metadata,
    Column("kind", String(8), primary_key=True, comment="channel, queue or host"),
    Column("name", String(255), primary_key=True),
    Column("note", Text, nullable=False, server_default=text("''")),
    _time("until"),
    Column("by", String(255), nullable=False),
    _time("at", nullable=False),
)

api_keys: Final = Table(
    "api_keys",
    metadata,
    Column("id", String(16), primary_key=True, comment="stands in the key's text"),
    Column("name", String(64), nullable=False),
    Column("secret_sha256", String(64), nullable=False),
    Column("access", String(8), nullable=False, comment="read, write or admin"),
    Column("actor_type", String(16), nullable=False),
    Column("actor_id", String(255), nullable=False),
    Column("projects", Text, nullable=True, comment="JSON list of project ids; null is all"),
    _time("created_at", nullable=False),
    _time("expires_at"),
    _time("revoked_at"),
    Index(
        "ux_api_keys_name",
        "name",
        unique=True,
        sqlite_where=text("revoked_at IS NULL"),
        postgresql_where=text("revoked_at IS NULL"),
    ),
)
