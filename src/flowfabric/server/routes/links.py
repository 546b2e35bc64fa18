"""The page that a waitpoint's link opens, and the two requests that it makes.

Whoever holds the token of a waitpoint may answer it, so these routes ask for no other. The token
comes in bodies only; opening the page says nothing to anybody and answers nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.responses import Response

from flowfabric import errors
from flowfabric.codec import encode_value
from flowfabric.contracts.ids import parse_execution_id, parse_uuid
from flowfabric.contracts.keyring import WaitpointToken
from flowfabric.contracts.packed import JSON, unpack
from flowfabric.contracts.schema import Form
from flowfabric.contracts.signals import DeliverSignalArgs, DeliverSignalResult, SignalDuplicate
from flowfabric.contracts.suspensions import (
    ListPendingWaitpointsArgs,
    PendingWaitpointInfo,
    ReadWaitpointTokenArgs,
)
from flowfabric.minting import new_signal_id
from flowfabric.server.calls import NO_STORE, refused
from flowfabric.server.routes.table import PageText, route

if TYPE_CHECKING:
    from flowfabric.server.calls import Call

PAGE_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
KINDS: Final = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
FILES: Final = {
    ending: (files("flowfabric.server") / "pages" / f"answer.{ending}").read_bytes() for ending in KINDS
}
SOURCE: Final = "link"
CATEGORY: Final = "human"
BY_LINK_CHARS: Final = 32


class HeldLink(msgspec.Struct):
    """What the holder of a link presents."""

    execution_id: str
    waitpoint_id: str
    token: str


class LinkAnswer(HeldLink, kw_only=True):
    """An answer: the signal's name, what is chosen, and who says so."""

    name: str
    payload: Any = None
    who: str


class Question(msgspec.Struct):
    """What a waitpoint waits for."""

    waitpoint_key: str
    required_signal_names: list[str]
    expires_at: int | None


class Received(msgspec.Struct):
    """What became of an answer."""

    duplicate: bool
    effect: str | None


@route("GET", "/w/", statuses={200: PageText})
async def read_answer_page(call: Call) -> Response:
    """Show the page that answers a waitpoint; it is the same for all of them."""
    return _file("html")


@route("GET", "/w/answer.js", statuses={200: PageText})
async def read_answer_script(call: Call) -> Response:
    """Fetch the script of that page."""
    return _file("js")


@route("GET", "/w/answer.css", statuses={200: PageText})
async def read_answer_style(call: Call) -> Response:
    """Fetch the style of that page."""
    return _file("css")


@route("POST", "/w/question", body=HeldLink, statuses={200: Question}, form=Form.PLAIN)
async def read_question(call: Call) -> Response:
    """Say what an open waitpoint waits for, to whoever holds its token."""
    held: HeldLink = await _held(call, HeldLink)
    entry = await _open_waitpoint(call, held)
    names = list(entry.required_signal_names)
    question = Question(entry.waitpoint_key, names, entry.expires_at)
    return Response(msgspec.json.encode(question), media_type=JSON, headers=NO_STORE)


@route("POST", "/w/answer", body=LinkAnswer, statuses={200: Received}, form=Form.PLAIN)
async def answer_waitpoint(call: Call) -> Response:
    """Answer a waitpoint with its token, once; who answers is recorded with the signal."""
    given: LinkAnswer = await _held(call, LinkAnswer)
    payload, encoding = encode_value(given.payload)
    outcome = await _delivered(
        call,
        DeliverSignalArgs(
            execution_id=given.execution_id,
            waitpoint_id=given.waitpoint_id,
            signal_id=new_signal_id(),
            signal_name=given.name,
            signal_category=CATEGORY,
            source_type=SOURCE,
            source_identity=given.who,
            payload=payload,
            payload_encoding=encoding,
            idempotency_key=f"{SOURCE}:{hashlib.sha256(given.token.encode()).hexdigest()[:BY_LINK_CHARS]}",
            waitpoint_token=WaitpointToken(given.token),
        ),
    )
    if isinstance(outcome, SignalDuplicate):
        received = Received(duplicate=True, effect=None)
    else:
        received = Received(duplicate=False, effect=outcome.effect)
    return Response(msgspec.json.encode(received), media_type=JSON, headers=NO_STORE)


async def _delivered(call: Call, signal: DeliverSignalArgs) -> DeliverSignalResult:
    """What became of the signal. Without a good token nobody learns what there is.

    Raises:
        Refused: there is no such waitpoint, or the token is not its own.
    """
    try:
        return await call.execute(signal)
    except (errors.NotFound, errors.MissingToken, errors.InvalidToken, errors.TokenExpired) as error:
        raise _not_valid() from error


def _file(ending: str) -> Response:
    return Response(FILES[ending], media_type=KINDS[ending], headers=PAGE_HEADERS)


async def _held(call: Call, kind: type[Any]) -> Any:
    """What the body presents. Only JSON is taken, which no form of another site can send.

    Raises:
        Refused: it is no JSON, or names nothing that could be a waitpoint.
    """
    if call.content_type() != JSON:
        raise refused(415, f"send Content-Type: {JSON}")
    held = unpack(await call.body(), kind, JSON)
    try:
        held.execution_id = parse_execution_id(held.execution_id)
        held.waitpoint_id = parse_uuid(held.waitpoint_id, "waitpoint_id")
    except errors.InvalidInput as error:
        raise _not_valid() from error
    if getattr(held, "who", "?").strip() == "":
        raise errors.InvalidInput(field="who", rule="the name of whoever answers")
    return held


async def _open_waitpoint(call: Call, held: HeldLink) -> PendingWaitpointInfo:
    """The waitpoint, if the token is its own. All else looks the same from outside.

    Raises:
        Refused: there is no such waitpoint, it is closed, or the token is wrong.
    """
    where = {"execution_id": held.execution_id, "waitpoint_id": held.waitpoint_id}
    try:
        token = await call.execute(ReadWaitpointTokenArgs(**where))
        page = await call.execute(ListPendingWaitpointsArgs(execution_id=held.execution_id))
    except (errors.NotFound, errors.StateRefusal, errors.InvalidInput) as error:
        raise _not_valid() from error
    presented = held.token.encode()
    if token is None or not hmac.compare_digest(token.value.encode(), presented):
        raise _not_valid()
    found = [entry for entry in page.entries if entry.waitpoint_id == held.waitpoint_id]
    if not found:
        raise _not_valid()
    return found[0]


def _not_valid() -> Exception:
    return refused(404, "this link is not valid any more")
