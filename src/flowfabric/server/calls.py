"""One request on its way: who asks, what the body says, and the answer in the right form.

The order of checks is always the same: the token, the role, the size of the body, its syntax, its
types; only then the engine sees a command.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from starlette.responses import Response

from flowfabric import errors
from flowfabric.contracts.ids import parse_uuid
from flowfabric.contracts.limits import U64_MAX
from flowfabric.contracts.schema import Form
from flowfabric.contracts.wire import from_wire, to_wire
from flowfabric.server.problems import Problem, plain_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from starlette.requests import Request

    from flowfabric.contracts.base import Command
    from flowfabric.engine.engine import Engine
    from flowfabric.server.access import Principal
    from flowfabric.server.places import Place
    from flowfabric.server.routes.table import Route
    from flowfabric.server.service import Service

T = TypeVar("T")
R = TypeVar("R")

JSON: Final = "application/json"
REQUEST_ID: Final = "idempotency-key"
NAMESPACE: Final = "flowfabric-namespace"
PLACE: Final = "flowfabric.place"
"""Where the door leaves the place of a request, in its scope."""
NO_STORE: Final = {"Cache-Control": "no-store"}
_REQUEST_ID: Final = re.compile(r"[!-~]{0,256}")


class Refused(Exception):
    """A request that ends here, with the answer it gets."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.body["error"])
        self.problem = problem


def refused(status: int, error: str, **more: Any) -> Refused:
    """A refusal that stands for no error of the engine."""
    return Refused(plain_problem(status, error, **more))


def unreadable(what: str, route: Route) -> Refused:
    """A refusal of a number in the query or the path that is none.

    Clients of other makes expect a bare sentence for it from the routes that they know.
    """
    return Refused(Problem(400, {"error": what}, is_plain=route.form is Form.PUBLIC))


class Call:
    """A request that has passed the door, as the function of its route sees it."""

    def __init__(self, request: Request, route: Route, service: Service, principal: Principal) -> None:
        self.request = request
        self.route = route
        self.service = service
        self.principal = principal
        self._document: dict[str, Any] | None = None

    @property
    def engine(self) -> Engine:
        """The engine behind the server."""
        return self.service.engine

    @property
    def namespace(self) -> str | None:
        """The only namespace the request may see: the token's, or the one it names itself.

        Raises:
            Unauthorized: it names another one than the token's.
        """
        bound, named = self.principal.namespace, self.request.headers.get(NAMESPACE)
        if bound is not None and named not in (None, bound):
            raise errors.Unauthorized(f"This token is for the namespace {bound!r} only.")
        return bound if named is None else named

    @property
    def place(self) -> Place:
        """What this request takes of the server. Requests to routes that are open to everybody have none."""
        place: Place = self.request.scope[PLACE]
        return place

    async def wait_for(self, work: Coroutine[Any, Any, R]) -> R:
        """What the work answers, which may wait for something to happen; unless the server ends before.

        Raises:
            Refused: the caller's party has too many that wait, or the server is shutting down.
        """
        try:
            self.place.wait()
        except Refused:
            work.close()
            raise
        return await self.service.until_closing(work)

    async def execute(self, command: Command[R]) -> R:
        """Carry out a command for whoever asks, within the bounds of their token."""
        return await self.engine.execute(
            command,
            request_id=self.request_id,
            namespace=self.namespace,
            actor=self.principal.name,
        )

    @property
    def request_id(self) -> str | None:
        """The id under which the request may be sent again.

        Raises:
            InvalidInput: it has other characters than visible ones of ASCII, or too many.
        """
        given = self.request.headers.get(REQUEST_ID)
        if given is not None and not _REQUEST_ID.fullmatch(given):
            raise errors.InvalidInput(field="Idempotency-Key", rule="up to 256 visible ASCII characters")
        return given

    def request_id_at(self, place: int) -> str | None:
        """The id of one of many commands in this request. It is short, whatever the request's is."""
        given = self.request_id
        return f"{hashlib.sha256(given.encode()).hexdigest()}/{place}" if given else None

    # What the request says

    def path(self, name: str) -> str:
        """A part of the path, decoded."""
        return str(self.request.path_params[name])

    def path_id(self, name: str, parse: Callable[[str], str] | None = None) -> str:
        """An id in the path, in its canonical form: a uuid, unless another parser is given.

        Raises:
            Refused: it is no such id.
        """
        try:
            return parse_uuid(self.path(name), name) if parse is None else parse(self.path(name))
        except errors.InvalidInput as error:
            label = name if name == "waitpoint_id" else f"invalid {name}"
            raise refused(400, f"{label}: {error.rule}") from error

    def query(self, name: str) -> str | None:
        """A query parameter; None when it is absent or empty."""
        return self.request.query_params.get(name) or None

    def query_number(self, name: str, default: int | None = None, most: int = U64_MAX) -> int:
        """A query parameter that has to be a whole number, and at most ``most``.

        Raises:
            Refused: it is missing, no number, or larger.
        """
        text = self.request.query_params.get(name)
        if text is None and default is not None:
            return default
        if text is None or whole(text, most) is None:
            raise unreadable(f"invalid query: {name} must be a whole number up to {most}", self.route)
        return int(text)

    def check_head(self) -> None:
        """Look at what every request may say: its id, and each parameter once.

        Where one is there twice, a proxy may have read the other one.

        Raises:
            InvalidInput: the id cannot be kept.
            Refused: a parameter is there twice.
        """
        _ = self.request_id
        parameters = self.request.query_params
        if len(parameters.multi_items()) > len(parameters):
            raise refused(400, "invalid query: each parameter at most once")

    async def body(self) -> bytes:
        """The body, which is never read beyond the route's limit.

        Raises:
            Refused: it is too long, too slow, or JSON that others may read differently.
        """
        data = await self._read_body()
        doubt = ambiguity_of(data) if self.content_type() == JSON else None
        if doubt is not None:
            raise refused(400, "invalid JSON: Bad Request", detail=doubt)
        return data

    async def _read_body(self) -> bytes:
        self.check_declared_length()
        limit = self.route.body_bytes_max
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.service.options.body_timeout_ms / 1_000):
                async for part in self.request.stream():
                    size += len(part)
                    if size > limit:
                        raise self._too_large()
                    parts.append(part)
        except TimeoutError:
            raise refused(408, "request body timed out") from None
        return b"".join(parts)

    def check_declared_length(self) -> None:
        """Look at how long the body says it is, before anything is read of it.

        Raises:
            Refused: it is too long.
        """
        declared = self.request.headers.get("content-length", "0")
        if not declared.isdigit() or len(declared) > _DIGITS_MAX or int(declared) > self.route.body_bytes_max:
            raise self._too_large()

    def _too_large(self) -> Refused:
        limit, path = self.route.body_bytes_max, self.route.template
        return refused(413, "payload_too_large", limit_bytes=limit, route=path)

    async def json(self) -> dict[str, Any]:
        """The body as a JSON object. It is read once, however often it is asked for.

        Raises:
            Refused: it is no JSON, or no object.
        """
        if self._document is None:
            self._document = await self._read_document()
        return self._document

    async def _read_document(self) -> dict[str, Any]:
        if self.content_type() != JSON:
            raise refused(415, "invalid JSON: Unsupported Media Type", detail=f"send Content-Type: {JSON}")
        try:
            found = msgspec.json.decode(await self.body())
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise refused(400, "invalid JSON: Bad Request", detail=str(error)) from error
        if not isinstance(found, dict):
            raise _unprocessable("the body must be an object")
        return found

    def content_type(self) -> str:
        """The form of the body, without its parameters."""
        return self.request.headers.get("content-type", "").partition(";")[0].strip().lower()

    async def command(self, kind: type[T], **fields: Any) -> T:
        """The command that the body describes; ``fields`` come from the path or from us.

        Raises:
            Refused: the body has another id than the path, or does not describe such a command.
        """
        return read_as(kind, _merged(await self.json(), fields))

    # What the answer says

    def answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        """A JSON answer in the public form of the contracts."""
        return Response(
            msgspec.json.encode(to_wire(value)), status_code=status, media_type=JSON, headers=headers
        )


