"""What a route is: one row with everything that the door, the documents and the tests need."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from flowfabric.contracts.schema import Form
from flowfabric.server.access import Role

if TYPE_CHECKING:
    from starlette.responses import Response

    from flowfabric.server.calls import Call

KIB: Final = 1_024
BODY_BYTES: Final = 64 * KIB
SIGNAL_BODY_BYTES: Final = 256 * KIB
EXECUTION_BODY_BYTES: Final = 1_024 * KIB
DATA_BODY_BYTES: Final = 4_096 * KIB

Answer: TypeAlias = "Callable[[Call], Awaitable[Response]]"


class PlainText:
    """Stands for an answer that is plain text."""


class PageText:
    """Stands for an answer that is a part of a web page."""


class EventText:
    """Stands for an answer that is a stream of server-sent events."""


class Parameter(msgspec.Struct, frozen=True):
    """A query parameter: what it means, its schema, and whether it has to be there."""

    summary: str
    schema: dict[str, Any]
    required: bool = False


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """A method and a path, the role it needs, and the function that answers.

    One of ``roles`` is needed; there are none for the few routes that are open to everybody.
    """

    method: str
    path: str
    roles: frozenset[Role]
    answer: Answer
    summary: str
    body: Any = None
    """The type that the body describes; the fields that are in the path need not be in the body."""
    statuses: dict[int, Any] = {}
    """What a success answers with, by status; None for an empty body."""
    query: dict[str, Parameter] = {}
    form: Form = Form.PUBLIC
    """How body and answer are written."""
    operations: Callable[[], dict[str, Any]] | None = None
    """The commands of a route that names an operation in its path."""
    body_bytes_max: int = 0

    @property
    def template(self) -> str:
        """The path as clients know it, with short names for what varies."""
        return PATH_FIELD.sub(lambda found: f"{{{_SHORT.get(found[1], found[1])}}}", self.path)


PATH_FIELD: Final = re.compile(r"\{(\w+)\}")
_SHORT: Final = {"execution_id": "id", "flow_id": "id", "budget_id": "id", "attempt_index": "idx"}


ROUTES: Final[list[Route]] = []


def whole_number(summary: str, least: int, most: int, *, required: bool = False) -> Parameter:
    """A query parameter that is a whole number."""
    return Parameter(summary, {"type": "integer", "minimum": least, "maximum": most}, required=required)


def text(summary: str) -> Parameter:
    """A query parameter that is any text."""
    return Parameter(summary, {"type": "string"})


def route(
    method: str, path: str, *roles: Role, body_bytes_max: int | None = None, **fields: Any
) -> Callable[[Answer], Answer]:
    """Register the decorated coroutine function as the answer of a route.

    One of the roles is needed; without any the route is open to everybody. The first line of the
    function's docstring is the route's summary.
    """

    def register(answer: Answer) -> Answer:
        default = BODY_BYTES if method in ("POST", "PUT", "PATCH") else 0
        ROUTES.append(
            Route(
                method=method,
                path=path,
                roles=frozenset(roles),
                answer=answer,
                summary=(answer.__doc__ or "").strip().partition("\n")[0],
                body_bytes_max=default if body_bytes_max is None else body_bytes_max,
                **fields,
            )
        )
        return answer

    return register
