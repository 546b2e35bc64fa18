"""Following what happens: nothing is left out, nothing is held for whoever does not take it."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from flowfabric.contracts.executions import CompleteExecutionArgs, UpdateProgressArgs
from flowfabric.contracts.leases import ClaimedWork
from flowfabric.contracts.retention import TrimRetentionArgs
from flowfabric.contracts.streams import AppendFrameArgs
from flowfabric.engine.engine import Engine
from flowfabric.minting import new_execution_id
from flowfabric.server import ServerOptions, Service
from flowfabric.server.live import ABORT
from tests.server.conftest import CREATION, EXECUTION, ID
from tests.server.live import Follower, Told
from tests.server.test_executions import claim, complete, create
from tests.server.test_flows import FLOW, add_member, open_flow
from tests.server.test_serving import serving

LIFE = f"/v1/live/executions/{ID}"
ATTEMPT = f"{LIFE}/attempts/0"
FEED = "/v1/live/events"


def fence_of(work: ClaimedWork) -> dict[str, Any]:
    fence = work.fence
    return {"lease_id": fence.lease_id, "lease_epoch": fence.lease_epoch, "attempt_id": fence.attempt_id}


async def emit(engine: Engine, work: ClaimedWork, payload: bytes) -> None:
    await engine.execute(
        AppendFrameArgs(
            execution_id=work.execution_id,
            attempt_index=work.attempt_index,
            frame_type="token",
            payload=payload,
            **fence_of(work),
        )
    )


async def finish(engine: Engine, work: ClaimedWork) -> None:
    await engine.execute(
        CompleteExecutionArgs(
            execution_id=work.execution_id,
            fence=work.fence,
            attempt_index=work.attempt_index,
            source="lease_holder",
        )
    )


class TestAnExecution:
    async def test_its_life_is_told_from_its_beginning_to_its_end(
        self, client: httpx.AsyncClient, engine: Engine, service: Service
    ) -> None:
        await create(client)
        async with Follower(service, LIFE) as follower:
            assert (await follower.until("state")).content["public_state"] == "waiting"
            work = await claim(engine)
            assert (await follower.until("state")).content["public_state"] == "active"
            await emit(engine, work, b"Hel")
            frame = (await follower.until("frame")).content
            assert (frame["fields"]["payload"], frame["attempt_index"]) == ("Hel", 0)
            await engine.execute(
                UpdateProgressArgs(
                    execution_id=ID, progress_pct=40, progress_message="half", **fence_of(work)
                )
            )
            assert (await follower.until("progress")).content == {
                "progress_pct": 40,
                "progress_message": "half",
            }
            await finish(engine, work)
            rest = await follower.rest()
            assert rest[-1].name == "ended"
            assert rest[-1].content["public_state"] == "completed"
            assert "completion" in [told.name for told in rest]
            assert follower.headers["content-type"].startswith("text/event-stream")
            assert follower.headers["cache-control"] == "no-store"

    async def test_whoever_comes_back_gets_the_rest_once(
        self, client: httpx.AsyncClient, engine: Engine, service: Service
    ) -> None:
        await create(client)
        work = await claim(engine)
        await emit(engine, work, b"one")
        async with Follower(service, LIFE) as follower:
            place = (await follower.until("frame")).place
        await emit(engine, work, b"two")
        await finish(engine, work)
        async with Follower(service, LIFE, {"Last-Event-ID": place}) as follower:
            rest = await follower.rest()
        assert [told.content["fields"]["payload"] for told in rest if told.name == "frame"] == ["two"]
        assert [told.name for told in rest if told.name in ("completion", "ended")] == ["completion", "ended"]

    async def test_behind_the_end_there_is_nothing(
        self, client: httpx.AsyncClient, engine: Engine, service: Service
    ) -> None:
        await create(client)
        await complete(engine, None)
        async with Follower(service, LIFE) as follower:
            end = (await follower.rest())[-1].place
        again = await client.get(EXECUTION.replace("/v1/", "/v1/live/"), headers={"Last-Event-ID": end})
        assert (again.status_code, again.content) == (204, b"")

    async def test_the_frames_of_every_attempt_are_told(
        self, client: httpx.AsyncClient, engine: Engine, service: Service
    ) -> None:
        await create(client)
        for payload in (b"first", b"second"):
            work = await claim(engine)
            await emit(engine, work, payload)
            await client.post(f"{EXECUTION}/revoke-lease")
        await client.post(f"{EXECUTION}/cancel", json={"reason": "x", "now": 1})
        async with Follower(service, LIFE) as follower:
            frames = [told.content for told in await follower.rest() if told.name == "frame"]
        assert [(frame["attempt_index"], frame["fields"]["payload"]) for frame in frames] == [
            (0, "first"),
            (1, "second"),
        ]

    async def test_only_the_families_that_were_asked_for_are_told(
        self, client: httpx.AsyncClient, engine: Engine, service: Service
    ) -> None:
        await create(client)
        await complete(engine, None)
        async with Follower(service, f"{LIFE}?families=completion") as follower:
            assert [told.name for told in await follower.rest()] == ["completion", "state", "ended"]


class TestAnAttempt:
    async def test_its_frames_are_told_until_it_is_closed(
        self, client: httpx.AsyncClient, engine: Engine, service: Service
    ) -> None:
        await create(client)
        work = await claim(engine)
        async with Follower(service, ATTEMPT) as follower:
            await emit(engine, work, b"a")
            first = await follower.until("frame")
            await emit(engine, work, b"\xff")
            assert (await follower.until("frame")).content["fields"]["payload_base64"] == "/w=="
            await finish(engine, work)
            closed = await follower.until("closed")
            assert closed.content["closed_reason"] == "attempt_success"
            assert await follower.next() is None
        async with Follower(service, f"{ATTEMPT}?after={first.place}") as follower:
            assert [told.name for told in await follower.rest()] == ["frame", "closed"]

    async def test_one_that_never_began_is_over_with_its_execution(
        self, client: httpx.AsyncClient, service: Service
    ) -> None:
        await create(client)
        await client.post(f"{EXECUTION}/cancel", json={"reason": "x", "now": 1})
        async with Follower(service, ATTEMPT) as follower:
            assert [told.name for told in await follower.rest()] == ["closed"]


class TestTheLog:
    async def test_it_is_told_from_now_on(
        self, client: httpx.AsyncClient, engine: Engine, service: Service
    ) -> None:
        await create(client)
        async with Follower(service, f"{FEED}?families=completion,lease") as follower:
            await follower.next()
            work = await claim(engine)
            lease = await follower.until("lease")
            assert (lease.content["type"], lease.content["change"]) == ("Lease", "acquired")
            assert lease.content["cursor"] == lease.place
            await finish(engine, work)
            assert (await follower.until("completion")).content["execution_id"] == ID

    async def test_a_place_is_gone_back_to(
        self, client: httpx.AsyncClient, engine: Engine, service: Service
    ) -> None:
        await create(client)
        await complete(engine, None)
        async with Follower(service, f"{FEED}?families=completion&after=start") as follower:
            first = await follower.until("completion")
        await client.post(f"{EXECUTION}/replay")
        await complete(engine, None)
        async with Follower(
            service, f"{FEED}?families=completion", {"Last-Event-ID": first.place}
        ) as follower:
            assert (await follower.until("completion")).content["generation"] == 1

    async def test_only_a_tag_or_an_execution_is_told(
        self, client: httpx.AsyncClient, engine: Engine, service: Service
    ) -> None:
        other = new_execution_id(flow_id=FLOW)
        await create(client, execution_id=other, tags={"team.name": "audio"}, priority=9)
        await create(client)
        for _ in range(2):
            await complete(engine, None)
        for query in ("tag=team.name=media", f"execution_id={ID}"):
            async with Follower(service, f"{FEED}?families=completion&after=start&{query}") as follower:
                assert (await follower.until("completion")).content["execution_id"] == ID

    async def test_a_quiet_client_is_kept_alive_and_moved_on(
        self, client: httpx.AsyncClient, engine: Engine
    ) -> None:
        service = Service(engine, ServerOptions(heartbeat_ms=1))
        async with Follower(service, f"{FEED}?families=budget") as follower:
            assert await follower.next() == Told()
            before = await follower.next()
            assert before is not None
            assert (before.name, bool(before.place)) == ("", True)
            await create(client)
            while (told := await follower.next()) is not None and told.place == before.place:
                assert not told.name
            assert told is not None
            assert not told.name

    @pytest.mark.parametrize(
        "query",
        ["families=nothing", "after=nonsense", "execution_id=x", "flow_id=x", "tag=x", "families="],
    )
    async def test_a_question_that_is_wrong_is_refused_before_it_begins(
        self, client: httpx.AsyncClient, query: str
    ) -> None:
        if query == "families=":
            query = "families=,"
        answer = await client.get(f"{FEED}?{query}")
        assert answer.status_code == 400
        assert answer.headers["content-type"] == "application/json"

    async def test_a_place_that_was_trimmed_is_refused(
        self, client: httpx.AsyncClient, engine: Engine
    ) -> None:
        await create(client)
        await complete(engine, None)
        page = await client.get("/v1/live/executions/" + EXECUTION.rpartition("/")[2])
        oldest = page.text.partition("id: ")[2].partition(".")[0]
        await engine.execute(TrimRetentionArgs(retention_ms=0))
        answer = await client.get(f"{FEED}?after={oldest}")
        assert answer.status_code == 404
        assert answer.json()["code"] == "events_trimmed"


class TestAFlow:
    async def test_it_is_told_with_its_members_until_it_has_ended(
        self, client: httpx.AsyncClient, engine: Engine, service: Service
    ) -> None:
        await open_flow(client)
        member, _ = await add_member(client)
        await create(client)
        async with Follower(service, f"/v1/live/flows/{FLOW}") as follower:
            state = (await follower.until("state")).content
            assert (state["public_flow_state"], state["node_count"]) == ("open", 1)
            body = {"flow_id": FLOW, "reason": "x", "cancellation_policy": "cancel_all", "now": 1}
            await client.post(f"/v1/flows/{FLOW}/cancel?wait=true", json=body)
            rest = await follower.rest()
            assert rest[-1].name == "ended"
            assert rest[-1].content["public_flow_state"] == "cancelled"
            told = {one.content.get("execution_id") for one in rest if one.name == "completion"}
            assert told == {member}

    async def test_one_that_is_not_there_is_not_found(self, client: httpx.AsyncClient) -> None:
        assert (await client.get(f"/v1/live/flows/{FLOW}")).status_code == 404


class TestTheConnection:
    async def test_a_client_that_takes_nothing_is_cut_off(
        self, client: httpx.AsyncClient, engine: Engine
    ) -> None:
        service = Service(engine, ServerOptions(heartbeat_ms=1, send_timeout_ms=50))
        cut = asyncio.Event()
        follower = Follower(service, FEED)
        follower.scope[ABORT] = cut.set
        async with follower:
            await follower.next()
            follower.taking.clear()
            async with asyncio.timeout(10):
                await cut.wait()
                await follower.ended.wait()
        assert service.live == 0

    async def test_a_client_that_leaves_gives_its_place_up(
        self, client: httpx.AsyncClient, engine: Engine
    ) -> None:
        service = Service(engine, ServerOptions(live_max=1))
        async with Follower(service, FEED) as follower:
            await follower.next()
            async with Follower(service, FEED) as second:
                await second.ended.wait()
                assert second.status == 429
        async with Follower(service, FEED) as third:
            await third.next()
            assert third.status == 200

    async def test_it_ends_when_the_server_does(self, client: httpx.AsyncClient, service: Service) -> None:
        async with Follower(service, FEED) as follower:
            await follower.next()
            service.close()
            assert await follower.rest() == []

    async def test_only_the_head_is_only_the_head(self, client: httpx.AsyncClient) -> None:
        async with asyncio.timeout(10):
            assert (await client.head(FEED)).status_code == 200

    async def test_over_a_socket_it_is_told_at_once(self) -> None:
        async with (
            serving() as (server, port),
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
            client.stream("GET", f"{FEED}?families=completion") as answer,
        ):
            lines = answer.aiter_lines()
            assert await anext(lines) == "retry: 1000"
            await client.post("/v1/executions", json=CREATION)
            await client.post(f"{EXECUTION}/cancel", json={"reason": "x", "now": 1})
            async with asyncio.timeout(10):
                while await anext(lines) != "event: completion":
                    pass
            server.stop()
            async with asyncio.timeout(10):
                assert [line async for line in lines if line.startswith("event:")] == []
