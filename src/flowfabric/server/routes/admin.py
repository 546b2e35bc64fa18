"""Health, and the keys that sign waitpoint tokens."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import TYPE_CHECKING, Final

import msgspec
from starlette.responses import Response

from flowfabric import errors
from flowfabric.audit import AuditReport, audit
from flowfabric.contracts.keyring import RotateWaitpointHmacSecretAllArgs
from flowfabric.contracts.reads import ServerTimeArgs
from flowfabric.contracts.schema import Form
from flowfabric.server.access import Role
from flowfabric.server.calls import JSON, refused
from flowfabric.server.routes.table import route
from flowfabric.version import installed_version

if TYPE_CHECKING:
    from flowfabric.server.calls import Call

ROTATION_S: Final = 120


@route("GET", "/healthz", statuses={200: dict[str, str]})
async def read_health(call: Call) -> Response:
    """Say whether the server reaches its store."""
    await call.engine.execute(ServerTimeArgs())
    return call.answer({"status": "ok"})


@route("GET", "/readyz", statuses={200: dict[str, str]})
async def read_readiness(call: Call) -> Response:
    """Say whether requests should come here: not while it ends, or while it cannot do all it should."""
    if call.service.closing:
        raise refused(503, "shutting down", kind="unavailable", retryable=False)
    try:
        await call.engine.execute(ServerTimeArgs())
    except errors.StoreError as error:
        raise refused(503, "the store does not answer", kind="unavailable", retryable=True) from error
    if missing := call.service.missing():
        raise refused(503, missing, kind="unavailable", retryable=True)
    return call.answer({"status": "ready"})


@route("GET", "/openapi.json", statuses={200: dict[str, object]})
async def read_openapi(call: Call) -> Response:
    """Describe every route."""
    return Response(_document(), media_type=JSON)


@cache
def _document() -> bytes:
    """The document as it is sent. It is large, and open to everybody, so it is written once."""
    from flowfabric.server.openapi import openapi_document  # noqa: PLC0415 - it needs the finished table

    return msgspec.json.encode(openapi_document())


@route("GET", "/v1/server", *Role, statuses={200: dict[str, object]})
async def read_server(call: Call) -> Response:
    """Say what this server is, what its store keeps, and who is asking."""
    durability = call.engine.durability
    assert durability is not None
    return call.answer(
        {
            "version": installed_version(),
            "store": durability.store,
            "durability": durability.level,
            "name": call.principal.name,
            "namespace": call.namespace,
            "roles": sorted(call.principal.roles),
        }
    )


@route("POST", "/v1/admin/audit", Role.ADMIN, statuses={200: AuditReport}, form=Form.PLAIN)
async def audit_store(call: Call) -> Response:
    """Check the invariants of everything that is stored in the caller's namespace, or in all."""
    with call.service.audit_permit():
        report = await call.wait_for(audit(call.engine, namespace=call.namespace))
    return Response(msgspec.json.encode(report), media_type=JSON)


@route(
    "POST",
    "/v1/admin/rotate-waitpoint-secret",
    Role.ADMIN,
    body=RotateWaitpointHmacSecretAllArgs,
    statuses={200: dict[str, object]},
)
async def rotate_waitpoint_secret(call: Call) -> Response:
    """Install a new key that signs waitpoint tokens; the old one verifies for a while."""
    grace_ms = (await call.json()).get("grace_ms", call.service.options.hmac_grace_ms)
    command = await call.command(RotateWaitpointHmacSecretAllArgs, grace_ms=grace_ms)
    if not command.new_kid or ":" in command.new_kid:
        raise refused(400, "new_kid must be non-empty and must not contain ':'")
    async with call.service.rotation_permit():
        try:
            async with asyncio.timeout(ROTATION_S):
                result = await call.execute(command)
        except TimeoutError:
            raise refused(504, "rotation timed out; it is safe to send the request again") from None
    failed = [entry.partition for entry in result.entries if entry.error_code is not None]
    done = len(result.entries) - len(failed)
    if not done:
        raise errors.RotationConflict(kid=command.new_kid)
    return call.answer({"rotated": done, "failed": failed, "new_kid": command.new_kid})
