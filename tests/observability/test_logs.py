"""What is in a line, and what never is."""

import io
import json
import logging
from collections.abc import Iterator

import httpx
import pytest

from flowfabric import FlowFabric, Task
from flowfabric.engine.engine import Engine
from flowfabric.observability import logs
from flowfabric.observability.logs import FieldsFilter, JsonLines, TextLines, bound, without_secrets
from flowfabric.server import Role, ServerOptions, Service, entry_for, make_app
from flowfabric.stores.memory import MemoryStore
from tests.worker.stage import working

CANARIES = {
    "api token": "ff_CANARY78901234567890123456789012345678901234",
    "waitpoint token": "k1:" + "c0ffee00" * 8,
    "store password": "CANARYpassword",
}


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What our loggers write as JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    handler.addFilter(FieldsFilter())
    logger = logging.getLogger("flowfabric")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(before)


def entries(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def record(message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("flowfabric.test", logging.WARNING, __file__, 1, message, args, None)


def test_a_line_of_json_is_one_object_with_its_fields() -> None:
    with bound(lane="images", attempt_index=2):
        line = JsonLines().format(record("two\nlines of %s", "text"))
    assert "\n" not in line
    entry = json.loads(line)
    assert entry["time"].endswith("Z")
    del entry["time"]
    assert entry == {
        "level": "warning",
        "logger": "flowfabric.test",
        "message": "two\nlines of text",
        "lane": "images",
        "attempt_index": 2,
    }


def test_a_line_for_people_has_its_fields_behind_it() -> None:
    with bound(lane="images"):
        assert TextLines().format(record("hello")).endswith("WARNING flowfabric.test: hello [lane=images]")
    assert TextLines().format(record("hello")).endswith("hello")


def test_an_exception_is_in_the_entry() -> None:
    error = ValueError("broken")
    failed = logging.LogRecord("x", logging.ERROR, __file__, 1, "oh", (), (ValueError, error, None))
    assert "ValueError: broken" in json.loads(JsonLines().format(failed))["exception"]


def test_fields_end_with_their_block() -> None:
    with bound(a=1):
        with bound(b=2):
            assert dict(logs.bound_fields()) == {"a": 1, "b": 2}
        assert dict(logs.bound_fields()) == {"a": 1}
    assert dict(logs.bound_fields()) == {}


@pytest.mark.parametrize("is_async", [True, False])
async def test_lines_of_a_handler_know_what_they_belong_to(lines: io.StringIO, *, is_async: bool) -> None:
    app = FlowFabric(store=MemoryStore())
    log = logging.getLogger("flowfabric.mine")

    if is_async:

        @app.handler(name="talk", lane="images")
        async def talk(task: Task) -> None:
            log.info("from the handler")
    else:

        @app.handler(name="talk", lane="images")
        def talk_plainly() -> None:
            log.info("from the handler")

    async with app, working(app) as worker:
        run = await app.submit("talk", lane="images")
        await run.result()
        [entry] = [one for one in entries(lines) if one["message"] == "from the handler"]
        assert entry["execution_id"] == run.execution_id
        assert (entry["lane"], entry["attempt_index"], entry["execution_kind"]) == ("images", 0, "talk")
        assert entry["worker_instance_id"] == worker.instance_id
    assert dict(logs.bound_fields()) == {}


async def test_every_line_of_a_request_has_its_id(lines: io.StringIO) -> None:
    async with Engine(MemoryStore()) as engine:
        service = Service(engine, ServerOptions(access_log=True))
        transport = httpx.ASGITransport(make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            await client.get("/healthz", headers={"X-Request-Id": "r-1"})
            await client.get("/nowhere", headers={"X-Request-Id": "r-2"})
    told = [
        (one["request_id"], one["message"]) for one in entries(lines) if one["logger"] == "flowfabric.access"
    ]
    assert [request_id for request_id, _ in told] == ["r-1", "r-2"]
    assert str(told[0][1]).startswith("GET /healthz 200 ")
    assert str(told[1][1]).startswith("GET unknown 404 ")


@pytest.mark.parametrize("secret", CANARIES.values(), ids=CANARIES.keys())
@pytest.mark.parametrize("formatter", [JsonLines(), TextLines()], ids=["json", "text"])
def test_a_secret_that_strays_into_a_line_is_struck_out(formatter: logging.Formatter, secret: str) -> None:
    strayed = record("it is %s", f"postgresql://ana:{secret}@db/work" if "password" in secret else secret)
    assert secret not in formatter.format(strayed)
    assert logs.STRUCK_OUT in formatter.format(strayed)


def test_what_is_no_secret_stays() -> None:
    harmless = "execution {fp:7}:01997b3e-8000-7000-8000-000000000000 of ff_lane at http://host:9090/v1"
    assert without_secrets(harmless) == harmless
    assert without_secrets("Authorization: Bearer abc.def") == f"Authorization: Bearer {logs.STRUCK_OUT}"


async def test_no_token_is_in_what_a_server_logs_or_shows_of_itself(lines: io.StringIO) -> None:
    token = CANARIES["api token"]
    options = ServerOptions(access_log=True, tokens=(entry_for(token, "ana", (Role.READ,), None),))
    async with Engine(MemoryStore()) as engine:
        service = Service(engine, options)
        transport = httpx.ASGITransport(make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            for path in ("/v1/server", f"/v1/{token}", "/v1/executions", f"/v1/executions/{token}"):
                await client.get(path, headers={"Authorization": f"Bearer {token}"})
            await client.get("/v1/server", headers={"Authorization": f"Bearer {token}x"})
    assert len(entries(lines)) >= 5
    for shown in (lines.getvalue(), repr(options), repr(service.options.tokens)):
        assert "CANARY" not in shown


def test_logging_that_is_configured_already_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.Logger("root")  # noqa: LOG001 - the real one belongs to the test run
    monkeypatch.setattr(logging, "root", root)
    stream = io.StringIO()
    logs.configure_logging("json", "warning", stream)
    [handler] = root.handlers
    logs.configure_logging("text", "debug", stream)
    assert root.handlers == [handler]
    assert root.level == logging.WARNING
    root.info("unseen")
    root.warning("seen")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["seen"]
