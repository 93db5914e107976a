"""Organisations and their projects. Every function is one transaction on a ``Tx``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, case, func, insert, select, update

from dispatch.core.lifecycle import Status
from dispatch.errors import ConflictError, ForbiddenError, NotFoundError
from dispatch.service import wire
from dispatch.service.collation import bytewise
from dispatch.service.rows import Scope
from dispatch.service.schema import organizations, projects, tasks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatch.service.store import Tx

DEFAULT: Final = Scope("default", "main")
"""Where a task goes that is created on an unscoped route."""

_PROJECT_ID: Final = (
    select(projects.c.id)
    .join(organizations, organizations.c.id == projects.c.organization_id)
    .where(organizations.c.slug == bindparam("p_org"), projects.c.slug == bindparam("p_project"))
)
_ORGANIZATION: Final = select(*organizations.c).where(organizations.c.slug == bindparam("p_slug"))
_PROJECT: Final = select(*projects.c).where(
    projects.c.organization_id == bindparam("p_org"), projects.c.slug == bindparam("p_slug")
)


def project_id(tx: Tx, scope: Scope, within: frozenset[int] | None = None) -> int:
    """Return the number of a project. Raises NotFoundError, which says how to create it.

    ``within`` holds the projects that the caller may see, here and below; None
    means all. What is not in it does not exist.
    """
    row = tx.one(_PROJECT_ID, {"p_org": scope.org, "p_project": scope.project})
    if row is None or (within is not None and row[0] not in within):
        raise NotFoundError(
            f"There is no project {scope.org}/{scope.project}; create it with POST /orgs/{scope.org}/projects."
        )
    return int(row[0])


def home(tx: Tx, within: frozenset[int] | None = None) -> int:
    """Return the number of the project for tasks that name none. Raises ForbiddenError when it is not in ``within``."""
    try:
        return project_id(tx, DEFAULT, within)
    except NotFoundError:
        if within is None:
            raise
        raise ForbiddenError(
            f"A task that names no project goes to {DEFAULT.org}/{DEFAULT.project}, and this key is not for it.",
            next_step="Create it under /orgs/ORG/projects/PROJECT/tasks; GET /auth/me lists the projects of this key.",
        ) from None


def ensure_default(tx: Tx) -> None:
    """Create the default organisation and project when they are missing."""
    if tx.one(_ORGANIZATION, {"p_slug": DEFAULT.org}) is None:
        create_organization(tx, DEFAULT.org, "Default")
    if tx.one(_PROJECT_ID, {"p_org": DEFAULT.org, "p_project": DEFAULT.project}) is None:
        create_project(tx, DEFAULT.org, DEFAULT.project, "Main", "")


def ensure(tx: Tx, scope: Scope) -> int:
    """Return the number of a project, creating it and its organisation when they are missing."""
    row = tx.one(_PROJECT_ID, {"p_org": scope.org, "p_project": scope.project})
    if row is not None:
        return int(row[0])
    if tx.one(_ORGANIZATION, {"p_slug": scope.org}) is None:
        create_organization(tx, scope.org, scope.org)
    return int(create_project(tx, scope.org, scope.project, scope.project, "").id)


def _has_some(within: frozenset[int]) -> Any:
    return organizations.c.id.in_(select(projects.c.organization_id).where(projects.c.id.in_(within)))


def organization(tx: Tx, slug: str, within: frozenset[int] | None = None) -> Any:
    """Return an organisation's row. Raises NotFoundError."""
    row = tx.one(_ORGANIZATION if within is None else _ORGANIZATION.where(_has_some(within)), {"p_slug": slug})
    if row is None:
        raise NotFoundError(f"There is no organization {slug}; create it with POST /orgs.")
    return row


def all_organizations(tx: Tx, within: frozenset[int] | None = None) -> Sequence[Any]:
    """Return every organisation, by slug."""
    rows = select(*organizations.c).order_by(bytewise(organizations.c.slug))
    return tx.all(rows if within is None else rows.where(_has_some(within)))


def create_organization(tx: Tx, slug: str, name: str) -> Any:
    """Create an organisation. Raises ConflictError."""
    if tx.one(_ORGANIZATION, {"p_slug": slug}) is not None:
        raise ConflictError(f"The organization {slug} exists already.")
    values = {"slug": slug, "name": name, "created_at": tx.now_ms, "updated_at": tx.now_ms}
    return tx.one(insert(organizations).values(values).returning(*organizations.c))


