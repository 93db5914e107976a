"""What the routes about organisations, projects and the caller do; the others are in ``handlers``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dispatch.errors import ForbiddenError
from dispatch.service import fields, keys, strict, tenants, wire
from dispatch.service.access import agent_uuid

if TYPE_CHECKING:
    from dispatch.service.handlers import Answer, Call


async def me(call: Call) -> Answer:
    """GET /auth/me: whom the caller is taken for, and what they may do."""
    strict.parse_query(call.query, {})
    actor, caller = call.actor, call.caller
    names = None
    if caller.projects is not None:
        numbers = sorted(caller.projects)
        names = await call.store.read(lambda tx: keys.project_names(tx, numbers))
    return 200, wire.dumps(
        {
            "actor": {"type": actor.type, "id": actor.id, "name": actor.name},
            "agent_id": agent_uuid(actor.type, actor.id),
            "access": caller.access.name.lower(),
            "projects": names,
            "keyed": caller.is_keyed,
        }
    )


def _require_all_projects(call: Call) -> None:
    if call.within is not None:
        raise ForbiddenError(
            "This key is for some projects only; organisations and projects are made with one for all."
        )


async def list_organizations(call: Call) -> Answer:
    """GET /orgs."""
    strict.parse_query(call.query, {})
    rows = await call.store.read(lambda tx: tenants.all_organizations(tx, call.within))
    return 200, wire.dumps({"organizations": [tenants.organization_object(row) for row in rows]})


async def create_organization(call: Call) -> Answer:
    """POST /orgs."""
    found = strict.parse_object(call.body, fields.ORGANIZATION, required=("slug",))
    name = found.get("name", found["slug"])
    _require_all_projects(call)
    row = await call.store.write(lambda tx: tenants.create_organization(tx, found["slug"], name))
    return 201, wire.dumps({"organization": tenants.organization_object(row)})


async def get_organization(call: Call) -> Answer:
    """GET /orgs/{org}."""
    row = await call.store.read(lambda tx: tenants.organization(tx, call.names[0], call.within))
    return 200, wire.dumps({"organization": tenants.organization_object(row)})


async def patch_organization(call: Call) -> Answer:
    """PATCH /orgs/{org}."""
    found = strict.parse_object(call.body, fields.ORGANIZATION)
    _require_all_projects(call)
    row = await call.store.write(lambda tx: tenants.change_organization(tx, call.names[0], found))
    return 200, wire.dumps({"organization": tenants.organization_object(row)})


async def list_projects(call: Call) -> Answer:
    """GET /orgs/{org}/projects."""
    words = {"true": True, "1": True, "false": False, "0": False}
    counts = strict.parse_query(call.query, {"counts": strict.one_of(words)}).get("counts", False)
    rows = await call.store.read(lambda tx: tenants.all_projects(tx, call.names[0], call.within, counts=counts))
    return 200, wire.dumps({"projects": [tenants.project_object(row, counted) for row, counted in rows]})


async def create_project(call: Call) -> Answer:
    """POST /orgs/{org}/projects."""
    found = strict.parse_object(call.body, fields.PROJECT, required=("slug",))
    slug = found["slug"]
    name, description = found.get("name", slug), found.get("description") or ""
    _require_all_projects(call)
    row = await call.store.write(lambda tx: tenants.create_project(tx, call.names[0], slug, name, description))
    return 201, wire.dumps({"project": tenants.project_object(row)})


async def get_project(call: Call) -> Answer:
    """GET /orgs/{org}/projects/{project}."""
    row = await call.store.read(lambda tx: tenants.project(tx, call.names[0], call.names[1], call.within))
    return 200, wire.dumps({"project": tenants.project_object(row)})


async def patch_project(call: Call) -> Answer:
    """PATCH /orgs/{org}/projects/{project}."""
    found = strict.parse_object(call.body, fields.PROJECT)
    if "description" in found:
        found["description"] = found["description"] or ""
    row = await call.store.write(
        lambda tx: tenants.change_project(tx, call.names[0], call.names[1], found, call.within)
    )
    return 200, wire.dumps({"project": tenants.project_object(row)})
