"""Answers of a server as the errors they stand for."""

from __future__ import annotations

from typing import Any, Final

import httpx

from flowfabric import errors

_BY_STATUS: Final[dict[int, type[errors.FlowFabricError]]] = {
    400: errors.InvalidInput,
    401: errors.Unauthorized,
    403: errors.Unauthorized,
    404: errors.Unavailable,
    408: errors.StoreTimeout,
    413: errors.PayloadTooLarge,
    415: errors.Unavailable,
    422: errors.InvalidInput,
    429: errors.ResourceExhausted,
    502: errors.StoreUnreachable,
    503: errors.StoreUnreachable,
    504: errors.StoreTimeout,
}
"""What answers without a code mean: they come from the door, or from something in between."""


RETRYABLE: Final = frozenset({429, 502, 503, 504})
"""Statuses after which the same request may succeed later, where the answer does not say."""


def may_succeed_later(status: int, body: Any) -> bool:
    """Whether the same request is worth sending again. What the server says of it wins.

    >>> may_succeed_later(503, {}), may_succeed_later(503, {"retryable": False})
    (True, False)
    """
    said = body.get("retryable") if isinstance(body, dict) else None
    return said if isinstance(said, bool) else status in RETRYABLE


def error_of(status: int, body: Any) -> errors.FlowFabricError:
    """The error that a problem stands for."""
    told = body if isinstance(body, dict) else {}
    code = str(told.get("code", ""))
    kind = errors.error_for_code(code) or _BY_STATUS.get(status, errors.StoreError)
    text = told.get("message") or told.get("error") or f"The server answered {status}."
    details = told.get("details")
    named = {str(k): str(v) for k, v in details.items()} if isinstance(details, dict) else {}
    return errors.rebuilt(kind, str(text), named)


def error_of_fault(fault: httpx.HTTPError) -> errors.StoreError:
    """The error for a request that got no answer. Only a refused connection surely did nothing."""
    if isinstance(fault, (httpx.ConnectError, httpx.ConnectTimeout)):
        return errors.StoreUnreachable("The server cannot be reached. Check its URL, then try again.")
    if isinstance(fault, httpx.TimeoutException):
        return errors.StoreTimeout("The server did not answer in time. Ask again with the same request id.")
    return errors.StoreUnreachable("The connection broke. Ask again with the same request id.")
