"""Waitpoints, signals and streams over HTTP."""

import asyncio
import re
import time

import httpx
import pytest

from flowfabric.contracts.conditions import Single
from flowfabric.contracts.leases import ClaimedWork
from flowfabric.contracts.streams import AppendFrameArgs
from flowfabric.contracts.suspensions import SuspendExecutionArgs
from flowfabric.engine.engine import Engine
from flowfabric.minting import fresh_waitpoint, new_signal_id, new_suspension_id
from flowfabric.server import ServerOptions, Service
from tests.server.conftest import EXECUTION, ID
from tests.server.test_executions import claim, complete, create

STREAM = f"{EXECUTION}/attempts/0/stream"


async def suspend(client: httpx.AsyncClient, engine: Engine) -> str:
    """Create an execution that waits. Returns its waitpoint's id."""
    await create(client)
    work = await claim(engine)
    waitpoint = fresh_waitpoint()
    await engine.execute(
        SuspendExecutionArgs(
            execution_id=ID,
            fence=work.fence,
            attempt_index=work.attempt_index,
            suspension_id=new_suspension_id(),
            waitpoints=(waitpoint,),
            resume_condition=Single(waitpoint_key=waitpoint.waitpoint_key),
        )
    )
    return waitpoint.waitpoint_id


async def token_of(client: httpx.AsyncClient, waitpoint_id: str) -> str:
    token: str = (await client.get(f"{EXECUTION}/waitpoints/{waitpoint_id}/token")).json()["token"]
    return token


async def signal(
    client: httpx.AsyncClient, waitpoint_id: str, token: str, **fields: object
) -> httpx.Response:
    body = {
        "execution_id": ID,
        "waitpoint_id": waitpoint_id,
        "signal_id": new_signal_id(),
        "signal_name": "approve",
        "signal_category": "human",
        "source_type": "cli",
        "source_identity": "ana",
        "target_scope": "waitpoint",
        "waitpoint_token": token,
        "payload": [34, 111, 107, 34],
        "now": 1,
    }
    return await client.post(f"{EXECUTION}/signal", json={**body, **fields})


