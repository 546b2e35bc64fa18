"""Links that let somebody outside answer a waitpoint.

A link is an address of the server with everything else behind the ``#``: the part that browsers
keep to themselves. So the token is in no request line, no log, and no ``Referer``. Opening the link
answers nothing; the page sends the answer in a body, and the waitpoint takes it once.

The token is the signature: it is valid for one waitpoint, for as long as that is open and the key
it was signed with is. The question and the choices are only shown; a holder may answer what they
like, so a handler checks what it gets.
"""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Any, Final

import msgspec

from flowfabric.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

PUBLIC_URL: Final = "FF_PUBLIC_URL"
PAGE: Final = "/w/"
LINK_CHARS_MAX: Final = 8_000
"""What mail programs and messengers still pass on."""


class _Fragment(msgspec.Struct, omit_defaults=True):
    """What is behind the ``#``, with short names."""

    execution_id: str = msgspec.field(name="e")
    waitpoint_id: str = msgspec.field(name="w")
    token: str = msgspec.field(name="t")
    name: str = msgspec.field(default="", name="n")
    question: str = msgspec.field(default="", name="q")
    choices: dict[str, Any] = msgspec.field(default_factory=dict, name="c")


def make_link(
    execution_id: str,
    waitpoint_id: str,
    token: str,
    *,
    name: str,
    question: str = "",
    choices: Mapping[str, Any] | None = None,
    public_url: str | None = None,
) -> str:
    """The link that answers a waitpoint. Treat it like the token that is in it: as a secret.

    Args:
        execution_id: what waits.
        waitpoint_id: where the answer arrives.
        token: the waitpoint's.
        name: the name of the signal that is the answer.
        question: what is asked, as the page shows it.
        choices: what can be chosen, with the payload that each choice sends; without any, the page
            asks for a text.
        public_url: where outsiders reach the server; ``FF_PUBLIC_URL`` when absent.

    Raises:
        InvalidInput: nobody has said where the server is, or the link would be too long.
        TypeError: a payload has no JSON form.
    """
    base = public_url or os.environ.get("FF_PUBLIC_URL") or ""
    if not base.startswith(("http://", "https://")):
        raise InvalidInput(
            field="public_url",
            value=repr(base),
            rule=f"the address of the server for outsiders, here or in {PUBLIC_URL}",
        )
    told = _Fragment(
        execution_id=execution_id,
        waitpoint_id=waitpoint_id,
        token=token,
        name=name,
        question=question,
        choices=dict(choices or {}),
    )
    fragment = base64.urlsafe_b64encode(msgspec.json.encode(told)).rstrip(b"=").decode()
    link = f"{base.rstrip('/')}{PAGE}#{fragment}"
    if len(link) > LINK_CHARS_MAX:
        raise InvalidInput(field="choices", rule=f"a link of at most {LINK_CHARS_MAX} characters")
    return link
