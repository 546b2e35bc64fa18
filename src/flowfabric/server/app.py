"""The ASGI application: the door in front of the routes.

Deny by default: a route exists only as a row of the table, every row names its role, and a request
without a known token goes no further, whatever its path.
"""

from __future__ import annotations

import logging
import time
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import Match
from starlette.routing import Route as StarletteRoute

from flowfabric import errors
from flowfabric.server.access import ANYONE, NOBODY, Principal, Tokens, role_missing
from flowfabric.server.calls import PLACE, Call, Refused
from flowfabric.server.problems import UNEXPECTED, Problem, plain_problem, problem_of
from flowfabric.server.routes import ROUTES
from flowfabric.server.service import Service
from flowfabric.server.watching import TEMPLATE, Watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from flowfabric.server.routes.table import Route

log = logging.getLogger("flowfabric.server")

BUSY: Final = frozenset({"/v1/commands", "/v1/commands/{operation}", "/v1/claims", "/v1/changes"})
"""The paths that workers ask for all the time. Paths are tried one after the other, so these come first;
no other path matches what they do."""
INSECURE_HEADER: Final = (b"flowfabric-insecure", b"true")
SAFE_HEADERS: Final = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]


def make_app(service: Service) -> Starlette:
    """The application that serves every route for this service."""
    app = Starlette(
        routes=[
            _served(route, service) for route in sorted(ROUTES, key=lambda route: route.path not in BUSY)
        ],
        middleware=_middleware(service),
        exception_handlers={HTTPException: _empty_answer},
        lifespan=_lifespan(service),
    )
    app.router.redirect_slashes = False
    return app


def _middleware(service: Service) -> list[Middleware]:
    cors = []
    if service.options.cors_origins:
        headers = ["content-type", "idempotency-key"]
        if service.options.tokens:
            headers.append("authorization")
        cors.append(
            Middleware(
                CORSMiddleware,
                allow_origins=service.options.cors_origins,
                allow_methods=["GET", "POST", "PUT"],
                allow_headers=headers,
            )
        )
    return [
        Middleware(Outermost, insecure=service.options.insecure),
        *cors,
        Middleware(Watch, service=service),
        Middleware(Door, service=service),
    ]


def _lifespan(service: Service) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        service.close()

    return lifespan


class Outermost:
    """Adds the headers that every answer has."""

    def __init__(self, app: ASGIApp, *, insecure: bool) -> None:
        self._app = app
        self._headers = [*SAFE_HEADERS, INSECURE_HEADER] if insecure else SAFE_HEADERS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *self._headers]
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


class Door:
    """Lets a request in if its token is known, or if its path is open to everybody."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._tokens = Tokens(service.options.tokens)
        self._open = frozenset((route.method, route.path) for route in ROUTES if not route.roles)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, answer 401, or 429 to whoever has too many under way."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        principal = scope["principal"] = self._principal_of(scope)
        if (scope["method"], scope["path"]) in self._open:
            await self._app(scope, receive, send)
        elif principal is None:
            problem = plain_problem(401, "missing or invalid Authorization header")
            await _respond(problem)(scope, receive, send)
        else:
            await self._let_in(principal, scope, receive, send)

    async def _let_in(self, principal: Principal, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, which has a place until its answer is on the way."""
        try:
            place = scope[PLACE] = self._service.place_for(principal)
        except Refused as refusal:
            await _respond(refusal.problem)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            place.give_back()

    def _principal_of(self, scope: Scope) -> Principal | None:
        if not self._tokens:
            return ANYONE
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return self._tokens.principal_of(given, time.time_ns() // 1_000_000)


def _served(route: Route, service: Service) -> StarletteRoute:
    template = route.template  # it takes longer to make than a request has time for

    async def endpoint(request: Request) -> Response:
        request.scope[TEMPLATE] = template
        principal: Principal = request.scope["principal"] or NOBODY
        if route.roles and not principal.may(route.roles):
            return _respond(problem_of(role_missing(route.roles)))
        return await _answered(Call(request, route, service, principal))

    return StarletteRoute(route.path, endpoint, methods=[route.method], name=route.answer.__name__)


async def _answered(call: Call) -> Response:
    """The answer, whatever happens. What went wrong inside is in the log, not in the answer."""
    route = call.route
    try:
        call.check_head()
        if route.body_bytes_max:
            call.check_declared_length()
        return await route.answer(call)
    except Refused as refusal:
        return _respond(refusal.problem)
    except errors.FlowFabricError as error:
        problem = problem_of(error)
        if problem.is_fault:
            log.warning("%s %s failed: %s", route.method, route.path, error)
        return _respond(problem)
    except Exception:
        log.exception("%s %s failed unexpectedly", route.method, route.path)
        return _respond(UNEXPECTED)


def _respond(problem: Problem) -> Response:
    return Response(problem.encode(), problem.status, problem.headers, problem.media_type)


async def _empty_answer(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if "Allow" in headers:
        headers["Allow"] = ", ".join(sorted(_methods_of(request)))
    return Response(status_code=error.status_code, headers=headers)


def _methods_of(request: Request) -> set[str]:
    """The methods of all routes with the path that was asked for."""
    found: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, StarletteRoute) and route.matches(request.scope)[0] is not Match.NONE:
            found |= route.methods or set()
    return found
