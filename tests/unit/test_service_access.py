"""What a key must allow for which call."""

from __future__ import annotations

import itertools

import pytest

from dispatch.ats.model import Actor
from dispatch.errors import ForbiddenError
from dispatch.service.access import Access, Caller
from dispatch.service.handlers import ROUTES
from dispatch.service.rest import access_needed

ADMINS = {
    ("POST", ("orgs",)),
    ("PATCH", ("orgs", "*")),
    ("POST", ("orgs", "*", "projects")),
    ("PATCH", ("orgs", "*", "projects", "*")),
    ("PUT", ("steering", "*", "*")),
    ("DELETE", ("steering", "*", "*")),
}


def test_every_route_has_the_access_that_is_written_down() -> None:
    """Reading needs read, organisations, projects, steering admin to change, all else write; tools ask themselves."""
    for shape, methods in ROUTES.items():
        for method in methods:
            looks = method == "GET" or shape == ("tools", "*")
            wanted = Access.READ if looks else Access.ADMIN if (method, shape) in ADMINS else Access.WRITE
            assert access_needed(method, shape) is wanted, (method, shape)


@pytest.mark.parametrize(("has", "needs"), list(itertools.product(Access, Access)))
def test_each_access_includes_those_below(has: Access, needs: Access) -> None:
    """read < write < admin."""
    caller = Caller(Actor("agent", "a", "A"), has, is_keyed=True)
    if has >= needs:
        caller.require(needs)
    else:
        with pytest.raises(ForbiddenError, match=f"needs a key with {needs.name.lower()} access"):
            caller.require(needs)
