"""The order in which paths are tried, and that it decides nothing."""

import pytest
from starlette.routing import Match, Route

from flowfabric.engine.engine import Engine
from flowfabric.server import ServerOptions, Service, make_app
from flowfabric.server.app import BUSY
from flowfabric.server.routes import ROUTES
from flowfabric.stores.memory import MemoryStore


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_a_path_is_matched_by_one_route_only(route) -> None:
    app = make_app(Service(Engine(MemoryStore()), ServerOptions()))
    path = route.path.replace("{", "").replace("}", "")
    scope = {"type": "http", "method": route.method, "path": path, "root_path": "", "headers": []}
    matching = [one for one in app.routes if one.matches(scope)[0] is Match.FULL]
    found = [one.name for one in matching if isinstance(one, Route)]
    assert found == [route.answer.__name__]


def test_the_paths_that_are_tried_first_exist() -> None:
    assert {route.path for route in ROUTES} >= BUSY