@pytest.mark.scenario("HTTP-005")
async def test_pending_waitpoints_show_a_fingerprint_and_no_token(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    unknown = await client.get(f"{EXECUTION}/pending-waitpoints")
    assert unknown.status_code == 404
    assert unknown.json()["error"] == "not found: execution"
    waitpoint_id = await suspend(client, engine)
    answer = await client.get(f"{EXECUTION}/pending-waitpoints")
    [row] = answer.json()
    assert row["waitpoint_id"] == waitpoint_id
    assert row["token_kid"] == "k1"
    assert re.fullmatch("[0-9a-f]{16}", row["token_fingerprint"])
    assert await token_of(client, waitpoint_id) not in answer.text
    assert isinstance(row["created_at"], int)
    assert not {"deprecation", "sunset"} & set(answer.headers)


async def test_what_waits_for_nothing_has_no_waitpoints(client: httpx.AsyncClient) -> None:
    await create(client)
    assert (await client.get(f"{EXECUTION}/pending-waitpoints")).json() == []


@pytest.mark.scenario("HTTP-006")
async def test_the_token_is_never_stored_by_anything_between(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    waitpoint_id = await suspend(client, engine)
    found = await client.get(f"{EXECUTION}/waitpoints/{waitpoint_id}/token")
    unknown = await client.get(f"{EXECUTION}/waitpoints/{new_signal_id()}/token")
    assert (found.status_code, unknown.status_code) == (200, 404)
    assert found.headers["cache-control"] == unknown.headers["cache-control"] == "no-store"
    assert unknown.json() == {"error": "waitpoint token not found (consumed, expired, or unknown id)"}
    malformed = await client.get(f"{EXECUTION}/waitpoints/nonsense/token")
    assert malformed.status_code == 400


@pytest.mark.scenario("HTTP-006")
async def test_a_signal_with_a_tampered_token_changes_nothing(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    waitpoint_id = await suspend(client, engine)
    token = await token_of(client, waitpoint_id)
    forged = token[:-1] + f"{int(token[-1], 16) ^ 1:x}"
    answer = await signal(client, waitpoint_id, forged)
    assert answer.status_code == 400
    assert answer.json()["error"] == "invalid_token"
    assert (await client.get(f"{EXECUTION}/state")).json() == "suspended"
    assert token not in answer.text


async def test_an_unknown_waitpoint_cannot_be_told_from_a_wrong_token(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    waitpoint_id = await suspend(client, engine)
    wrong = f"k1:{'0' * 64}"
    known = await signal(client, waitpoint_id, wrong)
    unknown = await signal(client, new_signal_id(), wrong)
    assert (known.status_code, known.content) == (unknown.status_code, unknown.content)


async def test_a_signal_resumes_and_its_repetition_is_a_duplicate(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    waitpoint_id = await suspend(client, engine)
    token = await token_of(client, waitpoint_id)
    first = await signal(client, waitpoint_id, token, idempotency_key="ana-1")
    assert first.json()["Accepted"]["effect"] == "resume_condition_satisfied"
    assert (await client.get(f"{EXECUTION}/state")).json() == "waiting"


async def test_an_ended_execution_takes_no_signal(client: httpx.AsyncClient, engine: Engine) -> None:
    waitpoint_id = await suspend(client, engine)
    token = await token_of(client, waitpoint_id)
    await client.post(f"{EXECUTION}/cancel", json={"reason": "x", "now": 1})
    assert (await signal(client, waitpoint_id, token)).status_code == 409


async def test_rotating_keeps_the_tokens_that_are_out(client: httpx.AsyncClient, engine: Engine) -> None:
    waitpoint_id = await suspend(client, engine)
    token = await token_of(client, waitpoint_id)
    secret = {"new_kid": "k2", "new_secret_hex": "b7" * 32}
    rotated = await client.post("/v1/admin/rotate-waitpoint-secret", json=secret)
    assert rotated.json() == {"rotated": 1, "failed": [], "new_kid": "k2"}
    again = await client.post("/v1/admin/rotate-waitpoint-secret", json=secret)
    assert again.status_code == 200
    assert (await signal(client, waitpoint_id, token)).status_code == 200


@pytest.mark.parametrize("kid", ["", "a:b"])
async def test_a_kid_has_a_plain_name(client: httpx.AsyncClient, kid: str) -> None:
    body = {"new_kid": kid, "new_secret_hex": "b7" * 32}
    answer = await client.post("/v1/admin/rotate-waitpoint-secret", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"] == "new_kid must be non-empty and must not contain ':'"


async def test_a_secret_never_comes_back_in_an_error(client: httpx.AsyncClient) -> None:
    body = {"new_kid": "k2", "new_secret_hex": "deadbeef-not-hex"}
    answer = await client.post("/v1/admin/rotate-waitpoint-secret", json=body)
    assert answer.status_code == 400
    assert "deadbeef" not in answer.text


# Streams


async def append(engine: Engine, work: ClaimedWork, payload: bytes) -> None:
    await engine.execute(
        AppendFrameArgs(
            execution_id=work.execution_id,
            attempt_index=work.attempt_index,
            lease_id=work.lease_id,
            lease_epoch=work.lease_epoch,
            attempt_id=work.attempt_id,
            frame_type="token",
            payload=payload,
        )
    )


async def test_frames_are_read_with_their_count(client: httpx.AsyncClient, engine: Engine) -> None:
    await create(client)
    assert (await client.get(STREAM)).json() == {"frames": [], "count": 0}
    await append(engine, await claim(engine), b"Hel")
    page = (await client.get(STREAM)).json()
    assert page["count"] == 1
    assert page["frames"][0]["fields"]["payload"] == "Hel"
    assert list(page["frames"][0]["fields"]) == sorted(page["frames"][0]["fields"])
    assert "closed_at" not in page


async def test_a_closed_stream_says_why(client: httpx.AsyncClient, engine: Engine) -> None:
    await create(client)
    await complete(engine, None)
    page = (await client.get(f"{STREAM}/tail?block_ms=20000")).json()
    assert page["closed_reason"] == "attempt_success"
    assert isinstance(page["closed_at"], int)


async def test_a_tail_waits_for_the_next_frame(client: httpx.AsyncClient, engine: Engine) -> None:
    await create(client)
    work = await claim(engine)
    tail = asyncio.create_task(client.get(f"{STREAM}/tail?block_ms=20000"))
    await asyncio.sleep(0)
    await append(engine, work, b"Hel")
    assert (await tail).json()["count"] == 1


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "from=-",
        "from=1-2-3",
        "to=%2B",
    ],
)
async def test_a_read_with_a_bad_query_is_refused(client: httpx.AsyncClient, query: str) -> None:
    assert (await client.get(f"{STREAM}?{query}")).status_code == 400


@pytest.mark.parametrize("query", ["after=start", "after=end", "block_ms=30001", "block_ms=-1", "limit=0"])
async def test_a_tail_with_a_bad_query_is_refused(client: httpx.AsyncClient, query: str) -> None:
    assert (await client.get(f"{STREAM}/tail?{query}")).status_code == 400


async def test_an_attempt_is_a_number(client: httpx.AsyncClient) -> None:
    assert (await client.get(f"{EXECUTION}/attempts/x/stream")).status_code == 400


class TestPermits:
    """Stream operations share a few places, and fail at once when all are taken."""

    @pytest.fixture
    def options(self) -> ServerOptions:
        return ServerOptions(streams_max=2)

    @pytest.mark.scenario("STREAM-030")
    async def test_more_tails_than_places_are_refused(
        self, client: httpx.AsyncClient, service: Service, engine: Engine
    ) -> None:
        await create(client)
        work = await claim(engine)
        tails = [asyncio.create_task(client.get(f"{STREAM}/tail?block_ms=20000")) for _ in range(5)]
        refused, waiting = await asyncio.wait(tails, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        while len(refused) < 3:
            more, waiting = await asyncio.wait(waiting, timeout=5, return_when=asyncio.FIRST_COMPLETED)
            refused |= more
        answers = [await tail for tail in refused]
        assert {answer.status_code for answer in answers} == {429}
        assert answers[0].json()["kind"] == "resource_exhausted"
        assert answers[0].json()["retryable"] is True
        assert answers[0].headers["retry-after"]
        await append(engine, work, b"x")
        assert [(await tail).status_code for tail in waiting] == [200, 200]

    async def test_a_tail_ends_when_the_server_does(
        self, client: httpx.AsyncClient, service: Service
    ) -> None:
        await create(client)
        tail = asyncio.create_task(client.get(f"{STREAM}/tail?block_ms=20000"))
        while not service.waiting:
            await asyncio.sleep(0)
        service.close()
        assert (await tail).status_code == 503
        assert (await client.get(STREAM)).status_code == 503


@pytest.mark.scenario("BOOT-006")
async def test_all_tails_end_together_when_the_server_does(
    client: httpx.AsyncClient, service: Service
) -> None:
    await create(client)
    tails = [asyncio.create_task(client.get(f"{STREAM}/tail?block_ms=20000")) for _ in range(16)]
    while service.waiting < len(tails):
        await asyncio.sleep(0)
    service.close()
    async with asyncio.timeout(15):
        answers = await asyncio.gather(*tails)
    assert {answer.status_code for answer in answers} == {503}
    late = await client.get(f"{STREAM}/tail?block_ms=20000")
    assert (late.status_code, late.json()["kind"]) == (503, "unavailable")


@pytest.mark.realtime
@pytest.mark.scenario("STREAM-010")
async def test_a_tail_of_an_idle_stream_waits_as_long_as_it_was_told(client: httpx.AsyncClient) -> None:
    await create(client)
    begun = time.monotonic()
    answer = await client.get(f"{STREAM}/tail?block_ms=1500")
    assert answer.json() == {"frames": [], "count": 0}
    assert time.monotonic() - begun >= 1.45
