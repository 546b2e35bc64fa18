"""What an app takes from the environment: the store, the namespace, and the first signing key."""

import pytest

from flowfabric import FlowFabric, errors
from flowfabric.contracts.keyring import (
    ListWaitpointHmacKidsArgs,
    SecretAlreadySeeded,
    SeedWaitpointHmacSecretArgs,
)
from flowfabric.stores.memory import MemoryStore

SECRET = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FF_URL", "FF_NAMESPACE", "FF_WAITPOINT_HMAC_SECRET"):
        monkeypatch.delenv(name, raising=False)


def test_an_app_names_its_namespace_or_the_environment_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FlowFabric("memory://").namespace == "default"
    monkeypatch.setenv("FF_NAMESPACE", "tenant")
    assert FlowFabric("memory://").namespace == "tenant"
    assert FlowFabric("memory://", namespace="own").namespace == "own"


async def test_a_store_without_a_key_gets_a_random_one_once() -> None:
    store = MemoryStore()
    for _ in range(2):
        async with FlowFabric(store=store) as ff:
            kids = await ff.engine.execute(ListWaitpointHmacKidsArgs())
            assert (kids.current_kid, kids.verifying) == ("k1", ())


async def test_the_first_key_has_the_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FF_WAITPOINT_HMAC_SECRET", SECRET)
    async with FlowFabric("memory://") as ff:
        seeded = await ff.engine.execute(SeedWaitpointHmacSecretArgs(kid="k1", secret_hex=SECRET))
    assert seeded == SecretAlreadySeeded(kid="k1", same_secret=True)


async def test_a_malformed_secret_stops_the_start_and_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FF_WAITPOINT_HMAC_SECRET", "too-short-a-secret")
    ff = FlowFabric("memory://")
    with pytest.raises(errors.InvalidSecretHex) as caught:
        await ff.start()
    assert "too-short" not in str(caught.value)
    with pytest.raises(RuntimeError, match="not started"):
        _ = ff.engine