def change_organization(tx: Tx, slug: str, changes: dict[str, str]) -> Any:
    """Change slug or name. Raises NotFoundError, ConflictError."""
    row = organization(tx, slug)
    wanted = changes.get("slug", slug)
    if wanted != slug and tx.one(_ORGANIZATION, {"p_slug": wanted}) is not None:
        raise ConflictError(f"The organization {wanted} exists already.")
    return tx.one(
        update(organizations)
        .where(organizations.c.id == row.id)
        .values(**changes, updated_at=tx.now_ms)
        .returning(*organizations.c)
    )


def project(tx: Tx, org: str, slug: str, within: frozenset[int] | None = None) -> Any:
    """Return a project's row. Raises NotFoundError."""
    row = tx.one(_PROJECT, {"p_org": organization(tx, org, within).id, "p_slug": slug})
    if row is None or (within is not None and row.id not in within):
        raise NotFoundError(f"There is no project {org}/{slug}; create it with POST /orgs/{org}/projects.")
    return row


def all_projects(
    tx: Tx, org: str, within: frozenset[int] | None = None, *, counts: bool
) -> list[tuple[Any, dict[str, int] | None]]:
    """Return every project of an organisation, by slug, with counts of tasks on demand. Raises NotFoundError."""
    found = select(*projects.c).where(projects.c.organization_id == organization(tx, org, within).id)
    if within is not None:
        found = found.where(projects.c.id.in_(within))
    rows = tx.all(found.order_by(bytewise(projects.c.slug)))
    if not counts:
        return [(row, None) for row in rows]

    def having(status: Status) -> Any:
        return func.sum(case((tasks.c.status == status.value, 1), else_=0))

    counted = {
        row[0]: {"pending_count": int(row[1]), "in_progress_count": int(row[2]), "total_count": int(row[3])}
        for row in tx.all(
            select(tasks.c.project_id, having(Status.TODO), having(Status.IN_PROGRESS), func.count())
            .where(tasks.c.project_id.in_([row.id for row in rows]))
            .group_by(tasks.c.project_id)
        )
    }
    none = {"pending_count": 0, "in_progress_count": 0, "total_count": 0}
    return [(row, counted.get(row.id, none)) for row in rows]


def create_project(tx: Tx, org: str, slug: str, name: str, description: str) -> Any:
    """Create a project. Raises NotFoundError, ConflictError."""
    owner = organization(tx, org).id
    if tx.one(_PROJECT, {"p_org": owner, "p_slug": slug}) is not None:
        raise ConflictError(f"The project {org}/{slug} exists already.")
    values = {
        "organization_id": owner,
        "slug": slug,
        "name": name,
        "description": description,
        "created_at": tx.now_ms,
        "updated_at": tx.now_ms,
    }
    return tx.one(insert(projects).values(values).returning(*projects.c))


def change_project(tx: Tx, org: str, slug: str, changes: dict[str, str], within: frozenset[int] | None = None) -> Any:
    """Change slug, name or description. Raises NotFoundError, ConflictError."""
    row = project(tx, org, slug, within)
    wanted = changes.get("slug", slug)
    if wanted != slug and tx.one(_PROJECT, {"p_org": row.organization_id, "p_slug": wanted}) is not None:
        raise ConflictError(f"The project {org}/{wanted} exists already.")
    return tx.one(
        update(projects).where(projects.c.id == row.id).values(**changes, updated_at=tx.now_ms).returning(*projects.c)
    )


def organization_object(row: Any) -> dict[str, Any]:
    """Return an organisation as it goes out."""
    return {
        "id": row.id,
        "slug": row.slug,
        "name": row.name,
        "created_at": wire.iso(row.created_at),
        "updated_at": wire.iso(row.updated_at),
    }


def project_object(row: Any, counts: dict[str, int] | None = None) -> dict[str, Any]:
    """Return a project as it goes out."""
    return {
        "id": row.id,
        "slug": row.slug,
        "name": row.name,
        "description": row.description,
        "created_at": wire.iso(row.created_at),
        "updated_at": wire.iso(row.updated_at),
        **(counts or {}),
    }
