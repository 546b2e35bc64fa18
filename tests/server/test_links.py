"""Links that answer waitpoints: by POST only, once, with no secret in any address."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from flowfabric import FlowFabric, Task
from flowfabric.contracts.events import FROM_START, Family, SignalEvent, TailEventsArgs
from flowfabric.contracts.keyring import RotateWaitpointHmacSecretArgs
from flowfabric.engine.engine import Engine
from flowfabric.errors import InvalidInput
from flowfabric.links import make_link
from flowfabric.minting import new_uuid4
from flowfabric.server import Role, ServerOptions, Service, entry_for, make_app
from flowfabric.server.routes.links import FILES
from flowfabric.stores.memory import MemoryStore
from tests.server.conftest import EXECUTION, ID
from tests.server.test_waiting import suspend, token_of

PUBLIC = "https://flows.example"


@pytest.fixture
def options() -> ServerOptions:
    return ServerOptions(tokens=(entry_for("secret", "admin", (Role.ADMIN,), None),))


@pytest.fixture
async def outsider(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=make_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as opened:
        yield opened


@pytest.fixture
async def held(client: httpx.AsyncClient, engine: Engine) -> dict[str, str]:
    client.headers["Authorization"] = "Bearer secret"
    waitpoint_id = await suspend(client, engine)
    return {"execution_id": ID, "waitpoint_id": waitpoint_id, "token": await token_of(client, waitpoint_id)}


def opened(link: str) -> dict[str, Any]:
    """What the page reads from a link."""
    fragment = link.partition("#")[2]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(fragment + "=" * (-len(fragment) % 4)))
    return found


async def signals(engine: Engine) -> list[SignalEvent]:
    asked = TailEventsArgs(families=frozenset({Family.SIGNAL}), after=FROM_START)
    return [event for event in (await engine.execute(asked)).events if isinstance(event, SignalEvent)]


class TestTheLink:
    def test_everything_but_the_page_is_behind_the_fragment(self) -> None:
        link = make_link(
            ID, "w", "k1:secret", name="review", question="Ship it?", choices={"Yes": True}, public_url=PUBLIC
        )
        address, _, _ = link.partition("#")
        assert address == "https://flows.example/w/"
        assert opened(link) == {
            "e": ID,
            "w": "w",
            "t": "k1:secret",
            "n": "review",
            "q": "Ship it?",
            "c": {"Yes": True},
        }

    def test_the_environment_says_where_the_server_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("FF_PUBLIC_URL", raising=False)
        with pytest.raises(InvalidInput, match="FF_PUBLIC_URL"):
            make_link(ID, "w", "t", name="n")
        monkeypatch.setenv("FF_PUBLIC_URL", f"{PUBLIC}/")
        assert make_link(ID, "w", "t", name="n").startswith(f"{PUBLIC}/w/#")

    def test_one_that_would_be_cut_off_is_refused(self) -> None:
        with pytest.raises(InvalidInput, match="8000"):
            make_link(ID, "w", "t", name="n", question="x" * 9_000, public_url=PUBLIC)


class TestThePage:
    async def test_it_says_nothing_and_answers_nothing(
        self, outsider: httpx.AsyncClient, engine: Engine, held: dict[str, str]
    ) -> None:
        page = await outsider.get("/w/")
        assert page.status_code == 200
        assert not await signals(engine)
        for path in ("/w/answer", "/w/question"):
            assert (await outsider.get(path)).status_code in (401, 405)

    @pytest.mark.parametrize("path", ["/w/", "/w/answer.js", "/w/answer.css"])
    async def test_it_runs_nothing_but_its_own(self, outsider: httpx.AsyncClient, path: str) -> None:
        headers = (await outsider.get(path)).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-content-type-options"] == "nosniff"

    def test_nothing_is_inline_and_no_text_becomes_markup(self) -> None:
        html, script = FILES["html"].decode(), FILES["js"].decode()
        assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|style=", html) == []
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script)
        assert "http://" not in html + script
        assert "https://" not in html + script


class TestAnswering:
    async def test_the_answer_resumes_and_says_who_it_was(
        self, outsider: httpx.AsyncClient, client: httpx.AsyncClient, engine: Engine, held: dict[str, str]
    ) -> None:
        asked = await outsider.post("/w/question", json=held)
        assert asked.json()["required_signal_names"] == []
        assert asked.headers["cache-control"] == "no-store"
        answer = {**held, "name": "review", "payload": {"approved": True}, "who": "Ana"}
        received = await outsider.post("/w/answer", json=answer)
        assert received.json() == {"duplicate": False, "effect": "resume_condition_satisfied"}
        assert (await client.get(f"{EXECUTION}/state")).json() == "waiting"
        [signal] = await signals(engine)
        assert (signal.signal_name, signal.source_identity) == ("review", "Ana")

    async def test_it_is_taken_once(
        self, outsider: httpx.AsyncClient, engine: Engine, held: dict[str, str]
    ) -> None:
        answers = [
            outsider.post("/w/answer", json={**held, "name": "review", "payload": number, "who": "Ana"})
            for number in range(20)
        ]
        statuses = [answer.status_code for answer in await asyncio.gather(*answers)]
        assert (statuses.count(200), statuses.count(409)) == (1, 19)
        assert len(await signals(engine)) == 1
        assert (await outsider.post("/w/question", json=held)).status_code == 404

    @pytest.mark.parametrize("path", ["/w/question", "/w/answer"])
    async def test_a_wrong_token_changes_nothing(
        self, outsider: httpx.AsyncClient, engine: Engine, held: dict[str, str], path: str
    ) -> None:
        more = {"name": "review", "who": "Eve"} if path == "/w/answer" else {}
        last = held["token"][-1]
        for wrong in (
            {"token": held["token"][:-1] + ("0" if last != "0" else "1")},
            {"token": ""},
            {"token": "tökén"},
            {"waitpoint_id": new_uuid4()},
            {"waitpoint_id": "nonsense"},
            {"execution_id": "nonsense"},
        ):
            answer = await outsider.post(path, json={**held, **more, **wrong})
            assert answer.status_code in (400, 404), wrong
        assert not await signals(engine)

    async def test_without_the_token_nobody_learns_what_there_is(
        self, outsider: httpx.AsyncClient, held: dict[str, str]
    ) -> None:
        """No such execution, no such waitpoint, a wrong token: the answers are all the same."""
        wrong = [
            {"execution_id": ID[:-1] + "0"},
            {"execution_id": "nonsense"},
            {"waitpoint_id": new_uuid4()},
            {"waitpoint_id": "nonsense"},
            {},
        ]
        tokens = ["", "x", "k1:" + "0" * 64, "k9:" + "0" * 64, "k1:" + "G" * 64]
        for path in ("/w/question", "/w/answer"):
            bodies = [
                {**held, "name": "review", "who": "Eve", "token": token, **one}
                for one in wrong
                for token in tokens
            ]
            answers = [await outsider.post(path, json=body) for body in bodies]
            assert {(answer.status_code, answer.content) for answer in answers} == {
                (404, b'{"error":"this link is not valid any more"}')
            }

    async def test_whoever_answers_says_who_it_is(
        self, outsider: httpx.AsyncClient, engine: Engine, held: dict[str, str]
    ) -> None:
        answer = await outsider.post("/w/answer", json={**held, "name": "review", "who": " "})
        assert answer.status_code == 400
        assert not await signals(engine)

    async def test_a_form_of_another_site_is_not_taken(
        self, outsider: httpx.AsyncClient, engine: Engine, held: dict[str, str]
    ) -> None:
        form = {**held, "name": "review", "who": "Eve"}
        assert (await outsider.post("/w/answer", data=form)).status_code == 415
        text = await outsider.post(
            "/w/answer", content=json.dumps(form), headers={"Content-Type": "text/plain"}
        )
        assert text.status_code == 415
        assert not await signals(engine)

    async def test_a_key_that_was_rotated_out_still_verifies_in_its_grace(
        self, outsider: httpx.AsyncClient, engine: Engine, held: dict[str, str]
    ) -> None:
        async def rotate(kid: str, grace_ms: int) -> None:
            secret = kid.encode().hex() * 16
            command = RotateWaitpointHmacSecretArgs(new_kid=kid, new_secret_hex=secret, grace_ms=grace_ms)
            await engine.execute(command)

        await rotate("k2", 60_000)
        assert (await outsider.post("/w/question", json=held)).status_code == 200

    async def test_no_log_has_the_token(
        self,
        outsider: httpx.AsyncClient,
        held: dict[str, str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.DEBUG)
        await outsider.post("/w/question", json=held)
        await outsider.post("/w/answer", json={**held, "name": "review", "who": "Ana", "payload": 1})
        secret = held["token"].partition(":")[2]
        assert secret not in caplog.text


async def test_a_handler_makes_a_link_and_waits_for_its_answer() -> None:
    ff = FlowFabric("memory://", store=MemoryStore())
    links: asyncio.Queue[str] = asyncio.Queue()

    @ff.handler
    async def review(task: Task) -> str:
        waitpoint = await task.create_waitpoint("review")
        choices = {"Yes": {"approved": True}, "No": {"approved": False}}
        link = task.waitpoint_link(
            waitpoint, "review", question="Ship it?", choices=choices, public_url=PUBLIC
        )
        links.put_nowait(link)
        verdict = await task.wait_for_signal("review", waitpoint=waitpoint)
        return f"{verdict.payload['approved']} by {verdict.source_identity}"

    async with ff, asyncio.timeout(60):
        run = await ff.submit(review)
        working = asyncio.create_task(ff.run_worker())
        link = opened(await links.get())
        engine = ff.engine
        assert isinstance(engine, Engine)
        transport = httpx.ASGITransport(app=make_app(Service(engine, ServerOptions())))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as browser:
            body = {"execution_id": link["e"], "waitpoint_id": link["w"], "token": link["t"]}
            answer = {**body, "name": link["n"], "payload": link["c"]["Yes"], "who": "Ana"}
            assert (await browser.post("/w/answer", json=answer)).status_code == 200
        assert await run.result() == "True by Ana"
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


async def test_a_run_gives_the_link_of_what_it_waits_for() -> None:
    ff = FlowFabric("memory://", store=MemoryStore())

    @ff.handler
    async def review(task: Task) -> str:
        return str((await task.wait_for_signal("review")).payload)

    async with ff, asyncio.timeout(60):
        run = await ff.submit(review)
        working = asyncio.create_task(ff.run_worker())
        async for event in ff.subscribe("execution", after=FROM_START, execution_id=run.execution_id):
            if await run.state() == "suspended":
                assert event.execution_id == run.execution_id
                break
        link = opened(await run.waitpoint_link("review", public_url=PUBLIC))
        assert (link["e"], link["n"]) == (run.execution_id, "review")
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