_DIGITS_MAX: Final = 18
_INTEGER_DIGITS_MAX: Final = 308
"""What a floating-point number can hold, which is all that many readers of JSON have."""
_LONG_DIGITS: Final = re.compile(rb"[0-9]{%d}" % (_INTEGER_DIGITS_MAX + 1))


class _Ambiguous(ValueError):
    """JSON that others may read differently."""


def ambiguity_of(data: bytes) -> str | None:
    """Why others may read this JSON differently than we do; None if they cannot, or if it is no JSON.

    >>> ambiguity_of(b'{"role": "read", "role": "admin"}')
    "the name 'role' is there twice"
    """
    read_integer = _bounded_integer if _LONG_DIGITS.search(data) else None  # which is much slower
    try:
        json.loads(data.decode(), object_pairs_hook=_require_distinct, parse_int=read_integer)
    except _Ambiguous as doubt:
        return str(doubt)
    except (ValueError, RecursionError):  # whoever decodes it says what is wrong
        return None
    return None


def _require_distinct(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise _Ambiguous(f"the name {name[:64]!r} is there twice")
        seen.add(name)


def _bounded_integer(digits: str) -> None:
    if len(digits.lstrip("-")) > _INTEGER_DIGITS_MAX:
        raise _Ambiguous(f"a whole number has more than {_INTEGER_DIGITS_MAX} digits")


def whole(text: str, most: int) -> int | None:
    """The whole number that is written as digits; None if it is none, or larger than ``most``."""
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(most)) or int(text) > most:
        return None
    return int(text)


def read_as(kind: type[T], raw: dict[str, Any]) -> T:
    """The value of a contract's type that decoded JSON describes.

    Raises:
        Refused: it does not describe one; the field is named.
        InvalidPolicyJson, InvalidCapabilities: its policy cannot be honoured.
    """
    try:
        found: T = from_wire(raw, kind)
    except (errors.InvalidPolicyJson, errors.InvalidCapabilities):
        raise
    except errors.InvalidInput as error:
        raise _unprocessable(f"{error.field}: {error.rule}") from error
    return found


def _unprocessable(detail: str) -> Refused:
    return refused(422, "invalid JSON: Unprocessable Entity", detail=detail)


def _merged(body: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """The body with what the path says. What both say has to agree."""
    for name, value in fields.items():
        given = body.get(name, value)
        is_same = type(given) is type(value) and given == value  # 0 is no false
        if not is_same and not _same_id(given, value):
            raise refused(400, f"path {name} does not match body {name}")
    return {**body, **fields}


def _same_id(given: Any, value: Any) -> bool:
    """Whether two spellings mean one id: the case of hexadecimal digits does not count."""
    return isinstance(given, str) and isinstance(value, str) and given.lower() == value.lower()
