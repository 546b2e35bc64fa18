"""Flags, environment and file."""

from pathlib import Path

import httpx
import pytest

from flowfabric.engine.engine import Engine
from flowfabric.errors import InvalidInput
from flowfabric.server import ServerOptions, Service, make_app
from flowfabric.server.settings import SETTINGS, read_settings
from flowfabric.stores.memory import MemoryStore


def test_nothing_said_means_this_machine_only() -> None:
    settings = read_settings({}, {}, None)
    assert (settings.host, settings.port) == ("127.0.0.1", 9090)
    assert settings.options == ServerOptions()


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('listen = "127.0.0.1:1"\nstreams_max = 7\n')
    environment = {"FF_LISTEN_ADDR": "127.0.0.1:2"}
    assert read_settings({}, {}, file).port == 1
    assert read_settings({}, environment, file).port == 2
    assert read_settings({"listen": "127.0.0.1:3"}, environment, file).port == 3
    assert read_settings({}, environment, file).options.streams_max == 7


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.8.8.8"])
def test_a_loopback_address_needs_no_token(host: str) -> None:
    assert not read_settings({"listen": f"{host}:9090"}, {}, None).options.insecure


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]", "10.0.0.1", "example.org"])  # noqa: S104
def test_any_other_address_does(host: str) -> None:
    with pytest.raises(InvalidInput, match="loopback"):
        read_settings({"listen": f"{host}:9090"}, {}, None)
    assert read_settings({"listen": f"{host}:9090", "insecure": "on"}, {}, None).options.insecure
    with_token = read_settings({"listen": f"{host}:9090"}, {"FF_API_TOKEN": "secret"}, None)
    assert not with_token.options.insecure
    assert len(with_token.options.tokens) == 1


def test_a_token_is_kept_as_a_digest() -> None:
    assert "secret" not in repr(read_settings({}, {"FF_API_TOKEN": "secret"}, None))


@pytest.mark.scenario("BOOT-004")
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FF_LISTEN_ADDR", "nonsense"),
        ("FF_LISTEN_ADDR", "127.0.0.1:70000"),
        ("FF_MAX_CONCURRENT_STREAM_OPS", "0"),
        ("FF_MAX_CONCURRENT_STREAM_OPS", "many"),
        ("FF_INSECURE", "perhaps"),
        ("FF_CORS_ORIGINS", ""),
        ("FF_TOKENS_FILE", "/no/such/file"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_opened(variable: str, value: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read_settings({}, {variable: value}, None)
    assert variable in str(refused.value) or "tokens file" in str(refused.value)


@pytest.mark.parametrize("text", ["listen = ", "colour = 1", "listen = 5"])
def test_a_wrong_file_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "server.toml"
    file.write_text(text)
    with pytest.raises(InvalidInput):
        read_settings({}, {}, file)


def test_every_setting_has_a_name_of_its_own() -> None:
    assert len({setting.name for setting in SETTINGS}) == len(SETTINGS)
    assert len({setting.variable for setting in SETTINGS}) == len(SETTINGS)


# Origins


async def preflight(options: ServerOptions, origin: str) -> httpx.Response:
    async with Engine(MemoryStore()) as engine:
        transport = httpx.ASGITransport(make_app(Service(engine, options)))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            return await client.options("/v1/executions", headers=headers)


@pytest.mark.scenario("HTTP-009")
async def test_no_origin_is_allowed_until_one_is_named() -> None:
    answer = await preflight(ServerOptions(), "https://app.example")
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.scenario("HTTP-009")
async def test_only_the_named_origins_are_allowed() -> None:
    options = ServerOptions(cors_origins=("https://app.example",))
    allowed = await preflight(options, "https://app.example")
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert "authorization" not in allowed.headers["access-control-allow-headers"].lower()
    assert (await preflight(options, "https://evil.example")).status_code == 400


@pytest.mark.scenario("HTTP-009")
@pytest.mark.parametrize(
    "text", ["", " , ", "app.example", "https://", "https://a.example/x", "a, https://b"]
)
def test_an_origin_that_is_none_stops_the_server_from_starting(text: str) -> None:
    with pytest.raises(InvalidInput, match="FF_CORS_ORIGINS"):
        read_settings({}, {"FF_CORS_ORIGINS": text}, None)
